package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/writ-dev/writ/identity/templatev1"
)

const templateHelp = `A template is one registration for many workloads: a SPIFFE ID with variables,
such as spiffe://example.org/ns/{k8s:ns}/sa/{k8s:sa}, that stand for what a
workload was attested with. {agent:TYPE:KEY} stands for what its node was.

A workload gets the ID when it runs on a node that the parent names, has all of
the selectors, and exactly one for each variable, whose value can be part of a
path. An agent can claim any value, so narrow by the parent and by {agent:…}.

Templates work with writ-agent only: stock agents do not hear of them, and an ID
that an entry gives no template does. See docs/howto/templates.md.`

func newEntryTemplateCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "template",
		Aliases: []string{"templates"},
		Short:   "One registration for many workloads",
		Long:    templateHelp,
	}
	cmd.AddCommand(newTemplateCreateCmd(a), newTemplateListCmd(a), newTemplateShowCmd(a), newTemplateUpdateCmd(a), newTemplateDeleteCmd(a))
	return cmd
}

// templateAdmin runs call against the control plane.
func (a *app) templateAdmin(call func(templatev1.AdminClient) error) error {
	return withClient(a, templatev1.NewAdminClient, func(c templatev1.AdminClient) error { return rpcError(call(c)) })
}

// templateFlags are the fields of a template.
type templateFlags struct{ commonFlags }

func (f *templateFlags) register(cmd *cobra.Command) {
	f.commonFlags.register(cmd, "SPIFFE ID with variables, as in spiffe://example.org/user/{unix:user}",
		"what the workload must be beside what the variables ask for, as in unix:group:staff; all of them must match")
	cmd.Flags().Lookup("dns").Usage += ", with variables or without"
}

// apply sets what was given.
func (f *templateFlags) apply(cmd *cobra.Command, t *templatev1.Template) (err error) {
	given := cmd.Flags().Changed
	if given("spiffe-id") {
		t.SpiffeId = f.spiffeID
	}
	if given("parent-id") {
		t.ParentId = f.parentID
	}
	if given("selector") {
		if t.Selectors, err = noneOf(f.selectors, "selector", "TYPE:VALUE"); err != nil {
			return err
		}
	}
	if given("dns") {
		if t.DnsNames, err = noneOf(f.dns, "dns", "NAME"); err != nil {
			return err
		}
	}
	if given("federates-with") {
		if t.FederatesWith, err = noneOf(f.federates, "federates-with", "TRUST-DOMAIN"); err != nil {
			return err
		}
	}
	if given("x509-svid-ttl") {
		if t.X509SvidTtl, err = secondsFlag("x509-svid-ttl", f.x509TTL); err != nil {
			return err
		}
	}
	if given("jwt-svid-ttl") {
		if t.JwtSvidTtl, err = secondsFlag("jwt-svid-ttl", f.jwtTTL); err != nil {
			return err
		}
	}
	if given("hint") {
		t.Hint = f.hint
	}
	return nil
}

// noneOf is a list of which one empty member means none.
func noneOf(list []string, flag, want string) ([]string, error) {
	if len(list) == 1 && list[0] == "" {
		return nil, nil
	}
	for _, s := range list {
		if s == "" {
			return nil, fmt.Errorf("--%s is empty: want %s, or it alone for none", flag, want)
		}
	}
	return list, nil
}

func newTemplateCreateCmd(a *app) *cobra.Command {
	var f templateFlags
	cmd := &cobra.Command{
		Use:   "create --spiffe-id PATTERN --parent-id ID [--selector TYPE:VALUE...]",
		Short: "Give workloads SPIFFE IDs by a pattern",
		Long:  templateHelp,
		Example: `  policyctl entry template create --spiffe-id 'spiffe://example.org/user/{unix:user}' \
      --parent-id spiffe://example.org/node/laptop --selector unix:group:staff
  policyctl entry template create --spiffe-id 'spiffe://example.org/ns/{k8s:ns}/sa/{k8s:sa}' \
      --parent-id spiffe://example.org/nodes/cluster1 --dns '{k8s:sa}.{k8s:ns}.svc'
  policyctl entry template create --parent-id spiffe://example.org/nodes/cluster1 \
      --spiffe-id 'spiffe://example.org/node/{agent:k8s_psat:agent_node_name}/user/{unix:user}'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t := &templatev1.Template{Id: f.id}
			if err := f.apply(cmd, t); err != nil {
				return fmt.Errorf("entry template create: %w", err)
			}
			var resp *templatev1.CreateResponse
			err := a.templateAdmin(func(c templatev1.AdminClient) (err error) {
				resp, err = c.Create(cmd.Context(), &templatev1.CreateRequest{Template: t})
				return err
			})
			if err != nil {
				return fmt.Errorf("entry template create: %w", err)
			}
			return a.emitTemplate(resp.GetTemplate(), resp.GetWarnings())
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.id, "id", "", "ID of the template itself (default: a new one)")
	for _, required := range []string{"spiffe-id", "parent-id"} {
		_ = cmd.MarkFlagRequired(required)
	}
	return cmd
}

func newTemplateUpdateCmd(a *app) *cobra.Command {
	var f templateFlags
	cmd := &cobra.Command{
		Use:   "update TEMPLATE [flags]",
		Short: "Change a template",
		Long: `Change a template: what is given replaces what was there, what is left out stays.
A list is replaced as a whole; --selector '' makes it empty, and so with --dns and
--federates-with. Agents are told at once: workloads with open streams get other
SVIDs, or none.`,
		Example: `  policyctl entry template update 6f1c2f0e-3f43-4c52-9d61-0a0f6a0f2d11 --x509-svid-ttl 10m
  policyctl entry template update users --selector unix:group:staff --hint ''`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTemplates,
		RunE: func(cmd *cobra.Command, args []string) error {
			var resp *templatev1.UpdateResponse
			err := a.templateAdmin(func(c templatev1.AdminClient) error {
				now, err := c.Get(cmd.Context(), &templatev1.GetRequest{Id: args[0]})
				if err != nil {
					return err
				}
				if err := f.apply(cmd, now.GetTemplate()); err != nil {
					return err
				}
				resp, err = c.Update(cmd.Context(), &templatev1.UpdateRequest{Template: now.GetTemplate()})
				return err
			})
			if err != nil {
				return fmt.Errorf("entry template update %s: %w", args[0], err)
			}
			return a.emitTemplate(resp.GetTemplate(), resp.GetWarnings())
		},
	}
	f.register(cmd)
	cmd.MarkFlagsOneRequired("spiffe-id", "parent-id", "selector", "x509-svid-ttl", "jwt-svid-ttl", "dns", "federates-with", "hint")
	return cmd
}

func newTemplateListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List templates",
		Example: `  policyctl entry template list --output json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			templates, err := a.findTemplates(cmd.Context())
			if err != nil {
				return fmt.Errorf("entry template list: %w", err)
			}
			infos := []entryInfo{}
			for _, t := range templates {
				infos = append(infos, templateInfoFrom(t))
			}
			result := struct {
				Templates []entryInfo `json:"templates"`
			}{infos}
			return a.emit(result, func(w io.Writer) error { return writeInfos(w, "template", infos) })
		},
	}
}

// findTemplates fetches all pages.
func (a *app) findTemplates(ctx context.Context) (all []*templatev1.Template, err error) {
	err = a.templateAdmin(func(c templatev1.AdminClient) error {
		return pages(func(token string) (string, error) {
			resp, err := c.List(ctx, &templatev1.ListRequest{PageToken: token})
			all = append(all, resp.GetTemplates()...)
			return resp.GetNextPageToken(), err
		})
	})
	return all, err
}

func newTemplateShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show TEMPLATE",
		Short:             "Show one template",
		Example:           `  policyctl entry template show users`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeTemplates,
		RunE: func(cmd *cobra.Command, args []string) error {
			var resp *templatev1.GetResponse
			err := a.templateAdmin(func(c templatev1.AdminClient) (err error) {
				resp, err = c.Get(cmd.Context(), &templatev1.GetRequest{Id: args[0]})
				return err
			})
			if err != nil {
				return fmt.Errorf("entry template show %s: %w", args[0], err)
			}
			return a.emitTemplate(resp.GetTemplate(), nil)
		},
	}
}

func newTemplateDeleteCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete TEMPLATE...",
		Short: "Delete templates",
		Long: `Delete templates. Agents that hold them drop them at once; SVIDs that workloads
already have stay valid until they expire (policyctl svid revoke ends them).`,
		Example:           `  policyctl entry template delete users`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeTemplates,
		RunE: func(cmd *cobra.Command, args []string) error {
			deleted, failed := []string{}, error(nil)
			err := a.templateAdmin(func(c templatev1.AdminClient) error {
				for _, id := range args {
					if _, err := c.Delete(cmd.Context(), &templatev1.DeleteRequest{Id: id}); err != nil {
						failed = errors.Join(failed, fmt.Errorf("%s: %w", id, rpcError(err)))
						continue
					}
					deleted = append(deleted, id)
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("entry template delete: %w", err)
			}
			if err := errors.Join(failed, a.emitDeleted(deleted)); err != nil {
				return fmt.Errorf("entry template delete: %w", err)
			}
			return nil
		},
	}
}

// emitTemplate shows a template, and on stderr what is doubtful about it.
func (a *app) emitTemplate(pb *templatev1.Template, warnings []string) error {
	for _, w := range warnings {
		fmt.Fprintln(a.stderr, "warning:", terminalSafe(w))
	}
	return templateInfoFrom(pb).emit(a, "template")
}

// completeTemplates offers the IDs of templates, if the control plane answers.
func (a *app) completeTemplates(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if cmd.Name() != "delete" && len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	templates, err := a.findTemplates(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, t := range templates {
		ids = append(ids, t.GetId()+"\t"+t.GetSpiffeId())
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
