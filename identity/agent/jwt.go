package agent

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"

	"github.com/writ-dev/writ/identity/admit"
	"github.com/writ-dev/writ/identity/limit"
	"github.com/writ-dev/writ/identity/templatev1"
	"github.com/writ-dev/writ/identity/workload"
	"github.com/writ-dev/writ/internal/skew"
)

// maxTokens is how many JWT-SVIDs are kept. Callers choose audiences, so there
// has to be an end.
const maxTokens = 1024

// newPerSecond and newBurst are how many JWT-SVIDs that are not kept a user may
// ask for, and how many new instances of templates. What the issuer signs for one agent is limited, and for all of its
// users.
const (
	newPerSecond = 50
	newBurst     = 100
)

// tokens keeps JWT-SVIDs until half of their life.
type tokens struct {
	flight singleflight.Group
	limits *limit.Limits[uint32] // of calls to the issuer, by user

	mu   sync.Mutex
	kept map[string]token
	// told is before when the issuer does not want to be asked, for what is renewed
	// and for what is new.
	told map[bool]time.Time
}

type token struct {
	entryID string
	keyID   string // of the authority that signed it
	svid    string
	parsed  *jwtsvid.SVID
	expires time.Time
	renew   time.Time
}

func newTokens() *tokens {
	return &tokens{limits: limit.New[uint32](newPerSecond, newBurst), kept: map[string]token{}, told: map[bool]time.Time{}}
}

// JWTSVID implements workload.Source.
func (a *Agent) JWTSVID(ctx context.Context, uid uint32, id *workload.Identity, audience []string) (string, error) {
	audience = slices.Compact(slices.Sorted(slices.Values(audience)))
	key := tokenKey(append([]string{id.EntryID, id.ID.String(), tokenKey(id.Selectors)}, audience...))
	old, ok := a.jwt.get(key)
	ok = ok && !a.trusted.Load().taintsKey(old.keyID) && !a.jwtRevoked(old.parsed)
	// expires is of the wall clock, and renew is not.
	if now := time.Now(); ok && now.Before(old.renew) && now.Before(old.expires) {
		return old.svid, nil
	}
	// Processes of a user that want the same token share one call. It is not any
	// single caller's to cancel; the link bounds it.
	result := a.jwt.flight.DoChan(strconv.FormatUint(uint64(uid), 10)+":"+key, func() (any, error) {
		if left := a.jwt.wait(ok); left > 0 {
			return nil, fmt.Errorf("the issuer is overloaded, and is asked again in %s", left.Round(time.Millisecond))
		}
		if !a.jwt.limits.Allow(uid) {
			return nil, workload.ErrTooMany
		}
		ctx := context.WithoutCancel(ctx)
		if ok {
			ctx = admit.WithLife(ctx, time.Until(old.expires))
		} else {
			ctx = admit.ForTheFirstTime(ctx)
		}
		got, err := a.newJWTSVID(ctx, key, id, audience)
		if told, refused := admit.RetryAfter(err); refused {
			a.jwt.tell(ok, told)
		} else if err != nil {
			// It may be that the issuer does not know the entry any more, or us.
			a.syncNow()
		}
		return got, err
	})
	select {
	case r := <-result:
		if r.Err == nil {
			return r.Val.(string), nil
		}
		// Half of its life is left to find an issuer that answers.
		if ok && time.Now().Before(old.expires) {
			a.log.Warn("JWT-SVID not renewed, the one there is still valid", "spiffe_id", id.ID.String(), "error", r.Err)
			return old.svid, nil
		}
		return "", r.Err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// tokenKey is different for different parts, whatever is in them.
func tokenKey(parts []string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(strconv.Itoa(len(p)))
		b.WriteByte(':')
		b.WriteString(p)
	}
	return b.String()
}

func (a *Agent) newJWTSVID(ctx context.Context, key string, id *workload.Identity, audience []string) (string, error) {
	got := &types.JWTSVID{}
	err := a.link.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) error {
		if id.Selectors != nil {
			reply, err := templatev1.NewIssuanceClient(cc).NewJWTSVID(ctx, &templatev1.NewJWTSVIDRequest{Claim: claimOf(id.EntryID, id.ID, id.Selectors), Audience: audience})
			got = &types.JWTSVID{Token: reply.GetToken(), IssuedAt: reply.GetIssuedAt(), ExpiresAt: reply.GetExpiresAt()}
			return err
		}
		reply, err := svidv1.NewSVIDClient(cc).NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: id.EntryID, Audience: audience})
		got = reply.GetSvid()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("new JWT-SVID for %s: %w", id.ID, err)
	}
	text, now := got.GetToken(), time.Now()
	svid, err := jwtsvid.ParseInsecure(text, audience)
	if off := tokenOff(got, now); off != nil {
		err = fmt.Errorf("it %w", off)
	}
	if err == nil && !now.Before(svid.Expiry) {
		err = fmt.Errorf("it %w", &skew.Error{NotAfter: svid.Expiry, Now: now})
	}
	if err == nil && svid.ID != id.ID {
		err = fmt.Errorf("it is of %s", svid.ID)
	}
	if err != nil {
		return "", fmt.Errorf("JWT-SVID from the issuer for %s: %w", id.ID, err)
	}
	a.stats.jwtSigned.Add(1)
	a.jwt.put(key, token{entryID: id.EntryID, keyID: keyIDOf(text), svid: text, parsed: svid, expires: svid.Expiry, renew: now.Add(svid.Expiry.Sub(now) / 2)})
	return text, nil
}

// tokenOff is skew.Of for a JWT-SVID. What is issued up to a minute from now is
// taken, as by those who validate it.
func tokenOff(t *types.JWTSVID, now time.Time) *skew.Error {
	issued, expires := time.Unix(t.GetIssuedAt(), 0), time.Unix(t.GetExpiresAt(), 0)
	if now.Add(jwt.DefaultLeeway).Before(issued) || t.GetExpiresAt() > 0 && !now.Before(expires) {
		return &skew.Error{NotBefore: issued, NotAfter: expires, Now: now}
	}
	return nil
}

// wait is how long the issuer does not want to be asked, for what is renewed or new.
func (t *tokens) wait(renewed bool) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Until(t.told[renewed])
}

// tell is what the issuer said to wait.
func (t *tokens) tell(renewed bool, told time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told[renewed] = time.Now().Add(heed(told))
}

func (t *tokens) get(key string) (token, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tok, ok := t.kept[key]
	return tok, ok
}

func (t *tokens) put(key string, tok token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.kept) >= maxTokens {
		now := time.Now()
		for k, old := range t.kept {
			if !now.Before(old.renew) {
				delete(t.kept, k)
			}
		}
	}
	if len(t.kept) >= maxTokens {
		clear(t.kept)
	}
	t.kept[key] = tok
}

// forget drops the tokens of entries that are gone.
func (t *tokens) forget(entries []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, tok := range t.kept {
		if slices.Contains(entries, tok.entryID) {
			delete(t.kept, k)
		}
	}
}
