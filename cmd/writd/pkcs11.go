//go:build pkcs11

package main

import (
	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/identity/keys/pkcs11"
	"github.com/writ-dev/writ/internal/writdconf"
)

// hasPKCS11 tells that this writd was built with PKCS #11.
const hasPKCS11 = true

func openPKCS11(c *writdconf.PKCS11) (keys.Store, func() error, error) {
	s, err := pkcs11.Open(pkcs11.Config{Module: c.Module, TokenLabel: c.TokenLabel, PINFile: c.PINFile})
	if err != nil {
		return nil, nil, err
	}
	return s, s.Close, nil
}
