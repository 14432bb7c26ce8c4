//go:build !pkcs11

package main

import (
	"errors"

	"github.com/writ-dev/writ/identity/keys"
	"github.com/writ-dev/writ/internal/writdconf"
)

// hasPKCS11 tells that this writd was built with PKCS #11.
const hasPKCS11 = false

func openPKCS11(*writdconf.PKCS11) (keys.Store, func() error, error) {
	return nil, nil, errors.New("keys.pkcs11: this writd was built without PKCS #11, which needs cgo: build it with -tags pkcs11")
}
