// Package deploy holds what an installation starts from. The example shop is
// embedded, so that policyctl up runs it without a file at hand.
package deploy

import (
	"embed"
	"io/fs"
)

//go:embed examples/shop
var shop embed.FS

// Shop is the example mesh: mesh.yaml, its policy and its README.
func Shop() fs.FS {
	sub, err := fs.Sub(shop, "examples/shop")
	if err != nil {
		panic(err) // the path is constant and valid
	}
	return sub
}
