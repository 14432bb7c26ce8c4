package issuer_test

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/issuer"
)

var updatePage = flag.Bool("update-page", false, "write docs/reference/spire-api.md")

const apiPage = "../../docs/reference/spire-api.md"

// apiNotes say what a client of a method has to know beyond its name.
var apiNotes = map[string]string{
	"Agent/AttestAgent":           "attestation attempts of one address are limited",
	"Agent/RenewAgent":            "the renewed SVID becomes the current one when it is first used",
	"Agent/DeleteAgent":           "takes the alias that came with the join token along",
	"Agent/BanAgent":              "ends the agent's calls and streams at once",
	"Agent/CreateJoinToken":       "only the SHA-256 is kept, so a token cannot be shown again",
	"Entry/ListEntries":           "`by_downstream: false` is no filter, as stock clients mean it",
	"Entry/BatchUpdateEntry":      "an update that changes nothing does not bump the revision",
	"Entry/GetAuthorizedEntries":  "a list over 4 MB is refused here: `SyncAuthorizedEntries` has pages",
	"Entry/SyncAuthorizedEntries": "up to 500 entries at once, then by revision in pages",
	"SVID/BatchNewX509SVID":       "500 signatures a second for one agent (`sign_rate`)",
	"SVID/NewDownstreamX509CA":    "with the X509-SVID of an entry marked downstream",
	"SVID/NewJWTSVID":             "counts as a signature, as above",
	"Logger/SetLogLevel":          "FATAL and PANIC silence the log; on record",
	"Debug/GetInfo":               "SPIRE serves it on the socket only; here an admin entry may ask too",
}

// The page tells of every method of the SDK's server services who may call it
// and whether it works; this test calls each and compares.
func TestSPIREAPIPage(t *testing.T) {
	w := newWorld(t, func(c *issuer.Config, _ *ca.Config) { c.LogLevel = new(slog.LevelVar) })
	page := w.spireAPIPage(t)
	if *updatePage {
		must(t, os.WriteFile(apiPage, page, 0o644))
	}
	got, err := os.ReadFile(apiPage)
	must(t, err)
	if diff := gocmp.Diff(string(page), string(got)); diff != "" {
		t.Errorf("the page is behind (go test ./identity/issuer -run SPIREAPIPage -update-page):\n%s", diff)
	}
}

func (w *world) spireAPIPage(t *testing.T) []byte {
	agent := w.join(w.token("/node/page"))
	var services []protoreflect.ServiceDescriptor
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if strings.HasPrefix(string(f.Package()), "spire.api.server.") {
			for i := range f.Services().Len() {
				services = append(services, f.Services().Get(i))
			}
		}
		return true
	})
	if len(services) < 8 {
		t.Fatalf("the SDK has %d server services, and had 8", len(services))
	}
	slices.SortFunc(services, func(a, b protoreflect.ServiceDescriptor) int { return cmp.Compare(a.FullName(), b.FullName()) })
	var out bytes.Buffer
	out.WriteString(`# SPIRE's server API

<!-- Made and checked by a test: go test ./identity/issuer -run SPIREAPIPage -update-page -->

Every method of the server services of spire-api-sdk v1.14.0, as ` + "`writd`" + ` answers
it. Who may call: *anyone* on either listener; *agent* with its current SVID on
` + "`issuer_listen`" + `; *admin* on the admin socket, or with the X509-SVID of an entry
marked admin. What does not work answers ` + "`Unimplemented`" + ` with the reason given here.
[Templates](../howto/templates.md) are an API of Writ's own, and in none of these
answers.
`)
	notes := 0
	for _, s := range services {
		fmt.Fprintf(&out, "\n## %s\n\n| method | who | |\n|---|---|---|\n", s.FullName())
		for i := range s.Methods().Len() {
			m := s.Methods().Get(i)
			name := string(s.Name()) + "/" + string(m.Name())
			who := callers[name]
			conn := w.admin
			if who == "n" {
				conn = agent.conn
			}
			text := "works"
			err := callEmpty(t.Context(), conn, fmt.Sprintf("/%s/%s", s.FullName(), m.Name()), m.IsStreamingClient() || m.IsStreamingServer())
			if status.Code(err) == codes.Unimplemented {
				text = "Unimplemented: " + strings.Replace(status.Convert(err).Message(), "unknown service "+string(s.FullName()), "the service is not served", 1)
			}
			if note, ok := apiNotes[name]; ok {
				text += "; " + note
				notes++
			}
			fmt.Fprintf(&out, "| `%s` | %s | %s |\n", m.Name(), whoWords[who], text)
		}
	}
	if notes != len(apiNotes) {
		t.Errorf("%d notes, %d of them on a method that exists", len(apiNotes), notes)
	}
	return out.Bytes()
}

// whoWords are the words for the letters in callers.
var whoWords = map[string]string{"": "", "awnAdl": "anyone", "d": "downstream", "n": "agent", "Al": "admin", "nAl": "agent, admin", "l": "admin, on the socket only"}

// callEmpty calls a method with an empty message, for what it answers.
func callEmpty(ctx context.Context, conn *grpc.ClientConn, method string, stream bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !stream {
		return conn.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	_ = s.SendMsg(&emptypb.Empty{}) // an early refusal shows in RecvMsg
	_ = s.CloseSend()
	return s.RecvMsg(&emptypb.Empty{})
}
