package issuer_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/writ-dev/writ/identity/watchv1"
	"github.com/writ-dev/writ/internal/prototest"
)

// ours fails where an issuer must not: it has no trouble of its own.
func ours(t testing.TB, err error) {
	t.Helper()
	switch code := status.Code(err); code {
	case codes.Internal, codes.Unknown, codes.Unavailable, codes.DeadlineExceeded, codes.DataLoss:
		t.Fatalf("%s: %v", code, err)
	}
}

// exchange sends all requests and returns what came back until the end.
func exchange[Req, Res any](t testing.TB, stream grpc.BidiStreamingClient[Req, Res], requests []*Req) (replies []*Res) {
	t.Helper()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for _, req := range requests {
			if stream.Send(req) != nil {
				return // Recv says why
			}
		}
		_ = stream.CloseSend()
	}()
	for {
		reply, err := stream.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				ours(t, err)
			}
			<-sent
			return replies
		}
		replies = append(replies, reply)
	}
}

// Whatever an agent sends in a sync: it gets entries of its own only, never a part
// of its list in the form of the whole, and no entry twice for one request.
func FuzzSyncRequests(f *testing.F) {
	w := newWorld(f)
	a, b := w.join(w.token("/node/a")), w.join(w.token("/node/b"))
	own := map[string]bool{}
	for _, e := range w.create(entry("/svc/1", "/node/a", "x"), entry("/svc/2", "/node/a", "x")) {
		own[e.Id] = true
	}
	foreign := w.create(entry("/svc/3", "/node/b", "x"))[0].Id
	_ = b
	first, ids := &entryv1.SyncAuthorizedEntriesRequest{}, []string{foreign, "", "x"}
	for id := range own {
		ids = append(ids, id, id)
	}
	whole := exchange(f, must2(a.entries().SyncAuthorizedEntries(f.Context())), []*entryv1.SyncAuthorizedEntriesRequest{first})[0]
	for _, e := range whole.Entries {
		own[e.Id] = true
	}
	mask := &types.EntryMask{RevisionNumber: true}
	f.Add(prototest.Delimited(first))
	f.Add(prototest.Delimited(first, &entryv1.SyncAuthorizedEntriesRequest{Ids: ids}, &entryv1.SyncAuthorizedEntriesRequest{}, &entryv1.SyncAuthorizedEntriesRequest{Ids: ids[:1]}))
	f.Add(prototest.Delimited(&entryv1.SyncAuthorizedEntriesRequest{OutputMask: mask}, &entryv1.SyncAuthorizedEntriesRequest{OutputMask: mask, Ids: ids}))
	f.Add(prototest.Delimited(&entryv1.SyncAuthorizedEntriesRequest{OutputMask: &types.EntryMask{SpiffeId: true}}))
	f.Add(prototest.Delimited(&entryv1.SyncAuthorizedEntriesRequest{Ids: ids}))
	f.Fuzz(func(t *testing.T, data []byte) {
		requests := prototest.Parted[entryv1.SyncAuthorizedEntriesRequest](data)
		stream, err := a.entries().SyncAuthorizedEntries(t.Context())
		must(t, err)
		for n, reply := range exchange(t, stream, requests) {
			seen := map[string]bool{}
			for _, e := range reply.Entries {
				if e.Id != "" && !own[e.Id] || seen[e.Id] && e.Id != "" {
					t.Errorf("reply %d has entry %s, of another agent or twice", n, e.Id)
				}
				seen[e.Id] = true
			}
			if n == 0 && len(reply.Entries) != len(whole.Entries) {
				t.Errorf("the whole list has %d entries, want %d", len(reply.Entries), len(whole.Entries))
			}
		}
	})
}

// Whatever an agent says that it holds, what it is told leads to what it may have.
func FuzzMissedRequest(f *testing.F) {
	w := newWorld(f)
	a := w.join(w.token("/node/a"))
	made := w.create(entry("/svc/1", "/node/a", "x"))
	for _, req := range []*watchv1.SyncRequest{
		{}, {Listed: true}, {Listed: true, Held: []*watchv1.Held{{Id: made[0].Id, Tag: []byte("x")}, {Id: made[0].Id}, {}, {Id: "gone"}}},
		{Digest: []byte("x"), Bundle: []byte("y"), Federated: map[string][]byte{"other.org": nil, "": {1}}},
	} {
		data, err := proto.Marshal(req)
		must(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		req := &watchv1.SyncRequest{}
		// A revision that nobody has told has the issuer ask its database.
		if proto.Unmarshal(data, req) != nil {
			return
		}
		stream, err := watchv1.NewEntryWatchClient(a.conn).Sync(t.Context(), req)
		must(t, err)
		changed, gone := map[string]bool{}, map[string]bool{}
		for {
			reply, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				ours(t, err)
				return
			}
			for _, c := range reply.Changed {
				if changed[c.Entry.Id] {
					t.Errorf("%s is told twice", c.Entry.Id)
				}
				changed[c.Entry.Id] = true
			}
			for _, id := range reply.Gone {
				if id == made[0].Id || gone[id] {
					t.Errorf("%q is gone, or gone twice", id)
				}
				gone[id] = true
			}
		}
	})
}

// Whatever is sent to be attested by, nobody becomes an agent without a token that
// there is, and the issuer never fails.
func FuzzAttestStream(f *testing.F) {
	w := newWorld(f)
	request := csr(f, newKey(f), "")
	params := func(kind, payload string) *agentv1.AttestAgentRequest {
		return &agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
			Data: &types.AttestationData{Type: kind, Payload: []byte(payload)}, Params: &agentv1.AgentX509SVIDParams{Csr: request},
		}}}
	}
	conn := w.dial(nil)
	defer conn.Close()
	challenge := &agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: []byte("x")}}
	f.Add(prototest.Delimited(params("join_token", "made up"), challenge))
	f.Add(prototest.Delimited(params("x509pop", "{}"), challenge, challenge))
	f.Add(prototest.Delimited(params(strings.Repeat("\xff", 200), "")))
	f.Add(prototest.Delimited(challenge))
	f.Add(prototest.Delimited(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{}}, params("", "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		stream, err := agentv1.NewAgentClient(conn).AttestAgent(t.Context())
		must(t, err)
		for _, reply := range exchange(t, stream, prototest.Parted[agentv1.AttestAgentRequest](data)) {
			if reply.GetResult() != nil {
				t.Error("attested by nothing")
			}
		}
		if n := len(w.store.Index().Agents()); n > 0 {
			t.Errorf("%d agents", n)
		}
	})
}

func must2[T any](v T, err error) T {
	if err != nil {
		panic(fmt.Sprint(err))
	}
	return v
}
