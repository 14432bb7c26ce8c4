package issuer_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/identity/replicav1"
)

// A SQLite database has one control plane: no replicas are listed, and none can
// be removed.
func TestNoReplicas(t *testing.T) {
	w := newWorld(t)
	client := replicav1.NewAdminClient(w.admin)
	resp, err := client.List(t.Context(), &replicav1.ListRequest{})
	if err != nil || len(resp.GetReplicas()) != 0 {
		t.Errorf("%v, %v", resp, err)
	}
	if _, err := client.Remove(t.Context(), &replicav1.RemoveRequest{Name: "x"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("remove: %v", err)
	}
}
