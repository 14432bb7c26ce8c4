package proxy

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

func replayOf(body io.Reader) *replay {
	return newReplay(newRequestBody(&http.Request{Body: io.NopCloser(body), ContentLength: -1}))
}

func TestReplay(t *testing.T) {
	r := replayOf(iotest.OneByteReader(strings.NewReader("hello world")))
	first, _ := r.view()
	part := make([]byte, 5)
	if _, err := io.ReadFull(first, part); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if _, err := first.Read(part); !errors.Is(err, errNoReplay) {
		t.Errorf("a closed view reads: %v", err)
	}
	second, err := r.view()
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(second, part)
	r.settle()
	rest, err := io.ReadAll(second)
	if string(part)+string(rest) != "hello world" || err != nil {
		t.Errorf("%q %q %v", part, rest, err)
	}
	if _, err := r.view(); !errors.Is(err, errNoReplay) {
		t.Errorf("a view after there was a response: %v", err)
	}
	r.close()
}

// A view that waits for the client gives up when it is closed, and what the
// client then sends goes to the next.
func TestReplayOfABodyThatWaits(t *testing.T) {
	pr, pw := io.Pipe()
	r := newReplay(newRequestBody(&http.Request{Body: pr, ContentLength: -1}))
	first, _ := r.view()
	gaveUp := make(chan error, 1)
	go func() { _, err := first.Read(make([]byte, 8)); gaveUp <- err }()
	go pw.Write([]byte("sent"))
	if err := <-gaveUp; err != nil {
		t.Fatal(err)
	}
	go func() { _, err := first.Read(make([]byte, 8)); gaveUp <- err }()
	first.Close()
	if err := <-gaveUp; !errors.Is(err, errNoReplay) {
		t.Errorf("closed while waiting: %v", err)
	}
	second, err := r.view()
	if err != nil {
		t.Fatal(err)
	}
	go func() { pw.Write([]byte(" later")); pw.Close() }()
	if all, err := io.ReadAll(second); string(all) != "sent later" || err != nil {
		t.Errorf("%q %v", all, err)
	}
	r.close()
}

func TestReplayIsBounded(t *testing.T) {
	r := replayOf(strings.NewReader(strings.Repeat("x", 3*replayLimit)))
	v, _ := r.view()
	if n, err := io.Copy(io.Discard, v); n != 3*replayLimit || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if len(r.buf) > replayLimit+32<<10 {
		t.Errorf("%d bytes kept", len(r.buf))
	}
	if _, err := r.view(); !errors.Is(err, errNoReplay) {
		t.Errorf("a large body can be sent again: %v", err)
	}
	r.close()
}
