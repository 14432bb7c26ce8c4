package program

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strings"
)

// leafSize is how many clauses are rather tested one by one.
const leafSize = 8

// maxChain bounds the dimensions tried one after the other at one place of an
// index, each of which is a step of every walk that comes by.
const maxChain = 24

// index makes a tree of items and returns its root, 0 when there are none.
// What it does at each node: take the dimension that leaves the fewest clauses
// to be tested, put each clause that has it under its keys, go on below each
// key, and go on with the other clauses in rest.
func (b *builder) index(items []item, chain int) uint32 {
	if len(items) == 0 {
		return 0
	}
	var best *split
	if len(items) > leafSize && chain < maxChain {
		best = b.choose(items)
	}
	id := uint32(len(b.e.nodes))
	b.e.nodes = append(b.e.nodes, node{})
	if best == nil {
		refs := make([]ref, len(items))
		for i := range items {
			refs[i] = b.write(&items[i])
		}
		b.e.nodes[id] = node{kind: leaf, at: uint32(len(b.e.refs)), n: uint32(len(refs))}
		b.e.refs = append(b.e.refs, refs...)
		return id
	}
	b.spare -= best.refs - best.items
	n := node{kind: best.dim.kind, field: best.dim.field}
	under, rest := b.divide(items, best.dim)
	switch n.kind {
	case byNumber:
		n.at = b.numbers(under)
	default:
		n.at = b.texts(n.kind, under)
	}
	n.rest = b.index(rest, chain+1)
	b.e.nodes[id] = n
	return id
}

// placed is an item and where in a dimension it is found.
type placed struct {
	item   item
	option *option
}

// pick is the item's condition for dim: of several, the most selective.
func (b *builder) pick(it *item, dim dimension) (at int, o *option) {
	for i, left := range it.left {
		if left.used {
			continue
		}
		options := b.conds[left.cond].options
		for j := range options {
			if options[j].dim == dim && (o == nil || better(&options[j], o)) {
				at, o = i, &options[j]
			}
		}
	}
	return at, o
}

func better(x, y *option) bool {
	if x.dim.kind == byNumber {
		return uint64(x.high)-uint64(x.low) < uint64(y.high)-uint64(y.low)
	}
	if len(x.keys) != len(y.keys) {
		return len(x.keys) < len(y.keys)
	}
	return len(x.keys) > 0 && len(x.keys[0]) > len(y.keys[0])
}

func (b *builder) divide(items []item, dim dimension) (under []placed, rest []item) {
	for i := range items {
		at, o := b.pick(&items[i], dim)
		if o == nil {
			rest = append(rest, items[i])
			continue
		}
		it := item{ref: items[i].ref, left: slices.Clone(items[i].left)}
		if o.exact {
			it.left = slices.Delete(it.left, at, at+1)
		} else {
			it.left[at].used = true
		}
		under = append(under, placed{it, o})
	}
	return under, rest
}

// texts builds the children of a node that looks at texts or a path.
func (b *builder) texts(kind nodeKind, under []placed) uint32 {
	byKey := map[string][]item{}
	for i := range under {
		for _, key := range distinct(under[i].option.keys) {
			byKey[key] = append(byKey[key], under[i].item)
		}
	}
	keys := slices.Sorted(maps.Keys(byKey))
	if kind == bySuffix {
		slices.SortFunc(keys, compareReversed)
	}
	nodes := make([]uint32, len(keys))
	for i, key := range keys {
		nodes[i] = b.index(byKey[key], 0)
	}
	switch kind {
	case byPath:
		b.e.paths = append(b.e.paths, newPathIndex(keys, nodes))
		return uint32(len(b.e.paths) - 1)
	case byContent:
		b.e.within = append(b.e.within, newSubstrings(keys, nodes, uint32(b.e.memos)))
		b.e.memos += len(keys)
		return uint32(len(b.e.within) - 1)
	case byText:
		b.e.tables = append(b.e.tables, newTable(keys, nodes))
		return uint32(len(b.e.tables) - 1)
	}
	return b.e.addTrie(keys, nodes, kind == bySuffix)
}

// distinct is keys without repetitions.
func distinct(keys []string) []string {
	if len(keys) < 2 {
		return keys
	}
	keys = slices.Clone(keys)
	slices.Sort(keys)
	return slices.Compact(keys)
}

// numbers builds the children of a node that looks at a number.
func (b *builder) numbers(under []placed) uint32 {
	starts := stretches(under)
	inside := make([][]item, len(starts))
	for i := range under {
		from, to := stretch(starts, under[i].option)
		for j := from; j < to; j++ {
			inside[j] = append(inside[j], under[i].item)
		}
	}
	x := intervals{starts: starts, nodes: make([]uint32, len(starts))}
	for i := range starts {
		x.nodes[i] = b.index(inside[i], 0)
	}
	b.e.ranges = append(b.e.ranges, x)
	return uint32(len(b.e.ranges) - 1)
}

// stretches are the numbers at which one of the ranges begins, or one has
// ended.
func stretches(under []placed) []int64 {
	var starts []int64
	for i := range under {
		o := under[i].option
		starts = append(starts, o.low)
		if o.high < math.MaxInt64 {
			starts = append(starts, o.high+1)
		}
	}
	slices.Sort(starts)
	return slices.Compact(starts)
}

// stretch is from where to before where in starts the range of o lies.
func stretch(starts []int64, o *option) (from, to int) {
	from, _ = slices.BinarySearch(starts, o.low)
	if o.high == math.MaxInt64 {
		return from, len(starts)
	}
	to, _ = slices.BinarySearch(starts, o.high+1)
	return from, to
}

// split is a dimension and what it would do for some items.
type split struct {
	dim   dimension
	items int // that have it
	refs  int // to them from its keys
	// load is how many clauses are still to be tested, on average over
	// requests that meet some clause.
	load float64
}

// choose is the best split of items, nil when none is worth its step.
func (b *builder) choose(items []item) *split {
	under := map[dimension][]placed{}
	var seen []dimension
	for i := range items {
		seen = seen[:0]
		for _, left := range items[i].left {
			if left.used {
				continue
			}
			for _, o := range b.conds[left.cond].options {
				if !slices.Contains(seen, o.dim) {
					seen = append(seen, o.dim)
				}
			}
		}
		for _, dim := range seen {
			_, o := b.pick(&items[i], dim)
			under[dim] = append(under[dim], placed{option: o})
		}
	}
	var best *split
	for _, dim := range slices.SortedFunc(maps.Keys(under), compareDimensions) {
		s := measure(dim, under[dim], len(items))
		if s.refs-s.items > b.spare || s.load > float64(len(items)-leafSize) {
			continue
		}
		if best == nil || s.load < best.load {
			best = s
		}
	}
	return best
}

func compareDimensions(x, y dimension) int {
	return cmp.Or(cmp.Compare(x.kind, y.kind), cmp.Compare(x.field, y.field))
}

func measure(dim dimension, under []placed, items int) *split {
	s := &split{dim: dim, items: len(under)}
	weighted := 0.0
	if dim.kind == byNumber {
		s.refs, weighted = measureNumbers(under)
	} else {
		s.refs, weighted = measureTexts(dim.kind, under)
	}
	s.load = float64(items-s.items) + weighted/float64(max(s.refs, 1))
	if dim.kind == byContent {
		s.load += leafSize // It walks over the whole value.
	}
	return s
}

// measureTexts sums, over the refs, how many refs a value leads to that has
// the ref's key: those of the key, and of the keys that it begins with.
func measureTexts(kind nodeKind, under []placed) (refs int, weighted float64) {
	count := map[string]int{}
	for i := range under {
		for _, key := range distinct(under[i].option.keys) {
			count[key]++
			refs++
		}
	}
	keys := slices.Collect(maps.Keys(count))
	begins := strings.HasPrefix
	if kind == bySuffix {
		begins = strings.HasSuffix
		slices.SortFunc(keys, compareReversed)
	} else {
		slices.Sort(keys)
	}
	type above struct {
		key  string
		load int
	}
	var stack []above
	for _, key := range keys {
		load := count[key]
		if kind != byText && kind != byContent {
			for len(stack) > 0 && !begins(key, stack[len(stack)-1].key) {
				stack = stack[:len(stack)-1]
			}
			if len(stack) > 0 {
				load += stack[len(stack)-1].load
			}
			stack = append(stack, above{key, load})
		}
		weighted += float64(count[key]) * float64(load)
	}
	return refs, weighted
}

// measureNumbers is measureTexts for ranges.
func measureNumbers(under []placed) (refs int, weighted float64) {
	starts := stretches(under)
	change := make([]int, len(starts)+1)
	for i := range under {
		from, to := stretch(starts, under[i].option)
		change[from]++
		change[to]--
	}
	load := 0
	for i := range starts {
		load += change[i]
		refs += load
		weighted += float64(load) * float64(load)
	}
	return refs, weighted
}
