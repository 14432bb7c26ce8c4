package issuer

import (
	"bytes"
	"slices"

	"github.com/writ-dev/writ/identity/ca"
	"github.com/writ-dev/writ/identity/watchv1"
)

// crlsAtOnce is how many bytes of CRLs go into one message, if it is not one list
// that has more.
const crlsAtOnce = 1 << 20

// newCRLs are the lists that an agent lacks, which was told of before, in messages
// that are small enough.
func newCRLs(before, now *ca.RevocationLists) (messages []*watchv1.CRLs) {
	if now == nil {
		return nil
	}
	size := 0
	for _, list := range now.Lists {
		if before != nil && slices.ContainsFunc(before.Lists, func(o []byte) bool { return bytes.Equal(o, list) }) {
			continue
		}
		if len(messages) == 0 || size+len(list) > crlsAtOnce {
			messages, size = append(messages, &watchv1.CRLs{Intermediates: now.Intermediates}), 0
		}
		last := messages[len(messages)-1]
		last.Lists = append(last.Lists, list)
		size += len(list)
	}
	return messages
}
