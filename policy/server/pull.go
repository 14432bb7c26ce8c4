package server

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/policyv1"
)

// Pull takes a bundle that was fetched from a source, in the same way as a
// push; where activation takes approvals, it becomes a proposal. What is wrong
// with it is a policy.Refused, which is on record; any other error may pass.
//
// Something that came from the source before, and then something else, is
// refused as well: a publisher's signature carries no order, so that whoever
// holds the source could bring an old bundle back.
func (s *Server) Pull(ctx context.Context, source string, data []byte) error {
	archive, err := bundle.ReadArchive(data)
	var digest [32]byte
	if err == nil {
		// Not of the bytes: those of data can be changed without the signature.
		digest, err = archive.Content.SignedDigest()
	}
	if err == nil { // Otherwise, Push says so and puts it on record.
		ever, last, err := s.store.Took(ctx, source, digest)
		switch {
		case err != nil:
			return err
		case last:
			return nil
		case ever:
			problems := policy.Refused{{Code: policy.ProblemSignature, Message: "it came from this source before, and something newer after it: " +
				"to go back, use policyctl policy rollback, or publish the old files with another revision in the .manifest"}}
			return errors.Join(problems, s.refused(ctx, "pulled", problems))
		}
	}
	if err := s.free(); err != nil {
		return err // It is tried again when the rollout has ended.
	}
	admin := &adminService{Server: s}
	resp, err := admin.Push(ctx, &policyv1.PushRequest{Bundle: data, Message: cut("from "+source, maxMessage)})
	var problems []*policyv1.Problem
	if status.Code(err) == codes.FailedPrecondition {
		var proposed *policyv1.ProposeResponse
		proposed, err = admin.Propose(ctx, &policyv1.ProposeRequest{Bundle: data, Message: cut("from "+source, maxMessage)})
		problems = proposed.GetProblems()
	} else {
		problems = resp.GetProblems()
	}
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return refusedBy(problems)
	}
	return s.store.Take(ctx, source, digest)
}

func refusedBy(list []*policyv1.Problem) policy.Refused {
	var problems policy.Refused
	for _, p := range list {
		problems = append(problems, policy.Problem{File: p.GetFile(), Line: int(p.GetLine()), Column: int(p.GetColumn()), Code: p.GetCode(), Message: p.GetMessage()})
	}
	return problems
}
