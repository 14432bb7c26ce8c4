package server

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/compile"
	"github.com/writ-dev/writ/policy/opa"
	"github.com/writ-dev/writ/policy/policyv1"
)

// compile makes the compiled form of the candidate and notes in info what will
// decide. What cannot be compiled is evaluated, and so is a content that this
// compiler was seen to get wrong. An error is one of the database, or the end of
// ctx.
func (s *Server) compile(ctx context.Context, c *candidate, info *revisions.Info) error {
	if info.Engine == EngineTopdown {
		return nil
	}
	detail, err := s.evaluated(ctx, c)
	if err != nil {
		return err
	}
	if detail != "" {
		info.Engine, info.EngineReason = EngineTopdown, revisions.DivergedPrefix+detail
		return nil
	}
	compiled, report, err := compile.Compile(ctx, c.program, compile.Config{})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		s.cfg.Log.Error("policy cannot be compiled, it is evaluated", "error", err)
		info.Engine, info.EngineReason = EngineTopdown, "not compiled: "+err.Error()
		return nil
	}
	c.compiled = compiled
	info.Engine, info.EngineReason = compile.EngineOf(compiled), leftOver(report)
	return nil
}

// leftOver says how much of a policy is left to the evaluator, empty for
// nothing.
func leftOver(report *compile.Report) string {
	left, all := 0, 0
	for _, service := range report.Services {
		for _, rule := range service.Rules {
			all++
			if rule.Result == compile.Guarded || rule.Result == compile.Topdown {
				left++
			}
		}
	}
	if left == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d rules are not compiled as a whole", left, all)
}

// CompileReport implements policyv1.Admin: what became of each rule. It is made
// anew, by the compiler of this build.
func (s *adminService) CompileReport(ctx context.Context, req *policyv1.CompileReportRequest) (*policyv1.CompileReportResponse, error) {
	info, content, err := s.get(ctx, req.Number)
	if err != nil {
		return nil, err
	}
	loaded, err := opa.Load(content)
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "revision %d: %v", info.Revision.Number, err)
	}
	_, report, err := compile.Compile(ctx, loaded, compile.Config{})
	if err != nil {
		return nil, status.Errorf(codes.Internal, "revision %d: %v", info.Revision.Number, err)
	}
	doc, err := json.Marshal(report)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &policyv1.CompileReportResponse{Info: infoProto(info), Report: doc}, nil
}
