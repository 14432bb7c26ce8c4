package policyv1

// InstanceKey is the gRPC metadata of a Watch by which a follower tells apart
// the replicas of one SPIFFE ID: a text that stays the same over restarts. Which
// of them get a rollout first depends on it.
const InstanceKey = "writ-instance"
