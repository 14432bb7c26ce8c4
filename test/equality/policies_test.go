package equality

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// writer makes one random policy.
type writer struct {
	r *rand.Rand
	b strings.Builder
	n int // names made so far
	// hard admits what the compiler is known to leave to topdown, library the
	// functions of package writ.
	hard, library bool
}

func (w *writer) printf(format string, args ...any) { fmt.Fprintf(&w.b, format, args...) }

func (w *writer) name(prefix string) string {
	w.n++
	return prefix + strconv.Itoa(w.n)
}

func (w *writer) quoted(list []string) string {
	s := pick(w.r, list)
	return strconv.Quote(strings.ToValidUTF8(s, "\uFFFD"))
}

func (w *writer) list(from []string, open, end string) string {
	items := make([]string, 1+w.r.IntN(3))
	for i := range items {
		items[i] = w.quoted(from)
	}
	return open + strings.Join(items, ", ") + end
}

// text is a reference to a text, and the words that it is likely to be.
func (w *writer) text() (string, []string) {
	header := func() string { return "input.request.headers[" + w.quoted(headerNames) + "]" }
	switch w.r.IntN(16) {
	case 0, 1:
		return "input.source.id", ids
	case 2:
		return "input.source.trust_domain", trustDomains
	case 3:
		return "input.source.path", []string{"/svc/web", "/ns/shop/sa/web", "/svc/orders", ""}
	case 4, 5:
		return "input.request.method", methods
	case 6, 7:
		return "input.request.path", paths
	case 8:
		return "input.request.host", hosts
	case 9:
		return header() + "[0]", words
	case 10:
		return header() + "[_]", words
	case 11:
		return "input.request.query." + pick(w.r, queryNames) + "[" + pick(w.r, []string{"_", "0", "1"}) + "]", words
	case 12, 13:
		return fmt.Sprintf("input.request.segments[%d]", w.r.IntN(3)), []string{"orders", "1001", "items", "internal", "products", "été", "a/b", ""}
	case 14:
		return pick(w.r, []string{"input.request.grpc.method", "input.request.grpc.service"}), []string{"Charge", "Refund", "shop.payments.v1.Payments", ""}
	}
	return pick(w.r, []string{"input.connection.sni", "input.destination.id", "input.connection.peer_ip", "input.connection.alpn"}), append(hosts, addresses...)
}

// one is a text that is one value, for where a variable may not be free.
func (w *writer) one() (string, []string) {
	ref, from := w.text()
	return strings.ReplaceAll(ref, "[_]", "[0]"), from
}

// derived is a text made of a text.
func (w *writer) derived() (string, []string) {
	ref, from := w.text()
	switch w.r.IntN(14) {
	case 0:
		return "lower(" + ref + ")", []string{"get", "orders", "admin", "/orders/1001", "spiffe://example.org/svc/web"}
	case 1:
		return "upper(" + ref + ")", []string{"GET", "ORDERS", "ADMIN", "É"}
	case 2:
		return `trim_prefix(` + ref + `, "spiffe://example.org/svc/")`, []string{"web", "orders", "wéb", ""}
	case 3:
		return `trim_suffix(` + ref + `, "/")`, paths
	case 4:
		return `trim_space(` + ref + `)`, words
	case 5:
		return fmt.Sprintf("split(%s, \"/\")[%d]", ref, w.r.IntN(4)), []string{"orders", "svc", "web", "", "example.org"}
	case 6:
		return `concat("", ["<", ` + ref + `])`, []string{"<GET", "<web", "<"}
	}
	return ref, from
}

var conditions = []func(w *writer) string{
	func(w *writer) string { f, from := w.derived(); return f + " == " + w.quoted(from) },
	func(w *writer) string { f, from := w.text(); return f + " == " + w.quoted(from) },
	func(w *writer) string { f, from := w.text(); return w.quoted(from) + " = " + f },
	func(w *writer) string { f, from := w.derived(); return f + " != " + w.quoted(from) },
	func(w *writer) string { f, from := w.derived(); return f + " in " + w.list(from, "{", "}") },
	func(w *writer) string { f, from := w.text(); return f + " in " + w.list(from, "[", "]") },
	func(w *writer) string { f, from := w.one(); return "not " + f + " in " + w.list(from, "{", "}") },
	func(w *writer) string { f, from := w.one(); return "not " + f + " == " + w.quoted(from) },
	func(w *writer) string { f, from := w.derived(); return "startswith(" + f + ", " + w.part(from) + ")" },
	func(w *writer) string { f, from := w.derived(); return "endswith(" + f + ", " + w.part(from) + ")" },
	func(w *writer) string { f, from := w.text(); return "contains(" + f + ", " + w.part(from) + ")" },
	func(w *writer) string { f, from := w.one(); return "not startswith(" + f + ", " + w.part(from) + ")" },
	func(w *writer) string {
		f, _ := w.text()
		return "glob.match(" + w.quoted([]string{"spiffe://example.org/*/web", "/orders/*", "spiffe://**", "*.org", "{GET,HEAD}", "?", "/orders/**"}) +
			", " + pick(w.r, []string{`["/"]`, "null", "[]", `[".", "/"]`}) + ", " + f + ")"
	},
	func(w *writer) string {
		f, _ := w.text()
		return "regex.match(" + w.quoted([]string{"^/orders/[0-9]+$", "^G", "(?i)admin", ".", "^$", "^spiffe://example\\.org/"}) + ", " + f + ")"
	},
	func(w *writer) string {
		return fmt.Sprintf("input.request.content_length %s %d", w.compare(), pick(w.r, lengths))
	},
	func(w *writer) string {
		return fmt.Sprintf("input.destination.port %s %d", w.compare(), pick(w.r, ports))
	},
	func(w *writer) string {
		return fmt.Sprintf("count(input.request.segments) %s %d", w.compare(), w.r.IntN(4))
	},
	func(w *writer) string {
		return fmt.Sprintf("count(input.request.headers[%s]) %s %d", w.quoted(headerNames), w.compare(), w.r.IntN(3))
	},
	func(w *writer) string { return "input.request.headers[" + w.quoted(headerNames) + "]" },
	func(w *writer) string { return "not input.request.headers[" + w.quoted(headerNames) + "]" },
	func(w *writer) string { return "not input.request.query." + pick(w.r, queryNames) },
	func(w *writer) string { return `["orders", _] = input.request.segments` },
	func(w *writer) string {
		v := w.name("x")
		return `["orders", ` + v + `, "items"] = input.request.segments; ` + v + ` != "1001"`
	},
	func(w *writer) string {
		v := w.name("x")
		f, from := w.text()
		return v + " := " + f + "; " + v + " in " + w.list(from, "{", "}")
	},
	func(w *writer) string {
		v := w.name("x")
		return fmt.Sprintf(`some %s in input.request.headers[%s]; startswith(%s, "T-"); %s != "T-1"`, v, w.quoted(headerNames), v, v)
	},
	func(w *writer) string { return `input.layer == "request"` },
	func(w *writer) string {
		return fmt.Sprintf("input.source.authn %s %q", pick(w.r, []string{"==", "!="}), pick(w.r, []string{"mtls", "none"}))
	},
	func(w *writer) string { return `input.token_status == "valid"` },
	func(w *writer) string {
		f, _ := w.text()
		g, _ := w.text()
		return f + pick(w.r, []string{" == ", " != "}) + g
	},
	func(w *writer) string { return "shop.helper" + strconv.Itoa(w.r.IntN(3)) },
	func(w *writer) string { return "not shop.helper" + strconv.Itoa(w.r.IntN(3)) },
	func(w *writer) string { f, _ := w.text(); return "shop.func(" + f + ", " + w.quoted(words) + ")" },
	func(w *writer) string { f, _ := w.one(); return "not shop.func(" + f + ", " + w.quoted(words) + ")" },
	func(w *writer) string { return `shop.caller in {"web", "orders"}` },
	func(w *writer) string {
		g := w.name("g")
		return fmt.Sprintf("some %[1]s in data.grants; %[1]s.id == input.source.id; startswith(input.request.path, %[1]s.prefix)", g)
	},
	func(w *writer) string {
		g := w.name("g")
		return fmt.Sprintf("some %[1]s in data.grants; %[1]s.id == input.source.id; input.request.method in %[1]s.methods", g)
	},
	func(w *writer) string { return `data.roles[input.source.id] == "admin"` },
	func(w *writer) string { return "input.source.id in data.allowed" },
	func(w *writer) string { return "not input.source.id in data.allowed" },
	func(w *writer) string {
		return fmt.Sprintf("time.now_ns() %s %d", w.compare(), pick(w.r, instants).UnixNano())
	},
	func(w *writer) string {
		return "every p in " + w.list(paths, "[", "]") + " { p != input.request.path }"
	},
	func(w *writer) string {
		return fmt.Sprintf(`object.get(input.request.headers, %s, ["none"])[0] == %s`, w.quoted(headerNames), w.quoted(append(words, "none")))
	},
	func(w *writer) string {
		v := w.name("t")
		return fmt.Sprintf(`some %s in input.tokens; %s.issuer == "https://issuer.example"; %s.claims.role == %s`, v, v, v, w.quoted(words))
	},
	func(w *writer) string { return `input.tokens[_].audience[_] == ` + w.quoted(words) },
	func(w *writer) string {
		return `input.tokens[_].claims.groups[_] == ` + w.quoted([]string{"admin", "user"})
	},
	func(w *writer) string {
		f, from := w.one()
		g, _ := w.one()
		if w.r.IntN(2) == 0 {
			return f + " in {" + g + ", " + w.quoted(from) + "}"
		}
		return f + " in [" + g + ", " + w.quoted(from) + "]"
	},
	func(w *writer) string {
		f, _ := w.text()
		return "glob.match(" + w.quoted([]string{"*-", "*", `/a/\*`, "/*/secret", "/a/*/c"}) + ", " + pick(w.r, []string{`["-", "."]`, `["."]`, `["/"]`}) + ", " + pick(w.r, []string{f, "lower(" + f + ")"}) + ")"
	},
	func(w *writer) string {
		v := w.name("t")
		return fmt.Sprintf("some %s in input.tokens; %sshop.claim(%s)", v, pick(w.r, []string{"", "not "}), v)
	},
	func(w *writer) string {
		v := w.name("t")
		return fmt.Sprintf("some %s in input.tokens; %s.claims%s", v, v, pick(w.r, []string{`[""]`, `["a\u0000b"]`, `["a\u0000b"] == "admin"`, `[""].a`, `.a.b`, `.a[""]`}))
	},
	func(w *writer) string {
		return pick(w.r, []string{`shop.place("orders")`, `shop.known(shop.place("orders"))`})
	},
	func(w *writer) string { // Two globs that are one in OPA's cache.
		f, _ := w.one()
		return `glob.match("*-", ["."], lower(` + f + `)); not glob.match("*", ["-", "."], lower(` + f + `))`
	},
	func(w *writer) string {
		v := w.name("i")
		f, _ := w.one()
		return fmt.Sprintf("some %[1]s in data.ids; %[1]ss := {v | some r in data.rows; r.id == %[1]s; v := regex.match(r.pattern, %[2]s)}; true in %[1]ss", v, f)
	},
	func(w *writer) string { return `net.cidr_contains("10.0.0.0/8", input.connection.peer_ip)` },
	func(w *writer) string { return `not net.cidr_contains("10.0.0.0/8", input.connection.client_ip)` },
}

// libraryConditions call the library of package writ.
var libraryConditions = []func(w *writer) string{
	func(w *writer) string {
		return "spiffe.matches(input.source.id, " + w.quoted([]string{"spiffe://example.org/svc/*", "spiffe://example.org/**", "spiffe://*/svc/web", "spiffe://example.org/ns/*/sa/w*"}) + ")"
	},
	func(w *writer) string {
		return "spiffe.under(input.source.id, " + w.quoted([]string{"spiffe://example.org/svc", "spiffe://example.org/ns/shop", "spiffe://example.org"}) + ")"
	},
	func(w *writer) string { return "not spiffe.ours(input.source.id)" },
	func(w *writer) string { return pick(w.r, []string{"", "not "}) + `http.path("/*5b")` },
	func(w *writer) string { return "spiffe.ours(input.source.id)" },
	func(w *writer) string {
		return "spiffe.namespace(input.source.id) == " + w.quoted([]string{"shop", "ops"})
	},
	func(w *writer) string {
		return "spiffe.service_account(input.source.id) in " + w.list([]string{"web", "cron", ""}, "{", "}")
	},
	func(w *writer) string {
		return "spiffe.service(input.source.id) == " + w.quoted([]string{"web", "orders"})
	},
	func(w *writer) string { return "spiffe.trust_domain(input.source.id) != " + w.quoted(trustDomains) },
	func(w *writer) string {
		return pick(w.r, []string{"", "not "}) + pick(w.r, []string{"http.reads", "http.writes"})
	},
	func(w *writer) string {
		return pick(w.r, []string{"", "not "}) + "http.path(" + w.quoted([]string{"/", "/orders", "/orders/{*}", "/orders/*", "/{**}/items", "/o*", "/orders/", "/{*}/{**}/items/*", "/{x}", "/a/{**}/{**}", "/*5b", "/*secret"}) + ")"
	},
	func(w *writer) string { return "http.header(" + w.quoted(headerNames) + ") == " + w.quoted(words) },
	func(w *writer) string {
		return "http.header_has(" + w.quoted(headerNames) + ", " + w.quoted(words) + ")"
	},
	func(w *writer) string {
		return "not http.header_has(" + w.quoted(headerNames) + ", " + w.quoted(words) + ")"
	},
	func(w *writer) string { return "http.header_matches(" + w.quoted(headerNames) + `, "[a-z]+")` },
	func(w *writer) string { return "http.query(" + w.quoted(queryNames) + ") == " + w.quoted(words) },
	func(w *writer) string { return "http.query_has(" + w.quoted(queryNames) + ", " + w.quoted(words) + ")" },
	func(w *writer) string {
		return `addresses.in_cidr(input.connection.peer_ip, {"10.0.0.0/8", "2001:db8::/32"})`
	},
	func(w *writer) string { return `not addresses.in_cidr(input.connection.client_ip, {"10.0.0.0/8"})` },
	func(w *writer) string { return `addresses.outside_cidr(input.connection.peer_ip, {"192.0.2.0/24"})` },
	func(w *writer) string { return "addresses.is_address(input.connection.client_ip)" },
	func(w *writer) string { return `grpc.call("/shop.payments.v1.Payments/Charge")` },
	func(w *writer) string { return `clock.between("2029-12-24T00:00:00Z", "2030-01-02T00:00:00+01:00")` },
	func(w *writer) string { return `clock.hours("08:00", "17:30", "Europe/Vienna")` },
	func(w *writer) string { return `clock.weekday("UTC") in {"Saturday", "Tuesday"}` },
	func(w *writer) string {
		v := w.name("u")
		return fmt.Sprintf(`some %[1]s in token.verified; token.by(%[1]s, "https://issuer.example", %[2]s)`, v, w.quoted(words))
	},
	func(w *writer) string {
		v := w.name("u")
		return fmt.Sprintf(`some %[1]s in token.verified; token.claim_is(%[1]s, "role", %[2]s)`, v, w.quoted([]string{"admin", "user"}))
	},
	func(w *writer) string {
		v := w.name("u")
		return fmt.Sprintf(`some %[1]s in token.verified; token.claim_has(%[1]s, "groups", "admin")`, v)
	},
}

// hardConditions are what a compiler would be wrong to be sure of.
var hardConditions = []func(w *writer) string{
	func(w *writer) string { f, _ := w.text(); return "to_number(" + f + ") > 3" },
	func(w *writer) string { return `input.tokens[_].claims.level > 3` },
	func(w *writer) string { return `startswith(input.tokens[0].claims.role, "adm")` },
	func(w *writer) string { return `shop.helper0 with input.request.method as "GET"` },
	func(w *writer) string { return `count([x | some x in input.request.segments; x != ""]) > 1` },
	func(w *writer) string { return `count({x | some x in input.request.headers["x-role"]}) == 1` },
	func(w *writer) string { return `shop.twice == "a"` },
	func(w *writer) string {
		return `some name, values in input.request.headers; values[0] == "admin"; name != "x-env"`
	},
	func(w *writer) string { return `100 / input.destination.port > 1` },
	func(w *writer) string { return `input.request.content_length + 1 > 1024` },
	func(w *writer) string {
		return `sprintf("%s:%d", [input.request.method, input.destination.port]) == "GET:80"`
	},
	func(w *writer) string { return `time.parse_rfc3339_ns(input.time) > 0` },
	func(w *writer) string { return `time.parse_rfc3339_ns(input.request.headers["x-env"][0]) > 0` },
	func(w *writer) string { return `x := input.request.segments[i]; i > 0; x == "items"` },
	func(w *writer) string { return `array.slice(input.request.segments, 0, 1) == ["orders"]` },
	func(w *writer) string { return `walk(input.source, [_, "mtls"])` },
	func(w *writer) string { return `every v in input.request.headers["x-role"] { v != "user" }` },
	func(w *writer) string { return `[a | a := input.source.id] == ["spiffe://example.org/svc/web"]` },
	func(w *writer) string { return `input.request.method == shop.table[input.source.id]` },
	func(w *writer) string { return `json.unmarshal(input.request.headers["x-env"][0])` },
	func(w *writer) string { return `substring(input.request.path, 1, 6) == "orders"` },
	func(w *writer) string { return `input["source"].id == "spiffe://example.org/svc/web"` },
	func(w *writer) string {
		return `input.source == {"authn": "mtls", "id": "spiffe://example.org/svc/web", "path": "/svc/web", "trust_domain": "example.org"}`
	},
	func(w *writer) string { return `is_string(input.request.method)` },
	func(w *writer) string { return `glob.match(input.request.path, [], "/orders")` },
	func(w *writer) string { return `"admin" in input.request.headers["x-role"]` },
	func(w *writer) string { return `not "admin" in input.request.headers["x-role"]` },
	func(w *writer) string { return `input.request.headers["x-role"] == ["admin"]` },
	func(w *writer) string { return `units.parse(input.request.headers["x-env"][0]) == 7` },
}

func (w *writer) compare() string { return pick(w.r, []string{"<", "<=", ">", ">=", "==", "!="}) }

// part is the beginning, end or middle of a word.
func (w *writer) part(from []string) string {
	s := []rune(strings.ToValidUTF8(pick(w.r, from), ""))
	i := w.r.IntN(len(s) + 1)
	j := i + w.r.IntN(len(s)-i+1)
	switch w.r.IntN(3) {
	case 0:
		i = 0
	case 1:
		j = len(s)
	}
	return strconv.Quote(string(s[i:j]))
}

func (w *writer) condition() string {
	if w.hard && w.r.IntN(4) == 0 {
		return pick(w.r, hardConditions)(w)
	}
	if w.library && w.r.IntN(3) == 0 {
		return pick(w.r, libraryConditions)(w)
	}
	return pick(w.r, conditions)(w)
}

// imports are what the rules of a module may use.
func (w *writer) imports(of ...string) {
	for _, name := range of {
		w.printf("\nimport data.%s", name)
	}
	if w.library {
		w.printf("\nimport data.writ.spiffe\nimport data.writ.http\nimport data.writ.net as addresses\nimport data.writ.grpc\nimport data.writ.token\nimport data.writ.time as clock")
	}
	w.printf("\n")
}

func (w *writer) body(lead string) {
	w.printf(" if {\n")
	if lead != "" {
		w.printf("\t%s\n", lead)
	}
	for range 1 + w.r.IntN(3) {
		w.printf("\t%s\n", w.condition())
	}
	w.printf("}\n")
}

// rules writes the rules of one name of a package: a partial set or a boolean.
func (w *writer) rules(name, lead string) (set bool) {
	if w.r.IntN(5) == 0 { // a boolean
		if w.r.IntN(2) == 0 {
			w.printf("\ndefault %s := false\n", name)
		}
		for range 1 + w.r.IntN(2) {
			w.printf("\n%s", name)
			w.body(lead)
		}
		if w.hard && w.r.IntN(3) == 0 {
			w.printf("\n%s := false", name)
			w.body(lead)
		}
		return false
	}
	for range 1 + w.r.IntN(5) {
		switch {
		case w.hard && w.r.IntN(8) == 0:
			w.printf("\n%s contains input.source.authn", name)
		case w.r.IntN(8) == 0:
			w.printf("\n%s contains \"same\"", name)
		default:
			w.printf("\n%s contains %q", name, w.name("r"))
		}
		w.body(lead)
	}
	return true
}

// newPolicy is a random policy in txtar form.
func newPolicy(r *rand.Rand) string {
	w := &writer{r: r, hard: r.IntN(3) == 0, library: r.IntN(3) == 0}
	w.printf(`-- data.yaml --
writ:
  services:
    orders: {spiffe_ids: ["spiffe://example.org/svc/orders"]}
    payments: {spiffe_ids: ["spiffe://example.org/svc/payments"]}
`)
	if r.IntN(3) == 0 {
		w.printf(`  break_glass:
    one: {service: orders, source_ids: ["spiffe://example.org/svc/support", "spiffe://example.org/svc/web"], granted: "2030-01-01T12:00:00Z", expires: "2030-01-01T12:45:00Z", approvers: [ann, bob], ticket: T-1}
`)
	}
	w.printf("ids: [a, c]\nrows:\n")
	for _, id := range []string{"a", "b", "c"}[:1+w.r.IntN(3)] {
		w.printf("- {id: %s, pattern: %s}\n", id, pick(w.r, []string{`"^/"`, `"a"`, `"["`, `"G"`}))
	}
	w.printf("grants:\n")
	for i := range 1 + r.IntN(4) {
		w.printf("- {name: %q, id: %s, prefix: %s, methods: %s}\n", "g"+strconv.Itoa(i), w.quoted(ids), w.part(paths), w.list(methods, "[", "]"))
	}
	w.printf("allowed: %s\nroles: {%s: admin, %s: user}\n", w.list(ids, "[", "]"), `"spiffe://example.org/svc/web"`, `"spiffe://example.org/svc/support"`)
	w.shop()
	if r.IntN(3) > 0 {
		w.printf("-- guard.rego --\npackage guardrails.one\n")
		w.imports("shop")
		which := r.IntN(3)
		if which != 0 {
			w.rules("deny", `input.layer == "request"`)
		}
		if which != 1 {
			w.rules("deny_overridable", `input.layer == "request"`)
		}
	}
	for _, service := range services[:1+r.IntN(2)] {
		w.printf("-- %s.rego --\npackage services.%s\n", service, service)
		w.imports("shop")
		isSet := w.rules("allow", "")
		if r.IntN(2) == 0 {
			w.rules("deny", "")
		}
		if isSet && r.IntN(3) == 0 {
			w.printf("\nallow contains g.name if {\n\tsome g in data.grants\n\tg.id == input.source.id\n\tstartswith(input.request.path, g.prefix)\n}\n")
		}
	}
	return w.b.String()
}

// shop writes what rules share. Helpers use none of each other, so that they
// do not recurse.
func (w *writer) shop() {
	w.printf("-- shop.rego --\npackage shop\n")
	w.imports()
	w.printf("\ncaller := trim_prefix(input.source.id, \"spiffe://example.org/svc/\")\n")
	for i := range 3 {
		for range 1 + w.r.IntN(2) {
			w.printf("\nhelper%d if {\n", i)
			for range 1 + w.r.IntN(2) {
				condition := w.condition()
				for strings.Contains(condition, "shop.") {
					condition = w.condition()
				}
				w.printf("\t%s\n", condition)
			}
			w.printf("}\n")
		}
	}
	f, from := w.text()
	w.printf("\nfunc(a, _) if a == %s\n\nfunc(a, b) if {\n\ta == b\n\t%s == %s\n}\n", f, f, w.quoted(from))
	w.printf("\ntwice := \"a\" if input.request.method == \"GET\"\n\ntwice := \"b\" if input.source.authn == \"mtls\"\n")
	w.printf("\nknown(_) := true\n")
	w.printf("\nclaim(t) := t.claims.role\n\nplace(s) := i if {\n\tsome i, v in input.request.segments\n\tv == s\n}\n")
	w.printf("\ntable[id] := \"GET\" if some id in data.allowed\n")
}
