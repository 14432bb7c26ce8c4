package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/writ-dev/writ/identity/revocation"
	"github.com/writ-dev/writ/identity/revocationv1"
)

// Revocations is what the issuer has revoked, as far as this agent heard.
func (a *Agent) Revocations() *revocation.Set { return &a.revoked }

// loadRevoked takes over what was known before the agent was started.
func (a *Agent) loadRevoked() {
	path := filepath.Join(a.keep.dir, revokedFile)
	data, err := os.ReadFile(path)
	if err == nil {
		err = a.revoked.Load(data, time.Now())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// What of it is readable is in force, and the issuer sends it all again.
		a.log.Error("the kept list of revocations is damaged: what is missing comes with the connection to the issuer", "file", path, "error", err)
	}
	list, _ := a.revoked.Now()
	a.cache.revoke(list)
}

// tellRevoked takes over what the issuer says of revocations. An issuer that
// says nothing of them does not have them. resync tells that SVIDs of this node are
// among them: first a sync, so that those whose entry is gone get none.
func (a *Agent) tellRevoked(u *revocationv1.Update) (resync bool) {
	if u == nil {
		return false
	}
	changed, err := a.revoked.MergeUpdate(u, time.Now())
	if err != nil {
		a.log.Error("revocations from the issuer that are not valid: is it newer than this agent?", "error", err)
	}
	list, _ := a.revoked.Now()
	if changed {
		if data, err := list.Marshal(a.revoked.CurrentAt()); err != nil {
			a.log.Error("revocations cannot be kept", "error", err)
		} else if err := a.keep.write(revokedFile, data); err != nil {
			a.log.Error("revocations cannot be kept: after a restart they come with the connection to the issuer only", "error", err)
		}
		if n := a.cache.revoke(list); n > 0 {
			a.log.Warn("SVIDs of this node are revoked: getting new ones", "count", n)
			resync = true
		}
	}
	if u.GetComplete() {
		a.revoked.Heard(time.Now())
	}
	return resync
}

// RevokedJWT refuses a JWT-SVID that is revoked.
func (a *Agent) RevokedJWT(svid *jwtsvid.SVID) error {
	if !a.jwtRevoked(svid) {
		return nil
	}
	return errors.New("it is revoked")
}

func (a *Agent) jwtRevoked(svid *jwtsvid.SVID) bool {
	list, _ := a.revoked.Now()
	if list.Len() == 0 || svid == nil {
		return false
	}
	jti, _ := svid.Claims["jti"].(string)
	var issued time.Time
	if iat, ok := svid.Claims["iat"].(float64); ok && iat > 0 && iat < 1<<40 {
		issued = time.Unix(int64(iat), 0)
	}
	return list.JWT(svid.ID, jti, issued) != nil
}

// revoke has the SVIDs that a list revokes signed anew, and says how many.
func (c *cache) revoke(list *revocation.List) (revoked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revoked = list
	for r := range c.every() {
		if r.identity.Chain != nil && !r.revoked && list.Issued(r.serial, r.notBefore, r.spiffeID) != nil {
			r.revoked, r.due = true, time.Time{}
			revoked++
		}
	}
	return revoked
}

// withdraw takes back the SVIDs that are revoked and could not be signed anew.
func (c *cache) withdraw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	for r := range c.every() {
		changed = r.withdraw() || changed
	}
	if changed {
		c.wake()
	}
}

func (r *record) withdraw() bool {
	if !r.revoked {
		return false
	}
	bare := *r.identity
	bare.Chain, bare.Key = nil, nil
	r.identity, r.revoked = &bare, false
	r.notAfter = time.Time{}
	return true
}
