// Package prototest makes streams of messages of bytes, for fuzz tests of what comes
// over gRPC.
package prototest

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
)

// Delimited puts messages one after the other, each with its length before it.
func Delimited(messages ...proto.Message) []byte {
	var b bytes.Buffer
	for _, m := range messages {
		_, _ = protodelim.MarshalTo(&b, m) // a Buffer takes everything
	}
	return b.Bytes()
}

// Parted is the inverse; what cannot be read ends it.
func Parted[T any, M interface {
	*T
	proto.Message
}](data []byte) (all []M) {
	for r := bytes.NewReader(data); ; {
		m := M(new(T))
		if protodelim.UnmarshalFrom(r, m) != nil {
			return all
		}
		all = append(all, m)
	}
}
