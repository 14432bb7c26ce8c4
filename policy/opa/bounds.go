package opa

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Bounds of what one call of a builtin may make. The evaluator looks at the
// clock between calls only, and most builtins know no bound of their own.
const (
	// Bytes of a text.
	maxText = 1 << 20
	// Elements of an array.
	maxItems = 1 << 17
	// Digits of a number, and of a number's decimal exponent's value.
	maxDigits = 4096
	// Padding and digits of one verb of sprintf.
	maxWidth = 1000
	// Bytes of the tokens and keys of an io.jwt call.
	maxToken = 16 << 10
)

// init puts bounds around OPA's builtins. OPA has no way to do so for one
// query: the table of a query does not win over its own.
func init() {
	boundBuiltins()
	boundOutside()
}

func boundBuiltins() {
	bound := func(check func(operands []*ast.Term) error, names ...string) {
		for _, name := range names {
			topdown.RegisterBuiltinFunc(name, bounded(topdown.GetBuiltin(name), ast.BuiltinMap[name].Decl.Arity(), check))
		}
	}
	bound(boundNumbers, "plus", "minus", "mul", "div", "rem", "abs", "round", "ceil", "floor", "sum", "product",
		"bits.and", "bits.or", "bits.xor", "bits.negate", "bits.rsh", "format_int")
	bound(boundRange, "numbers.range", "numbers.range_step")
	bound(boundArrays, "array.concat", "array.flatten")
	bound(boundConcat, "concat")
	bound(boundSprintf, "sprintf")
	bound(boundReplace, "replace", "strings.replace_n", "regex.replace")
	bound(boundWritten, "internal.template_string", "json.marshal", "yaml.marshal", "urlquery.encode_object", "internal.print")
	bound(boundTokens, "io.jwt.decode", "io.jwt.decode_verify",
		"io.jwt.verify_rs256", "io.jwt.verify_rs384", "io.jwt.verify_rs512",
		"io.jwt.verify_ps256", "io.jwt.verify_ps384", "io.jwt.verify_ps512",
		"io.jwt.verify_es256", "io.jwt.verify_es384", "io.jwt.verify_es512",
		"io.jwt.verify_hs256", "io.jwt.verify_hs384", "io.jwt.verify_hs512", "io.jwt.verify_eddsa")
	// They make a text longer by a factor, and again when they are chained.
	bound(nil, "base64.encode", "base64url.encode", "base64url.encode_no_pad", "hex.encode", "urlquery.encode", "glob.quote_meta",
		"to_number", "units.parse", "units.parse_bytes")
}

// bounded is f of so many arguments behind check, and with results within the
// bounds.
func bounded(f topdown.BuiltinFunc, arity int, check func([]*ast.Term) error) topdown.BuiltinFunc {
	return func(bctx topdown.BuiltinContext, operands []*ast.Term, iter func(*ast.Term) error) error {
		if check != nil {
			// The variable for the result may follow the arguments.
			if err := check(operands[:arity]); err != nil {
				return err
			}
		}
		return f(bctx, operands, func(result *ast.Term) error {
			if result == nil { // a builtin without a result, such as print
				return iter(nil)
			}
			switch v := result.Value.(type) {
			case ast.String:
				if len(v) > maxText {
					return errTooLarge("the result", "%d bytes", maxText)
				}
			case ast.Number:
				if err := boundNumber(v); err != nil {
					return err
				}
			}
			return iter(result)
		})
	}
}

func errTooLarge(what, format string, args ...any) error {
	return fmt.Errorf("%s would be larger than "+format, append([]any{what}, args...)...)
}

func boundNumber(n ast.Number) error {
	digits, exponent, _ := strings.Cut(strings.ToLower(string(n)), "e")
	value := 0
	if exponent != "" {
		var err error
		if value, err = strconv.Atoi(exponent); err != nil {
			return errTooLarge("a number", "%d digits", maxDigits)
		}
	}
	if len(digits) > maxDigits || value > maxDigits || value < -maxDigits {
		return errTooLarge("a number", "%d digits", maxDigits)
	}
	return nil
}

// boundNumbers also bounds the digits of a list in all, because they may be
// multiplied.
func boundNumbers(operands []*ast.Term) error {
	for _, t := range operands {
		digits := 0
		one := func(e *ast.Term) error {
			n, ok := e.Value.(ast.Number)
			if !ok {
				return nil // The builtin says what it wants.
			}
			if digits += len(n); digits > maxText {
				return errTooLarge("the numbers", "%d digits", maxText)
			}
			return boundNumber(n)
		}
		var err error
		switch v := t.Value.(type) {
		case ast.Number:
			err = one(t)
		case *ast.Array:
			err = v.Iter(one)
		case ast.Set:
			err = v.Iter(one)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func boundRange(operands []*ast.Term) error {
	var n [3]int64
	n[2] = 1
	for i, t := range operands {
		v, ok := t.Value.(ast.Number)
		if !ok {
			return nil // The builtin says what it wants.
		}
		if n[i], ok = v.Int64(); !ok {
			return errTooLarge("a bound of the range", "64 bits, or is not an integer")
		}
	}
	if n[2] <= 0 {
		return nil
	}
	// As unsigned, the difference of any two is right.
	span := uint64(n[1]) - uint64(n[0])
	if n[1] < n[0] {
		span = uint64(n[0]) - uint64(n[1])
	}
	if span/uint64(n[2]) >= maxItems {
		return errTooLarge("the range", "%d numbers", maxItems)
	}
	return nil
}

func boundArrays(operands []*ast.Term) error {
	items := 0
	for _, t := range operands {
		array, ok := t.Value.(*ast.Array)
		if !ok {
			return nil // The builtin says what it wants.
		}
		items += array.Len()
		array.Foreach(func(e *ast.Term) {
			if inner, ok := e.Value.(*ast.Array); ok && len(operands) == 1 {
				items += inner.Len()
			}
		})
	}
	if items > maxItems {
		return errTooLarge("the array", "%d elements", maxItems)
	}
	return nil
}

// boundWritten bounds what a value takes when it is written out. Values may
// share their parts, so that this can be far more than they take in memory.
func boundWritten(operands []*ast.Term) error {
	if left := maxText - written(operands, maxText); left < 0 {
		return errTooLarge("the text", "%d bytes", maxText)
	}
	return nil
}

// written is about how many bytes the values take; it stops counting soon
// after limit.
func written(values []*ast.Term, limit int) int {
	n := 0
	var add func(t *ast.Term) bool // Reports that it is enough.
	add = func(t *ast.Term) bool {
		n++
		switch v := t.Value.(type) {
		case ast.String:
			n += len(v)
		case ast.Number:
			n += len(v)
		case *ast.Array:
			return v.Until(add)
		case ast.Set:
			return v.Until(add)
		case ast.Object:
			return v.Until(func(k, e *ast.Term) bool { return add(k) || add(e) })
		}
		return n > limit
	}
	for _, t := range values {
		if add(t) {
			break
		}
	}
	return n
}

func boundConcat(operands []*ast.Term) error {
	delimiter, _ := operands[0].Value.(ast.String)
	items := 0
	switch v := operands[1].Value.(type) {
	case *ast.Array:
		items = v.Len()
	case ast.Set:
		items = v.Len()
	}
	if len(delimiter)*items > maxText {
		return errTooLarge("the text", "%d bytes", maxText)
	}
	return boundWritten(operands[1:2])
}

// boundSprintf refuses wide verbs. Any verb may write the longest argument,
// and escape each byte of it.
func boundSprintf(operands []*ast.Term) error {
	format, _ := operands[0].Value.(ast.String)
	args, _ := operands[1].Value.(*ast.Array)
	if args == nil {
		return nil // The builtin says what it wants.
	}
	longest := 0
	args.Foreach(func(t *ast.Term) {
		if longest <= maxText {
			longest = max(longest, written([]*ast.Term{t}, maxText))
		}
	})
	size := len(format)
	for rest := string(format); ; {
		_, after, found := strings.Cut(rest, "%")
		if !found {
			break
		}
		if rest = after; strings.HasPrefix(rest, "%") {
			rest = rest[1:]
			continue
		}
		width := 0
		verb := strings.TrimLeft(rest, "+-# 0123456789.[]*")
		for _, number := range strings.FieldsFunc(rest[:len(rest)-len(verb)], func(r rune) bool { return r < '0' || r > '9' }) {
			n, err := strconv.Atoi(number)
			if err != nil || n > maxWidth {
				return errTooLarge("a width in sprintf", "%d", maxWidth)
			}
			width += n
		}
		if strings.Contains(rest[:len(rest)-len(verb)], "*") {
			return fmt.Errorf("a width in sprintf must be written out, not *")
		}
		if size += 4*longest + width; size > 4*maxText {
			return errTooLarge("the text", "%d bytes", maxText)
		}
		rest = verb
	}
	return nil
}

// boundReplace holds for replace(s, old, new), regex.replace(s, pattern, new)
// and strings.replace_n({old: new}, s): what is new may come before, between
// and after all bytes, and in a regular expression bring the match along.
func boundReplace(operands []*ast.Term) error {
	text, replacement := operands[0], 0
	if patterns, ok := text.Value.(ast.Object); ok {
		text = operands[1]
		patterns.Foreach(func(_, v *ast.Term) {
			s, _ := v.Value.(ast.String)
			replacement = max(replacement, len(s))
		})
	} else {
		s, _ := operands[2].Value.(ast.String)
		replacement = len(s)
	}
	s, _ := text.Value.(ast.String)
	if (len(s)+1)*(replacement+1) > 16*maxText {
		return errTooLarge("the text", "%d bytes", maxText)
	}
	return nil
}

// boundTokens bounds the size of keys, which are multiplied.
func boundTokens(operands []*ast.Term) error {
	if written(operands, maxToken) > maxToken {
		return errTooLarge("token and keys", "%d bytes", maxToken)
	}
	return nil
}
