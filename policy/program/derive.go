package program

import (
	"strings"
	"unicode/utf8"
	"unsafe"
)

// derive applies the steps to a text that is there, none of which may give
// several.
func (r *run) derive(s string, ok bool, via []Step) (string, bool) {
	for i := range via {
		if !ok {
			break
		}
		s, ok = r.step(s, &via[i])
	}
	return s, ok
}

// deriveAll appends to memory.values what the steps make of a text that is there.
func (r *run) deriveAll(s string, ok bool, via []Step) {
	for i := range via {
		if !ok {
			return
		}
		if step := &via[i]; step.Kind == SplitElement && step.Index == Any {
			for part := range strings.SplitSeq(s, step.Text) {
				r.deriveAll(part, true, via[i+1:])
			}
			return
		}
		s, ok = r.step(s, &via[i])
	}
	if ok {
		m := r.memory()
		m.values = append(m.values, s)
	}
}

func (r *run) step(s string, step *Step) (string, bool) {
	switch step.Kind {
	case Lower:
		return r.mapCase(s, 'A', strings.ToLower), true
	case Upper:
		return r.mapCase(s, 'a', strings.ToUpper), true
	case TrimPrefix:
		return strings.TrimPrefix(s, step.Text), true
	case TrimSuffix:
		return strings.TrimSuffix(s, step.Text), true
	case TrimSpace:
		return strings.TrimSpace(s), true
	case Trim:
		return strings.Trim(s, step.Text), true
	case TrimLeft:
		return strings.TrimLeft(s, step.Text), true
	case TrimRight:
		return strings.TrimRight(s, step.Text), true
	case SplitElement:
		for range step.Index {
			var ok bool
			if _, s, ok = strings.Cut(s, step.Text); !ok {
				return "", false
			}
		}
		s, _, _ = strings.Cut(s, step.Text)
		return s, true
	}
	return "", false
}

// mapCase turns the letters from first on, 26 of them, to the other case. For
// ASCII the result lies in memory.buf, which later appends may move but never
// overwrite before the decision ends.
func (r *run) mapCase(s string, first byte, full func(string) string) string {
	change := false
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return full(s)
		}
		change = change || s[i]-first < 26
	}
	if !change {
		return s
	}
	m := r.memory()
	from := len(m.buf)
	m.buf = append(m.buf, s...)
	derived := m.buf[from:]
	for i, c := range derived {
		if c-first < 26 {
			derived[i] = c ^ 0x20
		}
	}
	return unsafe.String(&derived[0], len(derived))
}
