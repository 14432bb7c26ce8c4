package bundle

// Part is what one publisher has given to a content: its files, and the
// .signatures.json under which they came. What is in force is the union of the
// parts.
type Part struct {
	Publisher string
	// KeyID signed the part, empty when nothing did.
	KeyID   string
	Content Content
	// Signatures is nil when nothing signed the part, or when another publisher
	// has taken over some of its files since, so that the signature covers more
	// than there is.
	Signatures []byte
}

// Verify checks that one of keys signed exactly the files of the part.
func (p Part) Verify(keys Keys) (string, error) {
	a := Archive{Content: p.Content, signatures: p.Signatures}
	return a.Verify(keys, ScopeSources)
}

// Archive writes the part as its publisher sent it.
func (p Part) Archive() ([]byte, error) { return p.Content.Archive(p.Signatures) }

// Signatures is the .signatures.json, nil when there is none.
func (a *Archive) Signatures() []byte { return a.signatures }
