package federation

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/writ-dev/writ/identity/registry"
)

// Handler serves a bundle as a bundle endpoint does: a document for GET and
// HEAD, to anybody. own returns the bundle there is now, the same pointer while
// it is the same. With a hint, that is what others are told.
func Handler(own func() *registry.FederatedBundle, hint time.Duration) http.Handler {
	h := &handler{own: own, hint: hint}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", h.serve)
	mux.HandleFunc("GET /bundle.json", h.serve)
	return mux
}

type handler struct {
	own  func() *registry.FederatedBundle
	hint time.Duration

	mu   sync.Mutex
	of   *registry.FederatedBundle
	body []byte
	tag  string
}

// document is made once for each bundle.
func (h *handler) document() (body []byte, tag string, err error) {
	b := h.own()
	h.mu.Lock()
	defer h.mu.Unlock()
	if b != h.of {
		shown := *b
		if h.hint > 0 {
			shown.RefreshHint = h.hint
		}
		if h.body, err = Marshal(&shown); err != nil {
			return nil, "", err
		}
		sum := sha256.Sum256(h.body)
		h.of, h.tag = b, `"`+hex.EncodeToString(sum[:16])+`"`
	}
	return h.body, h.tag, nil
}

func (h *handler) serve(rw http.ResponseWriter, req *http.Request) {
	body, tag, err := h.document()
	if err != nil {
		http.Error(rw, "the bundle cannot be written", http.StatusInternalServerError)
		return
	}
	header := rw.Header()
	header.Set("ETag", tag)
	header.Set("Cache-Control", "no-cache") // ask each time whether there is another
	if req.Header.Get("If-None-Match") == tag {
		rw.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	if req.Method == http.MethodGet {
		_, _ = rw.Write(body)
	}
}
