package program

import "bytes"

// maxNeedle is how many bytes of a text that a value should contain are looked
// for; a longer one is tested as well.
const maxNeedle = 24

// substrings is an automaton (Aho and Corasick, 1975) that finds all of its
// texts in one pass over a value.
type substrings struct {
	states []state
	first  []byte // by which each state is entered
	memo   uint32 // place in memory.memo of the first text
}

// state stands for what the value's last bytes are: the longest beginning of
// some text. Its children, one byte longer, lie side by side.
type state struct {
	child uint32
	fail  uint32 // the next shorter such beginning
	found uint32 // the nearest state, this or by fail, that is a whole text
	node  uint32 // what that text leads to
	text  uint32 // which of the texts it is
	n     uint16
}

// newSubstrings makes the automaton of texts, sorted and each once.
func newSubstrings(texts []string, nodes []uint32, memo uint32) substrings {
	x := substrings{states: make([]state, 1), first: make([]byte, 1), memo: memo}
	type group struct{ from, to, depth int }
	groups := []group{{0, len(texts), 0}} // by state: the texts below it
	for at := 0; at < len(x.states); at++ {
		g := groups[at]
		if g.depth > 0 && len(texts[g.from]) == g.depth {
			x.states[at].node, x.states[at].text = nodes[g.from], uint32(g.from)
			x.states[at].found = uint32(at)
			g.from++
		}
		x.states[at].child = uint32(len(x.states))
		for from := g.from; from < g.to; {
			c, to := texts[from][g.depth], from+1
			for to < g.to && texts[to][g.depth] == c {
				to++
			}
			x.states = append(x.states, state{})
			x.first = append(x.first, c)
			groups = append(groups, group{from, to, g.depth + 1})
			x.states[at].n++
			from = to
		}
	}
	// In the order of the states, so that shorter ones are done.
	for at := range x.states {
		s := &x.states[at]
		for child := s.child; child < s.child+uint32(s.n); child++ {
			next := &x.states[child]
			if at != 0 {
				next.fail = x.step(s.fail, x.first[child])
			}
			if next.found == 0 {
				next.found = x.states[next.fail].found
			}
		}
	}
	return x
}

// step is the state after a byte more.
func (x *substrings) step(at uint32, c byte) uint32 {
	for {
		s := &x.states[at]
		if i := bytes.IndexByte(x.first[s.child:s.child+uint32(s.n)], c); i >= 0 {
			return s.child + uint32(i)
		}
		if at == 0 {
			return 0
		}
		at = s.fail
	}
}

// visit visits the nodes of all texts that s contains, each once in a decision.
func (x *substrings) visit(e *engine, r *run, s string) {
	m := r.memory()
	at := uint32(0)
	for i := range len(s) {
		at = x.step(at, s[i])
		for f := x.states[at].found; f != 0; f = x.states[x.states[f].fail].found {
			if known := &m.memo[x.memo+x.states[f].text]; *known>>1 != m.gen {
				*known = m.gen << 1
				e.visit(r, x.states[f].node)
			}
		}
	}
}
