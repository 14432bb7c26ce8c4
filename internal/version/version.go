// Package version tells which build this is.
package version

import "runtime/debug"

// release is set by the linker for a release build.
var release = ""

// String is the release, or the commit that was built, or "dev".
func String() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "dev"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "dev-" + s.Value[:12]
		}
	}
	return "dev"
}
