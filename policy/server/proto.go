package server

import (
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/revisions"
	"github.com/writ-dev/writ/policy/policyv1"
)

func revisionProto(r policy.Revision) *policyv1.Revision {
	if r.IsZero() {
		return nil
	}
	return &policyv1.Revision{Epoch: r.Epoch, Number: r.Number, Digest: r.Digest[:]}
}

func testsProto(t revisions.Tests) *policyv1.TestReport {
	return &policyv1.TestReport{Passed: uint32(t.Passed), Failed: uint32(t.Failed), Skipped: uint32(t.Skipped)}
}

func problemsProto(problems []policy.Problem) []*policyv1.Problem {
	var out []*policyv1.Problem
	for _, p := range problems {
		out = append(out, &policyv1.Problem{File: p.File, Line: uint32(p.Line), Column: uint32(p.Column), Code: p.Code, Message: p.Message})
	}
	return out
}

func infoProto(info revisions.Info) *policyv1.RevisionInfo {
	return &policyv1.RevisionInfo{
		Revision:   revisionProto(info.Revision),
		Activated:  info.Activated.UnixNano(),
		Author:     info.Author,
		KeyId:      info.KeyID,
		Message:    info.Message,
		Active:     info.Active,
		RollbackOf: info.RollbackOf,
		Tests:      testsProto(info.Tests),

		SourceCommit: info.SourceCommit,
		Publisher:    info.Publisher,
		Approvals:    approvalsProto(info.Approvals),
		Proposal:     info.Proposal,
		Stage:        info.Stage,
		Rollout:      rolloutProto(info.Rollout),
		Engine:       info.Engine,
		EngineReason: info.EngineReason,
	}
}

func approvalsProto(approvals []revisions.Approval) []*policyv1.Approval {
	var out []*policyv1.Approval
	for _, a := range approvals {
		out = append(out, &policyv1.Approval{Approver: a.Approver, KeyId: a.KeyID, Actor: a.Actor, Time: a.Time.UnixNano()})
	}
	return out
}

func rolloutProto(r revisions.Rollout) *policyv1.Rollout {
	if r == (revisions.Rollout{}) {
		return nil
	}
	return &policyv1.Rollout{Percent: uint32(r.Percent), MaxDenyIncrease: uint32(r.MaxDenyIncrease), MinDecisions: r.MinDecisions}
}

func filesProto(content bundle.Content, parts []bundle.Part) []*policyv1.SourceFile {
	publisher := map[string]string{}
	for _, p := range parts {
		for _, f := range p.Content {
			publisher[f.Path] = p.Publisher
		}
	}
	var files []*policyv1.SourceFile
	for _, f := range content {
		files = append(files, &policyv1.SourceFile{Path: f.Path, Content: f.Content, Publisher: publisher[f.Path]})
	}
	return files
}
