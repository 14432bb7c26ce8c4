package compile

import (
	"slices"
	"strings"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/program"
)

// simplified drops what follows from the rest, and reports whether the
// conjunction can hold as far as is easily seen.
func (c conj) simplified() (conj, bool) {
	var out conj
	var fields map[string]*cond // positive conditions of fields with one value
	seen := make(map[string]bool, len(c))
	for _, x := range c {
		if x.not || !x.single() {
			continue
		}
		if fields == nil {
			fields = make(map[string]*cond, len(c))
		}
		merged := fields[x.about()]
		if merged == nil {
			merged = &cond{f: x.f, token: x.token, pred: slices.Clone(x.pred)}
			fields[x.about()] = merged
		} else {
			merged.pred = append(merged.pred, x.pred...)
		}
	}
	for _, x := range c {
		if !x.single() {
			if !seen[x.sign()] {
				seen[x.sign()] = true
				out = append(out, x)
			}
			continue
		}
		if !x.not {
			if merged := fields[x.about()]; merged != nil && !seen[x.about()] {
				seen[x.about()] = true
				if !merged.tighten(c) {
					return nil, false
				}
				merged.setKey()
				out = append(out, merged)
			}
			continue
		}
		if len(x.pred) == 0 && x.f.always() {
			return nil, false // It is never absent.
		}
		if merged := fields[x.about()]; merged != nil {
			if len(x.pred) == 0 {
				return nil, false
			}
			if texts := merged.equal(); texts != nil && len(x.pred) == 1 && decidable(x.pred[0].Op) {
				continue // tighten has taken them out.
			}
		}
		if !seen[x.sign()] {
			seen[x.sign()] = true
			out = append(out, x)
		}
	}
	out = out.noneOf()
	if slices.ContainsFunc(out, func(x *cond) bool { return x.not && seen[x.key+"+"] }) {
		return nil, false
	}
	return out.pruned(), true
}

// noneOf makes one of conditions that a field is none of some texts.
func (c conj) noneOf() conj {
	first := map[string]int{}
	texts := map[int][]string{}
	out := make(conj, 0, len(c))
	for _, x := range c {
		if !x.not || !x.single() || len(x.pred) != 1 || x.pred[0].Op != program.Equal || x.pred[0].Not {
			out = append(out, x)
			continue
		}
		at, ok := first[x.about()]
		if !ok {
			first[x.about()] = len(out)
			out = append(out, x)
			continue
		}
		if texts[at] == nil {
			texts[at] = slices.Clone(out[at].pred[0].Texts)
		}
		texts[at] = append(texts[at], x.pred[0].Texts...)
	}
	for at, all := range texts {
		one := equalsAny(out[at].f, 0, out[at].token, all...)
		one.not = true
		out[at] = one
	}
	return out
}

func (c *cond) sign() string {
	if c.not {
		return c.key + "-"
	}
	return c.key + "+"
}

// pruned drops conditions that say only that a field is there, where that
// follows.
func (c conj) pruned() conj {
	ofRequest, through := false, map[string]bool{}
	for _, x := range c {
		if x.f == nil || x.not {
			continue
		}
		if len(x.pred) > 0 || !unconditional(x.f) {
			ofRequest = ofRequest || x.f.ofRequest()
		}
		if len(x.f.Via) > 0 {
			through[baseKey(x.f)] = true
		}
	}
	layer := false // Some condition is left that only a request meets.
	out := make(conj, 0, len(c))
	for _, x := range c {
		bare := x.f != nil && !x.not && !x.open() && len(x.pred) == 0
		switch {
		case bare && x.f.always():
		case bare && len(x.f.Via) == 0 && through[x.f.key]:
		case bare && unconditional(x.f) && ofRequest:
		case bare && unconditional(x.f) && layer:
		case x.f != nil && !x.not && x.f.key == layerField.key && len(x.pred) == 1 && x.pred[0].Op == program.Equal &&
			slices.Equal(x.pred[0].Texts, []string{policy.LayerRequest}) && !x.pred[0].Not && ofRequest:
		default:
			if bare && unconditional(x.f) {
				layer = true
			}
			out = append(out, x)
		}
	}
	return out
}

// unconditional reports whether every request has the field.
func unconditional(f *field) bool {
	if len(f.Via) > 0 {
		return false
	}
	switch f.Base {
	case program.Protocol, program.Method, program.Host, program.Path, program.SegmentCount, program.ContentLength:
		return true
	}
	return false
}

func baseKey(f *field) string {
	base := f.Field
	base.Via = nil
	return newField(base).key
}

// equal is the texts that the field is one of, nil when not known.
func (c *cond) equal() []string {
	if len(c.pred) > 0 && c.pred[0].Op == program.Equal && !c.pred[0].Not {
		return c.pred[0].Texts
	}
	return nil
}

// tighten makes one of the texts and ranges of a field, with the help of all
// conditions, and reports whether any value is left.
func (c *cond) tighten(all conj) bool {
	var rest []program.Pred
	var texts []string
	low, high, bounded := int64(-1<<63), int64(1<<63-1), false
	for _, p := range c.pred {
		switch {
		case p.Op == program.Equal && !p.Not:
			if texts == nil {
				texts = slices.Clone(p.Texts)
			} else {
				texts = slices.DeleteFunc(texts, func(t string) bool { return !slices.Contains(p.Texts, t) })
			}
			if len(texts) == 0 {
				return false
			}
		case p.Op == program.Range && !p.Not:
			low, high, bounded = max(low, p.Low), min(high, p.High), true
		default:
			rest = append(rest, p)
		}
	}
	if low > high {
		return false
	}
	if texts != nil {
		for _, x := range all {
			if x.single() && x.not && x.about() == c.about() && len(x.pred) == 1 && decidable(x.pred[0].Op) {
				p := x.pred[0]
				texts = slices.DeleteFunc(texts, func(t string) bool { return decides(p, t) })
			}
		}
		rest = slices.DeleteFunc(rest, func(p program.Pred) bool {
			if !decidable(p.Op) {
				return false
			}
			texts = slices.DeleteFunc(texts, func(t string) bool { return !decides(p, t) })
			return true
		})
		if len(texts) == 0 {
			return false
		}
		rest = append(rest, program.Pred{Op: program.Equal, Texts: texts})
	}
	if bounded {
		rest = append(rest, program.Pred{Op: program.Range, Low: low, High: high})
	}
	c.pred = sortedPreds(rest)
	return true
}

// decidable operators are plain enough to be applied to a text here.
func decidable(op program.Op) bool {
	return op == program.Equal || op == program.Prefix || op == program.Suffix || op == program.Contains
}

func decides(p program.Pred, t string) bool {
	test := map[program.Op]func(s, t string) bool{
		program.Equal:    func(s, t string) bool { return s == t },
		program.Prefix:   strings.HasPrefix,
		program.Suffix:   strings.HasSuffix,
		program.Contains: strings.Contains,
	}[p.Op]
	return slices.ContainsFunc(p.Texts, func(operand string) bool { return test(t, operand) }) != p.Not
}
