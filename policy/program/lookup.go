package program

import (
	"bytes"
	"hash/maphash"
	"maps"
	"math/bits"
	"slices"
	"sort"
	"strings"
)

// node is one step of an index. Whatever it finds, its rest is visited too:
// the clauses that it says nothing about.
type node struct {
	kind  nodeKind
	field uint32 // that an inner node looks at
	at    uint32 // first ref of a leaf; place of an inner node's children
	n     uint32 // refs of a leaf
	rest  uint32
}

type nodeKind uint8

const (
	leaf nodeKind = iota
	byText
	byPrefix
	bySuffix
	byNumber
	byPath
	byContent
)

// table leads from a text to a node. Few texts are compared; of more, places
// holds where each is plus one, by its hash and then in the next place that is
// free.
type table struct {
	texts  []string
	nodes  []uint32
	places []uint32
}

// fewTexts is up to how many texts comparing is cheaper than hashing.
const fewTexts = 4

// seed is of this process, so that nobody outside knows what collides.
var seed = maphash.MakeSeed()

func hashOf(s string) int { return int(maphash.String(seed, s) >> 1) }

// newTable makes the table of texts, each once.
func newTable(texts []string, nodes []uint32) table {
	t := table{texts: texts, nodes: nodes}
	if len(texts) <= fewTexts {
		return t
	}
	t.places = make([]uint32, 2<<bits.Len(uint(len(texts))))
	mask := len(t.places) - 1
	for i, text := range texts {
		at := hashOf(text) & mask
		for t.places[at] != 0 {
			at = (at + 1) & mask
		}
		t.places[at] = uint32(i + 1)
	}
	return t
}

func (t *table) find(s string) uint32 {
	if t.places == nil {
		for i, text := range t.texts {
			if text == s {
				return t.nodes[i]
			}
		}
		return 0
	}
	mask := len(t.places) - 1
	for at := hashOf(s) & mask; t.places[at] != 0; at = (at + 1) & mask {
		if i := t.places[at] - 1; t.texts[i] == s {
			return t.nodes[i]
		}
	}
	return 0
}

// trieNode is a node of a radix tree. Its children lie side by side.
type trieNode struct {
	label string
	child uint32 // first of them
	n     uint16
	node  uint32 // what the text so far leads to
}

// prefixes visits the nodes of all texts that s begins with.
func (e *engine) prefixes(r *run, at uint32, s string) {
	for {
		t := &e.trie[at]
		if !strings.HasPrefix(s, t.label) {
			return
		}
		e.visit(r, t.node)
		if s = s[len(t.label):]; s == "" || t.n == 0 {
			return
		}
		i := bytes.IndexByte(e.first[t.child:t.child+uint32(t.n)], s[0])
		if i < 0 {
			return
		}
		at = t.child + uint32(i)
	}
}

// suffixes is prefixes from the end; labels are the right way round.
func (e *engine) suffixes(r *run, at uint32, s string) {
	for {
		t := &e.trie[at]
		if !strings.HasSuffix(s, t.label) {
			return
		}
		e.visit(r, t.node)
		if s = s[:len(s)-len(t.label)]; s == "" || t.n == 0 {
			return
		}
		i := bytes.IndexByte(e.first[t.child:t.child+uint32(t.n)], s[len(s)-1])
		if i < 0 {
			return
		}
		at = t.child + uint32(i)
	}
}

// addTrie builds the tree of texts, sorted and each once, or sorted by their
// reverse for suffixes, and returns its root.
func (e *engine) addTrie(texts []string, nodes []uint32, suffix bool) uint32 {
	root := uint32(len(e.trie))
	e.trie = append(e.trie, trieNode{})
	e.first = append(e.first, 0)
	e.growTrie(root, texts, nodes, 0, suffix)
	return root
}

// growTrie fills node at with the texts, which share their first depth bytes.
func (e *engine) growTrie(at uint32, texts []string, nodes []uint32, depth int, suffix bool) {
	shared := sharedBytes(texts[0], texts[len(texts)-1], suffix)
	t := trieNode{label: cut(texts[0], depth, shared, suffix)}
	if len(texts[0]) == shared {
		t.node = nodes[0]
		texts, nodes = texts[1:], nodes[1:]
	}
	var ends []int
	for i := range texts {
		if i+1 == len(texts) || byteAt(texts[i], shared, suffix) != byteAt(texts[i+1], shared, suffix) {
			ends = append(ends, i+1)
		}
	}
	t.child, t.n = uint32(len(e.trie)), uint16(len(ends))
	e.trie[at] = t
	from := 0
	for _, end := range ends {
		e.trie = append(e.trie, trieNode{})
		e.first = append(e.first, byteAt(texts[from], shared, suffix))
		from = end
	}
	from = 0
	for i, end := range ends {
		e.growTrie(t.child+uint32(i), texts[from:end], nodes[from:end], shared, suffix)
		from = end
	}
}

// byteAt is byte i of s, from its end for a suffix.
func byteAt(s string, i int, suffix bool) byte {
	if suffix {
		return s[len(s)-1-i]
	}
	return s[i]
}

// cut is s from byte i to j, counted from its end for a suffix.
func cut(s string, i, j int, suffix bool) string {
	if suffix {
		return s[len(s)-j : len(s)-i]
	}
	return s[i:j]
}

func sharedBytes(a, b string, suffix bool) int {
	n := 0
	for n < len(a) && n < len(b) && byteAt(a, n, suffix) == byteAt(b, n, suffix) {
		n++
	}
	return n
}

// compareReversed orders texts by their last byte first.
func compareReversed(a, b string) int {
	n := sharedBytes(a, b, true)
	switch {
	case n == len(a) || n == len(b):
		return len(a) - len(b)
	}
	return int(byteAt(a, n, true)) - int(byteAt(b, n, true))
}

func compareText(a, b string) int { return strings.Compare(a, b) }

// intervals cuts the numbers into stretches, each of which leads to a node:
// from starts[i] up to the next start.
type intervals struct {
	starts []int64
	nodes  []uint32
}

func (x *intervals) find(v int64) uint32 {
	i := sort.Search(len(x.starts), func(i int) bool { return x.starts[i] > v })
	if i == 0 {
		return 0
	}
	return x.nodes[i-1]
}

// pathIndex is a trie over the first segments of paths, those that patterns
// compare as they are. The root is its first place.
type pathIndex []pathPlace

type pathPlace struct {
	next table // places
	node uint32
}

// visit visits the nodes of all patterns that segments may match.
func (x pathIndex) visit(e *engine, r *run, segments []string) {
	at := uint32(0)
	for _, s := range segments {
		e.visit(r, x[at].node)
		if at = x[at].next.find(s); at == 0 {
			return
		}
	}
	e.visit(r, x[at].node)
}

// newPathIndex makes the trie of what pathKey gave.
func newPathIndex(keys []string, nodes []uint32) pathIndex {
	x := make(pathIndex, 1)
	below := []map[string]uint32{{}}
	for i, key := range keys {
		at := uint32(0)
		for _, s := range pathOfKey(key) {
			next, ok := below[at][s]
			if !ok {
				next = uint32(len(x))
				below[at][s] = next
				x, below = append(x, pathPlace{}), append(below, map[string]uint32{})
			}
			at = next
		}
		x[at].node = nodes[i]
	}
	for at, children := range below {
		texts := slices.Sorted(maps.Keys(children))
		places := make([]uint32, len(texts))
		for i, s := range texts {
			places[i] = children[s]
		}
		x[at].next = newTable(texts, places)
	}
	return x
}
