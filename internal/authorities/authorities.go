// Package authorities reads files with X.509 authorities.
package authorities

import (
	"crypto/x509"
	"fmt"
	"os"
)

// Pool reads the certificates (PEM) of all files. A file that cannot be read, or has
// none, is an error that names it; no file at all gives an empty pool, which verifies
// nothing.
func Pool(files ...string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("no certificate (PEM) in %s", file)
		}
	}
	return pool, nil
}
