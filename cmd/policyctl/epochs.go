package main

import (
	"fmt"
	"io"
	"time"

	"github.com/writ-dev/writ/policy/policyv1"
)

// epochRaise is the JSON form of the act that raised the epoch.
type epochRaise struct {
	Epoch  uint64    `json:"epoch"`
	From   string    `json:"from"`
	Raised time.Time `json:"raised"`
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
	// Statement is the JWS of the decision key.
	Statement string `json:"statement"`
}

func epochRaises(list []*policyv1.EpochRaise) []epochRaise {
	raises := []epochRaise{}
	for _, r := range list {
		raises = append(raises, epochRaise{
			Epoch: r.GetEpoch(), From: revisionText(r.GetFrom()), Raised: time.Unix(0, r.GetRaised()).UTC(),
			Actor: r.GetActor(), Reason: r.GetReason(), Statement: r.GetStatement(),
		})
	}
	return raises
}

func writeEpochs(w io.Writer, raises []epochRaise) error {
	for _, r := range raises {
		if _, err := fmt.Fprintf(w, "epoch %d since %s, raised from %s by %s: %s\n", r.Epoch, r.Raised.Format(time.RFC3339), r.From,
			terminalSafe(r.Actor), terminalSafe(r.Reason)); err != nil {
			return err
		}
	}
	return nil
}
