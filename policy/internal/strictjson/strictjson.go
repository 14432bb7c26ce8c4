// Package strictjson reads JSON that can be understood in one way only: no
// duplicate keys, no invalid UTF-8, nothing after the document, bounded
// nesting. encoding/json lets all of these pass.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// Error is a finding with its place, counted from 1.
type Error struct {
	Line, Column int
	Message      string
}

func (e *Error) Error() string {
	return fmt.Sprintf("line %d, column %d: %s", e.Line, e.Column, e.Message)
}

// Decode reads one JSON document into nil, bool, string, json.Number, []any
// and map[string]any. Errors are *Error.
func Decode(data []byte, maxDepth int) (any, error) {
	if !utf8.Valid(data) {
		return nil, fail(data, int64(firstInvalid(data)), "not valid UTF-8")
	}
	d := &decoder{data: data, json: json.NewDecoder(bytes.NewReader(data)), maxDepth: maxDepth}
	d.json.UseNumber()
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	if _, err := d.json.Token(); !errors.Is(err, io.EOF) {
		return nil, fail(data, d.json.InputOffset(), "more after the end of the document")
	}
	// Reading by tokens is not specified to find every syntax error.
	if !json.Valid(data) {
		return nil, fail(data, 0, "not valid JSON")
	}
	return v, nil
}

type decoder struct {
	data     []byte
	json     *json.Decoder
	maxDepth int
}

func (d *decoder) value(depth int) (any, error) {
	tok, err := d.token()
	if err != nil {
		return nil, err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return tok, nil
	}
	if depth == d.maxDepth {
		return nil, d.fail(fmt.Sprintf("nested deeper than %d", d.maxDepth))
	}
	if delim == '[' {
		list := []any{}
		for d.json.More() {
			v, err := d.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.token()
		return list, err
	}
	object := map[string]any{}
	for d.json.More() {
		tok, err := d.token()
		if err != nil {
			return nil, err
		}
		key, _ := tok.(string) // The decoder admits nothing else as a key.
		if _, twice := object[key]; twice {
			return nil, d.fail(fmt.Sprintf("%q is given twice", key))
		}
		if object[key], err = d.value(depth + 1); err != nil {
			return nil, err
		}
	}
	_, err = d.token()
	return object, err
}

func (d *decoder) token() (json.Token, error) {
	tok, err := d.json.Token()
	if err == nil {
		return tok, nil
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return nil, fail(d.data, syntax.Offset, syntax.Error())
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fail(d.data, int64(len(d.data)), "the document is not complete")
	}
	return nil, d.fail(err.Error())
}

func (d *decoder) fail(message string) error {
	return fail(d.data, d.json.InputOffset(), message)
}

func fail(data []byte, offset int64, message string) error {
	before := data[:min(offset, int64(len(data)))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := len(before) - bytes.LastIndexByte(before, '\n')
	return &Error{Line: line, Column: column, Message: message}
}

func firstInvalid(data []byte) int {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(data)
}
