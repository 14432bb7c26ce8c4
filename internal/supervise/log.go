package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
)

const (
	// maxLine is where a line without end is cut, bytes.
	maxLine = 64 << 10
	// tailLines are kept for whoever has to say why a program died.
	tailLines = 20
)

// Log keeps what a program writes: whole lines, in a file that is moved to
// <path>.1 when it grows over its limit.
type Log struct {
	path  string
	limit int64

	mu      sync.Mutex
	file    *os.File
	size    int64
	partial []byte
	tail    []string
	echo    func(line string)
}

// OpenLog appends to the file at path, of at most limit bytes. echo, when not
// nil, is called with each line; it must not block.
func OpenLog(path string, limit int64, echo func(line string)) (*Log, error) {
	l := &Log{path: path, limit: limit, echo: echo}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write implements io.Writer. It takes everything, so that a full disk does
// not stop the program that writes.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := p; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			l.partial = append(l.partial, rest...)
			rest = nil
		} else {
			l.partial = append(l.partial, rest[:i]...)
			rest = rest[i+1:]
		}
		if i >= 0 || len(l.partial) > maxLine {
			l.line()
		}
	}
	return len(p), nil
}

// line takes the line that is complete.
func (l *Log) line() {
	text := string(l.partial[:min(len(l.partial), maxLine)])
	l.partial = l.partial[:0]
	if len(l.tail) == tailLines {
		l.tail = slices.Delete(l.tail, 0, 1)
	}
	l.tail = append(l.tail, text)
	if l.echo != nil {
		l.echo(text)
	}
	if l.size > 0 && l.size+int64(len(text)) >= l.limit {
		l.rotate()
	}
	if l.file == nil {
		return
	}
	n, _ := io.WriteString(l.file, text+"\n")
	l.size += int64(n)
}

func (l *Log) rotate() {
	if l.file == nil || os.Rename(l.path, l.path+".1") != nil {
		return
	}
	l.file.Close()
	l.file = nil
	_ = l.open()
}

// Tail is the last lines written, oldest first.
func (l *Log) Tail() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.tail)
}

// Close writes what is left of an unfinished line.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.partial) > 0 {
		l.line()
	}
	if l.file == nil {
		return errors.New("log: file could not be opened again")
	}
	err := l.file.Close()
	l.file = nil
	return err
}
