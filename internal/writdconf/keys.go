package writdconf

// Keys is where the keys of signing authorities are.
type Keys struct {
	// A token behind PKCS #11, in a writd that was built with the tag pkcs11.
	PKCS11 *PKCS11 `yaml:"pkcs11"`
	// Memory, and nowhere else ({}): they end with the process, and new authorities
	// are made at each start. Not on PostgreSQL.
	Memory *MemoryKeys `yaml:"memory"`
}

// MemoryKeys are keys that end with the process. There is nothing to choose.
type MemoryKeys struct{}

// PKCS11 is a token behind PKCS #11.
type PKCS11 struct {
	// Path of the token's library, as /usr/lib/softhsm/libsofthsm2.so.
	Module string `yaml:"module"`
	// Label of the token.
	TokenLabel string `yaml:"token_label"`
	// File with the user's PIN, that only this user can read.
	PINFile string `yaml:"pin_file"`
}

func (k *Keys) validate(bad func(key, format string, args ...any)) {
	switch {
	case k.PKCS11 != nil && k.Memory != nil:
		bad("keys", "pkcs11 and memory contradict each other: want one of them")
		return
	case k.Memory != nil:
		return
	case k.PKCS11 == nil:
		bad("keys", "want pkcs11 or memory in it; leave keys out for files in the data directory")
		return
	}
	for _, f := range []struct{ key, value, what string }{
		{"module", k.PKCS11.Module, "the token's library"}, {"token_label", k.PKCS11.TokenLabel, "the token"}, {"pin_file", k.PKCS11.PINFile, "the file with the PIN"},
	} {
		if f.value == "" {
			bad("keys.pkcs11."+f.key, "missing: name %s", f.what)
		}
	}
}
