//go:build interop

package interop

// cliAuthoritySteps take both kinds of authority through their lives.
var cliAuthoritySteps = []cliStep{
	{args: "localauthority x509 show -output json", keep: map[string]string{"x509-old": "active.authority_id"}},
	{args: "localauthority x509 show"},
	{args: "localauthority x509 activate -authorityID none", fails: true},
	{args: "localauthority x509 taint -authorityID $x509-old", fails: true},
	{args: "localauthority x509 revoke -authorityID $x509-old", fails: true},
	{args: "localauthority x509 prepare -output json", keep: map[string]string{"x509-new": "prepared_authority.authority_id"}},
	{args: "localauthority x509 activate -authorityID $x509-new"},
	{args: "localauthority x509 show -output json"},
	{args: "localauthority x509 taint -authorityID $x509-old"},
	{args: "localauthority x509 taint -authorityID $x509-old", fails: true, differs: "SPIRE says Internal of what is tainted already, writd InvalidArgument"},
	{args: "localauthority x509 revoke -authorityID $x509-old -output json"},
	{args: "localauthority jwt show -output json", keep: map[string]string{"jwt-old": "active.authority_id"}},
	{args: "localauthority jwt prepare -output json", keep: map[string]string{"jwt-new": "prepared_authority.authority_id"}},
	{args: "localauthority jwt activate -authorityID $jwt-new -output json"},
	{args: "localauthority jwt taint -authorityID $jwt-old -output json"},
	{args: "localauthority jwt revoke -authorityID $jwt-old"},
	{args: "localauthority jwt show", differs: "SPIRE shows a revoked JWT authority as the old one until its journal forgets it"},
}
