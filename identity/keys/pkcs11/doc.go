// Package pkcs11 keeps the keys of signing authorities in a token behind PKCS #11
// (version 2.40): a hardware module, or SoftHSM. They are made there and never
// leave it. It needs cgo, and is built with the tag pkcs11 only.
package pkcs11
