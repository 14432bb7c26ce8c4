package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-dev/writ/internal/nearmiss"
)

// Checks of single values. A check says what is wrong, without the value.

func checkText(s string) error {
	switch {
	case len(s) > maxText:
		return fmt.Errorf("longer than %d bytes", maxText)
	case strings.ContainsFunc(s, unicode.IsControl):
		return errors.New("control characters are not allowed")
	}
	return nil
}

func checkFilled(s string) error {
	if s == "" {
		return errors.New("is empty")
	}
	return checkText(s)
}

func checkID(s string) error {
	if s == "" || len(s) > maxID || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("want an id of 1 to %d bytes without control characters", maxID)
	}
	return nil
}

const spiffeScheme = "spiffe://"

// checkSPIFFEID accepts the SPIFFE ID of a workload, or a pattern for some:
// `*` is any run of characters of a segment, alone one segment or a trust
// domain, and `**` at the end one or more segments.
func checkSPIFFEID(s string) error {
	rest, ok := strings.CutPrefix(s, spiffeScheme)
	if !ok {
		return errors.New("want a SPIFFE ID: spiffe://<trust domain>/<path>")
	}
	td, path, ok := strings.Cut(rest, "/")
	if !ok {
		return errors.New("want the SPIFFE ID of a workload, with a path; /** is any (see also trust_domains)")
	}
	if td != "*" {
		if err := checkTrustDomain(td); err != nil {
			return err
		}
	}
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if part == "**" && i == len(parts)-1 {
			continue
		}
		if strings.Contains(part, "**") {
			return errors.New("** stands for one or more segments, and only at the end")
		}
		if err := spiffeid.ValidatePathSegment(strings.ReplaceAll(part, "*", "x")); err != nil {
			return fmt.Errorf("path segment %q: want letters, digits, '.', '_', '-' and '*'", part)
		}
	}
	return checkText(s)
}

func anyTrustDomain(s string) bool { return strings.HasPrefix(s, spiffeScheme+"*/") }

func checkTrustDomain(s string) error {
	if td, err := spiffeid.TrustDomainFromString(s); err != nil || td.Name() != s {
		return fmt.Errorf("%q is not a trust domain: want lower-case letters, digits, '.', '-' and '_'", s)
	}
	return nil
}

func checkName(s string) error {
	if err := spiffeid.ValidatePathSegment(s); err != nil {
		return errors.New("want letters, digits, '.', '_' and '-' (patterns are for spiffe_ids)")
	}
	return checkText(s)
}

func checkServiceAccount(s string) error {
	ns, name, ok := strings.Cut(s, "/")
	if !ok || checkName(ns) != nil || checkName(name) != nil {
		return errors.New("want namespace/name (patterns are for spiffe_ids)")
	}
	return checkText(s)
}

func checkCIDR(s string) error {
	p, err := netip.ParsePrefix(s)
	if addr, addrErr := netip.ParseAddr(s); addrErr == nil {
		return fmt.Errorf("want a network: %s/%d is this address alone", s, addr.BitLen())
	}
	switch {
	case err != nil:
		return errors.New("want a network such as 10.0.0.0/8 or 2001:db8::/32")
	case p.Addr().Is4In6():
		return errors.New("without ::ffff: write the IPv4 network alone")
	case p.Masked() != p:
		return fmt.Errorf("has bits behind its mask: did you mean %q?", p.Masked().String())
	}
	return nil
}

var methodForm = regexp.MustCompile(`^[A-Z][A-Z0-9_-]*$`)

func checkMethod(s string) error {
	if !methodForm.MatchString(s) {
		if up := strings.ToUpper(s); up != s && methodForm.MatchString(up) {
			return fmt.Errorf("methods are upper case: did you mean %q?", up)
		}
		return errors.New("want a method such as GET")
	}
	return checkText(s)
}

var hostForm = regexp.MustCompile(`^(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

func checkHost(s string) error {
	if name, _, ok := strings.Cut(s, ":"); ok && hostForm.MatchString(name) {
		return errors.New("write it without the port, which is not compared (see ports)")
	}
	if !hostForm.MatchString(s) {
		return errors.New("want a host name, or *.example.org for all below it")
	}
	return checkText(s)
}

var grpcForm = regexp.MustCompile(`^[A-Za-z0-9_.*]+$`)

func checkGRPCService(s string) error {
	if strings.Contains(s, "/") {
		return errors.New("want the full name of a service, as in shop.v1.Orders; methods go into grpc_methods")
	}
	if !grpcForm.MatchString(s) {
		return errors.New("want the full name of a service, as in shop.v1.Orders")
	}
	return checkText(s)
}

func checkGRPCMethod(s string) error {
	if strings.ContainsAny(s, "/.") {
		return errors.New("want the name of a method alone; its service goes into grpc_services")
	}
	if !grpcForm.MatchString(s) {
		return errors.New("want the name of a method")
	}
	return checkText(s)
}

func checkPort(s string) error {
	_, err := parsePorts(s)
	return err
}

// parsePorts reads 8443 or 8000-8999.
func parsePorts(s string) (Range, error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	low, err := strconv.ParseUint(from, 10, 16)
	high, err2 := strconv.ParseUint(to, 10, 16)
	if err != nil || err2 != nil || low == 0 || low > high {
		return Range{}, errors.New("want a port such as 8443, or a range such as 8000-8999")
	}
	return Range{int64(low), int64(high)}, nil
}

var headerForm = regexp.MustCompile("^[a-z0-9!#$%&'*+.^_`|~-]+$")

func checkHeaderName(s string) error {
	switch {
	case s != strings.ToLower(s):
		return fmt.Errorf("header names are lower case: did you mean %q?", strings.ToLower(s))
	case !headerForm.MatchString(s):
		return errors.New("want a header name")
	case s == "host":
		return errors.New("the host is not among the headers: use hosts")
	case reservedHeader(s):
		return errors.New("only Writ may set this header, and policy does not see it")
	}
	return checkText(s)
}

// reservedHeader reports whether enforcement points strip the header from
// requests: the names that pep/httppep reserves, in the spellings that count.
func reservedHeader(name string) bool {
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name)
	return strings.HasPrefix(plain, "writ-") || plain == "x-forwarded-client-cert" || plain == "x-forwarded-for" && name != plain
}

func checkWord(words []string) func(string) error {
	return func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("is not one of %s%s", strings.Join(words, ", "), didYouMean(s, words))
		}
		return nil
	}
}

func didYouMean(got string, known []string) string {
	if hint := nearmiss.Hint(got, known); strings.HasPrefix(hint, ": did") {
		return hint
	}
	return ""
}

func checkWhole(s string) error {
	if _, err := strconv.ParseInt(s, 10, 64); err != nil {
		return errors.New("want a whole number")
	}
	return nil
}

// checkTime accepts what nanoseconds since 1970 in 64 bits hold, with room for
// an offset.
func checkTime(t time.Time) error {
	if !t.IsZero() && (t.Year() < 1971 || t.Year() > 2261) {
		return errors.New("want a time from 1971 to 2261")
	}
	return nil
}

var clockForm = regexp.MustCompile(`^([01][0-9]|2[0-4]):([0-5][0-9])$`)

// parseClock gives the seconds of the day of 08:00; 24:00 is its end.
func parseClock(s string) (int64, error) {
	m := clockForm.FindStringSubmatch(s)
	if m == nil || strings.HasPrefix(s, "24") && s != "24:00" {
		return 0, errors.New(`want a time of the day such as "08:00"`)
	}
	hours, _ := strconv.ParseInt(m[1], 10, 64)
	minutes, _ := strconv.ParseInt(m[2], 10, 64)
	return hours*3600 + minutes*60, nil
}

var zoneForm = regexp.MustCompile(`^[+-](0[0-9]|1[0-4]):([0-5][0-9])$`)

// parseZone gives the offset of UTC or +01:00. Names of zones are refused: what
// they mean depends on the time zone database of each machine.
func parseZone(s string) (int64, error) {
	if s == "" || s == "UTC" {
		return 0, nil
	}
	if !zoneForm.MatchString(s) {
		return 0, errors.New("want UTC or an offset such as +01:00; names of zones mean different hours on different machines")
	}
	hours, _ := strconv.ParseInt(s[1:3], 10, 64)
	minutes, _ := strconv.ParseInt(s[4:6], 10, 64)
	offset := int64(time.Duration(hours)*time.Hour + time.Duration(minutes)*time.Minute)
	if s[0] == '-' {
		offset = -offset
	}
	return offset, nil
}
