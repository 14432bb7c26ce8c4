//go:build interop

package interop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/writ-dev/writ/test/programs"
)

// cliStep is one command line of spire-server, given to both servers. $name
// stands for what an earlier step kept.
type cliStep struct {
	args string
	// stdin is what the command reads, for "-path -" and "-data -".
	stdin string
	// keep remembers values of the JSON result: name to the path of the value.
	keep map[string]string
	// fails says that the exit code is 1, on both.
	fails bool
	// codeOnly compares no text, for the reason given.
	codeOnly string
	// differs is what writd does otherwise, and why.
	differs string
}

const (
	cliNode = "spiffe://interop.test/node/same"
	cliWeb  = "entry create -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/web -selector unix:uid:1000"
)

// cliSteps are run in this order.
var cliSteps = []cliStep{
	{args: "healthcheck"},
	{args: "healthcheck -verbose"},

	{args: "token generate -output json"},
	{args: "token generate"},
	{args: "token generate -spiffeID nonsense", fails: true},
	{args: "token generate -spiffeID spiffe://elsewhere.test/node/x", fails: true},

	{args: "entry count"},
	{args: "entry show"},
	{args: cliWeb + " -output json", keep: map[string]string{"entry": "results.0.entry.id"}},
	{args: cliWeb, fails: true},
	{args: cliWeb + " -output json"},
	{args: "entry create -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/all -selector unix:uid:1 -selector unix:gid:1 -dns a.test -hint inner -x509SVIDTTL 60 -jwtSVIDTTL 30 -admin -downstream -entryExpiry 4102444800"},
	{args: "entry create -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/own -selector unix:uid:2 -entryID own-id"},
	{args: "entry create -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/own2 -selector unix:uid:2 -entryID own-id", fails: true},
	{args: "entry create -parentID " + cliNode + " -spiffeID spiffe://elsewhere.test/svc/x -selector unix:uid:1", fails: true},
	{args: "entry create -parentID " + cliNode + " -spiffeID spiffe://interop.test/a//b -selector unix:uid:1", fails: true},
	{args: "entry create -parentID " + cliNode + " -spiffeID nonsense -selector unix:uid:1", fails: true},
	{args: "entry create -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/x -selector nonsense", fails: true},
	{args: "entry create -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/x", fails: true},
	{args: "entry create -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/early -selector unix:uid:77 -federatesWith unknown.test", fails: true,
		differs: "SPIRE says Internal of a bundle that is not there, writd FailedPrecondition"},
	{args: "entry show -entryID $entry"},
	{args: "entry show -entryID $entry -output json"},
	{args: "entry show -entryID 00000000-0000-0000-0000-000000000000", fails: true},
	{args: "entry show -spiffeID spiffe://interop.test/svc/web -output json"},
	{args: "entry show -spiffeID spiffe://interop.test/svc/none"},
	{args: "entry show -selector unix:uid:1 -matchSelectorsOn exact"},
	{args: "entry show -selector unix:uid:1 -matchSelectorsOn superset"},
	{args: "entry show -hint inner"},
	{args: "entry show -downstream"},
	{args: "entry count -output json"},
	{args: "entry update -entryID $entry -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/web -selector unix:uid:1001 -x509SVIDTTL 90"},
	{args: "entry update -entryID $entry -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/web -selector unix:uid:1001 -x509SVIDTTL 91 -output json"},
	{args: "entry update -entryID none -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/web -selector unix:uid:1001", fails: true},
	{args: "entry delete -entryID $entry"},
	{args: "entry delete -entryID $entry", fails: true},
	{args: "entry delete -entryID $entry -output json"},
	{args: "entry delete", fails: true},

	{args: "agent count"},
	{args: "agent count -output json"},
	{args: "agent list"},
	{args: "agent list -output json"},
	{args: "agent list -attestationType x509pop"},
	{args: "agent list -banned false -canReattest false -output json"},
	{args: "agent list -expiresBefore nonsense", fails: true},
	{args: "agent show -spiffeID $agent"},
	{args: "agent show -spiffeID $agent -output json"},
	{args: "agent show -spiffeID spiffe://interop.test/spire/agent/none", fails: true},
	{args: "agent show -spiffeID nonsense", fails: true},
	{args: "agent purge -dryRun -output json"},
	{args: "agent ban -spiffeID $agent"},
	{args: "agent list -banned true -output json"},
	{args: "agent ban -spiffeID spiffe://interop.test/spire/agent/none", fails: true},
	{args: "agent evict -spiffeID $agent"},
	{args: "agent evict -spiffeID $agent", fails: true},
	{args: "agent count"},

	{args: "bundle show"},
	{args: "bundle show -format spiffe", codeOnly: "the document's keys are in the order of Go's maps there"},
	{args: "bundle show -output json"},
	{args: "bundle count"},
	{args: "bundle count -output json"},
	{args: "bundle list"},
	{args: "bundle set -id spiffe://far.test -path $pem"},
	{args: "bundle set -id spiffe://far.test -path $pem -output json"},
	{args: "bundle set -id spiffe://interop.test -path $pem", fails: true},
	{args: "bundle set -id nonsense/ -path $pem", fails: true},
	{args: "bundle set -id spiffe://far.test -path /nowhere", fails: true},
	{args: "bundle list"},
	{args: "bundle list -id spiffe://far.test"},
	{args: "bundle list -output json"},
	{args: "bundle list -id spiffe://none.test", fails: true},
	{args: "entry create -parentID " + cliNode + " -spiffeID spiffe://interop.test/svc/fed -selector unix:uid:1 -federatesWith far.test"},
	{args: "entry show -federatesWith spiffe://far.test -output json"},
	{args: "bundle delete -id spiffe://far.test", fails: true},
	{args: "bundle delete -id spiffe://far.test -mode dissociate"},
	{args: "bundle delete -id spiffe://far.test -mode delete", fails: true},

	{args: "federation list"},
	{args: "federation create -trustDomain web.test -bundleEndpointURL https://web.test/bundle -bundleEndpointProfile https_web"},
	{args: "federation create -trustDomain web.test -bundleEndpointURL https://web.test/bundle -bundleEndpointProfile https_web", fails: true,
		differs: "SPIRE says Internal of what is there already, writd AlreadyExists"},
	{args: "federation create -trustDomain spiffe.test -bundleEndpointURL https://spiffe.test/bundle -bundleEndpointProfile https_spiffe -endpointSpiffeID spiffe://spiffe.test/spire/server -trustDomainBundlePath $pem -output json"},
	{args: "federation create -trustDomain plain.test -bundleEndpointURL http://plain.test/bundle -bundleEndpointProfile https_web", fails: true},
	{args: "federation create -trustDomain interop.test -bundleEndpointURL https://x.test/bundle -bundleEndpointProfile https_web", fails: true},
	{args: "federation list", codeOnly: "the order is SPIRE's of creation, ours of names"},
	{args: "federation list -output json"},
	{args: "federation show -trustDomain web.test"},
	{args: "federation show -trustDomain spiffe.test -output json"},
	{args: "federation show -trustDomain none.test", fails: true},
	{args: "federation update -trustDomain web.test -bundleEndpointURL https://web.test/other -bundleEndpointProfile https_web"},
	{args: "federation update -trustDomain none.test -bundleEndpointURL https://web.test/other -bundleEndpointProfile https_web", fails: true,
		differs: "SPIRE says Internal of what is not there, writd NotFound"},
	{args: "federation refresh -id none.test", fails: true},
	{args: "federation delete -id web.test"},
	{args: "federation delete -id web.test", fails: true},

	{args: "x509 mint -spiffeID spiffe://interop.test/minted -ttl 60s -dns a.test"},
	{args: "x509 mint -spiffeID spiffe://interop.test/minted -output json", codeOnly: "the document holds a certificate chain"},
	{args: "x509 mint -spiffeID spiffe://elsewhere.test/minted", fails: true},
	{args: "x509 mint", fails: true},
	{args: "jwt mint -spiffeID spiffe://interop.test/minted -audience a -audience b"},
	{args: "jwt mint -spiffeID spiffe://interop.test/minted -audience a -ttl 60s -output json"},
	{args: "jwt mint -spiffeID spiffe://interop.test/minted", fails: true},
	{args: "jwt mint -spiffeID spiffe://elsewhere.test/minted -audience a", fails: true},

	{args: "token generate -spiffeID spiffe://interop.test/node/x -ttl 60"},
	{args: "logger get -output json", codeOnly: "the two were started with different levels"},
	{args: "logger set -level debug"},
	{args: "logger set -level warn -output json"},
	{args: "logger set -level loud", fails: true},
	{args: "logger get"},
	{args: "logger reset -output json"},
}

// The same commands of the stock CLI, at a stock server and at writd: the same
// exit code, the same JSON keys, the same text but for the values in it.
func TestSPIREServerCLISame(t *testing.T) {
	steps := slices.Concat(cliSteps, cliAuthoritySteps)
	var got [2][]string
	for i, name := range []string{"spire-server", "writd"} {
		got[i] = runCLISteps(t, name, steps)
	}
	for i, s := range steps {
		t.Run(strings.ReplaceAll(strings.SplitN(s.args, " -", 2)[0], " ", "_"), func(t *testing.T) {
			if s.differs != "" {
				if got[0][i] == got[1][i] {
					t.Errorf("spire-server %s: no longer differs (%s)", s.args, s.differs)
				}
				t.Logf("deviates: writd: %s", s.differs)
				return
			}
			if diff := cmp.Diff(strings.Split(got[0][i], "\n"), strings.Split(got[1][i], "\n")); diff != "" {
				t.Errorf("spire-server %s (-at spire-server +at writd):\n%s", s.args, diff)
			}
			if failed := !strings.HasPrefix(got[0][i], "exit 0"); failed != s.fails {
				t.Errorf("spire-server %s at a stock server: %s", s.args, got[0][i])
			}
		})
	}
}

// runCLISteps gives what is comparable of each step's outcome.
func runCLISteps(t *testing.T, name string, steps []cliStep) []string {
	ctx := bounded(t, 4*time.Minute)
	ports, err := programs.FreePorts(2)
	check(t, err)
	dir := shortDir(t)
	conf := programs.ServerConfig{Path: program(t, name), Dir: filepath.Join(dir, "s"), TrustDomain: domain, IssuerPort: ports[0], ControlPort: ports[1]}
	start, socket := programs.StartWritd, conf.AdminSocket()
	if name == "spire-server" {
		start, socket = programs.StartSPIRE, filepath.Join(conf.Dir, "api.sock")
	}
	server, err := start(ctx, conf)
	check(t, err)
	defer func() { check(t, server.Stop()) }()
	token, err := server.JoinToken(ctx, idOf(cliNode))
	check(t, err)
	node, err := server.Attest(ctx, token)
	check(t, err)
	kept := map[string]string{"agent": node.SVID.ID.String(), "pem": farBundle(t, dir)}
	var all []string
	for _, s := range steps {
		out, code := runCLI(t, program(t, "spire-server"), socket, s, kept)
		if s.keep != nil {
			keepCLI(t, s, out, kept)
		}
		result := fmt.Sprintf("exit %d", code)
		if s.codeOnly == "" {
			result += "\n" + withoutValues(out)
		}
		all = append(all, result)
	}
	return all
}

func runCLI(t *testing.T, path, socket string, s cliStep, kept map[string]string) (out []byte, code int) {
	args := strings.Fields(s.args)
	for i, a := range args {
		if name, ok := strings.CutPrefix(a, "$"); ok {
			args[i] = kept[name]
		}
	}
	cmd := exec.CommandContext(bounded(t, time.Minute), path, append(args, "-socketPath", socket)...)
	cmd.Stdin = strings.NewReader(s.stdin)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out, cmd.ProcessState.ExitCode()
}

func keepCLI(t *testing.T, s cliStep, out []byte, kept map[string]string) {
	var doc any
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatalf("spire-server %s: %v\n%s", s.args, err, out)
	}
	for name, path := range s.keep {
		at := doc
		for _, part := range strings.Split(path, ".") {
			switch v := at.(type) {
			case map[string]any:
				at = v[part]
			case []any:
				if len(v) == 0 {
					t.Fatalf("spire-server %s: no %s in\n%s", s.args, path, out)
				}
				at = v[0]
			}
		}
		text, ok := at.(string)
		if !ok {
			t.Fatalf("spire-server %s: no %s in\n%s", s.args, path, out)
		}
		kept[name] = text
	}
}

// withoutValues is the output without its values: of JSON the keys with the kind
// of what they hold, of text everything but identifiers, times and messages.
func withoutValues(out []byte) string {
	var doc any
	if json.Unmarshal(out, &doc) == nil {
		found := map[string]bool{}
		shape("", doc, found)
		var lines []string
		for line := range found {
			lines = append(lines, line)
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	text := string(bytes.TrimSpace(out))
	for _, r := range cliValues {
		text = r.find.ReplaceAllString(text, r.with)
	}
	return text
}

func shape(at string, v any, found map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		found[at+" {}"] = true
		for key, value := range v {
			shape(at+"."+key, value, found)
		}
	case []any:
		found[at+" []"] = true
		for _, value := range v {
			shape(at+"[]", value, found)
		}
	default:
		found[fmt.Sprintf("%s %T", at, v)] = true
	}
}

// cliValues are what differs between any two servers, and what each server says
// in its own words: the message of an error, whose code is compared.
var cliValues = []struct {
	find *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`(?s)-----BEGIN ([A-Z ]+)-----.*?-----END [A-Z ]+-----`), "<$1>"},
	{regexp.MustCompile(`(<CERTIFICATE>\s*)+`), "<CERTIFICATE>\n"},
	{regexp.MustCompile(`eyJ[\w-]+\.[\w-]+\.[\w-]+`), "<jwt>"},
	{regexp.MustCompile(`(desc = |msg: |message: ).*`), "$1<message>"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<id>"},
	{regexp.MustCompile(`join_token/\S+`), "join_token/<token>"},
	{regexp.MustCompile(`(?m)^Token: \S+`), "Token: <token>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| [+-]\d{4} \w+)`), "<time>"},
	{regexp.MustCompile(`\b[0-9a-f]{32,}\b|\b\d{12,}\b`), "<number>"},
	{regexp.MustCompile(`(Revision +: )\d+`), "$1<n>"},
	{regexp.MustCompile(`(?m)^(Error: (?:[^:"\n]|"[^"\n]*")+: )((?:rpc error: code = \w+ desc = )?).*`), "$1$2<message>"},
	{regexp.MustCompile(`"\d{10}"`), `"<time>"`},
	{regexp.MustCompile(`(Launch Level : )\w+`), "$1<level>"},
	{regexp.MustCompile(`(Authority ID: )\S+`), "$1<id>"},
}
