package bundle

// NewContent makes a Content of files in any order, within the limits. What is
// wrong with them is a policy.Refused.
func NewContent(files []File) (Content, error) {
	var c collector
	for _, f := range files {
		if err := checkPath(f.Path); err != nil {
			return nil, err
		}
		if !f.isSource() {
			return nil, refuse(f.Path, "not part of a policy: .rego, .rules.yaml, data.json and data.yaml are")
		}
		if err := c.add(f); err != nil {
			return nil, err
		}
	}
	return c.content()
}

// IsSource reports whether the file is part of a policy.
func (f File) IsSource() bool { return f.isSource() }
