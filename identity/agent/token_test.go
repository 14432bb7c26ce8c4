package agent

import (
	"crypto/x509"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A token whose fate is not known may be used up: it is not presented again.
func TestTokenWithLostAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.fail["AttestAgent"] = status.Error(codes.Unavailable, "connection reset")
		for range 2 {
			if err := b.run(); !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "create another") {
				t.Errorf("got %v, want ErrNoToken", err)
			}
			b.halt()
		}
		if n := b.f.count("AttestAgent"); n != 1 {
			t.Errorf("the token was presented %d times", n)
		}
	})
}

// Where the issuer says that it decided nothing, the token is as good as before.
func TestTokenUndecided(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.f.fail["AttestAgent"] = status.Error(codes.ResourceExhausted, "too many attempts")
		go func() {
			<-time.After(time.Minute)
			b.f.with(func() { delete(b.f.fail, "AttestAgent") })
		}()
		b.mustRun()
		if used := need(b.agent.keep.tokenUsed("token-1")); !used {
			t.Error("the token is not noted as used")
		}
	})
}

// An agent whose SVID the issuer does not take any more goes on by itself for as
// long as that is valid, and presents a token that is refused once, not with each
// attempt.
func TestRefusedTokenIsPresentedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, b *bench) {
		b.mustRun()
		b.halt()
		b.f.stop()
		*b.f = *newFake()
		pem := need(x509bundle.FromX509Authorities(testTD, []*x509.Certificate{b.f.ca}).Marshal())
		need(0, os.WriteFile(b.cfg.TrustBundle, pem, 0o600))
		b.token = func() (string, error) { return "used by another", nil }
		b.f.start()
		ended := make(chan error, 1)
		go func() { ended <- b.run() }()
		<-time.After(time.Minute)
		if n := b.f.count("AttestAgent"); n != 1 {
			t.Errorf("the token was presented %d times", n)
		}
		b.stop()
		<-ended
	})
}
