package collect

import (
	"context"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	"github.com/writ-dev/writ/audit"
	"github.com/writ-dev/writ/audit/auditv1"
)

// outgoing keeps what a recorder sends.
type outgoing struct {
	grpc.ClientStream
	sent []*auditv1.AppendRequest
}

func (o *outgoing) Send(req *auditv1.AppendRequest) error {
	o.sent = append(o.sent, req)
	return nil
}

func (o *outgoing) Recv() (*auditv1.AppendResponse, error) { return nil, context.Canceled }

// A recorder that stops says how much it has before it delivers the rest, so
// that a flush cut short is seen for what it is.
func TestCommittedIsAnnouncedAtStop(t *testing.T) {
	sp := openSpool(t, filepath.Join(t.TempDir(), "spool"))
	defer sp.Close()
	record(t, sp, 5)
	r, err := sp.Reader(0)
	if err != nil {
		t.Fatal(err)
	}
	stopping, cancel := context.WithCancel(context.Background())
	cancel()
	acks := make(chan audit.Position)
	close(acks)
	out := &outgoing{}
	s := &session{cfg: Config{Spool: sp}, stopping: stopping}
	// Nothing is acknowledged, so that it ends with an error.
	if err := s.send(context.Background(), out, r, acks); err == nil {
		t.Error("no error")
	}
	if len(out.sent) != 2 || out.sent[0].GetHeartbeat().GetLast() != 5 || len(out.sent[1].GetBatch().GetRecords()) != 5 {
		t.Errorf("sent %v, want a heartbeat with 5 and then a batch of 5", out.sent)
	}
}
