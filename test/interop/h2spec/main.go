// Command h2spec is summerwind/h2spec with a client certificate: its own
// command line can give none, its library can.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/summerwind/h2spec"
	"github.com/summerwind/h2spec/config"
)

func main() {
	// h2spec looks at the server's behaviour, not at its identity.
	c := &config.Config{Host: "127.0.0.1", TLS: true, Insecure: true, MaxHeaderLen: 4000}
	flag.IntVar(&c.Port, "port", 0, "port on loopback")
	flag.StringVar(&c.Path, "path", "/", "path to ask for")
	flag.StringVar(&c.CertFile, "cert", "", "client certificate (PEM)")
	flag.StringVar(&c.CertKeyFile, "key", "", "its key (PEM)")
	flag.StringVar(&c.JUnitReport, "junit", "", "file for a report")
	flag.BoolVar(&c.Strict, "strict", false, "run what the RFC only recommends, too")
	flag.DurationVar(&c.Timeout, "timeout", 2*time.Second, "time that one test may wait")
	flag.Parse()
	c.Sections = flag.Args()
	passed, err := h2spec.Run(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "h2spec:", err)
		os.Exit(2)
	}
	if !passed {
		os.Exit(1)
	}
}
