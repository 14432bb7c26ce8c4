package main

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// svidCredentials are TLS credentials whose connections last as long as what the
// peer has proved: they are closed when its SVID expires. A client that has
// another by then connects again with that; were only its streams ended, it
// would open them anew on the same connection, and be refused until that one
// is old.
type svidCredentials struct {
	credentials.TransportCredentials
}

// svidInfo is what is known of a peer, and its connection.
type svidInfo struct {
	credentials.TLSInfo
	conn net.Conn
}

// ServerHandshake implements credentials.TransportCredentials.
func (c svidCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok || len(tlsInfo.State.PeerCertificates) == 0 {
		return conn, info, nil // peerLeaf refuses its calls.
	}
	left := time.Until(tlsInfo.State.PeerCertificates[0].NotAfter)
	bounded := &boundedConn{Conn: conn, expiry: time.AfterFunc(left, func() { _ = conn.Close() })}
	return bounded, svidInfo{TLSInfo: tlsInfo, conn: bounded}, nil
}

// Clone implements credentials.TransportCredentials.
func (c svidCredentials) Clone() credentials.TransportCredentials {
	return svidCredentials{c.TransportCredentials.Clone()}
}

type boundedConn struct {
	net.Conn
	expiry *time.Timer
}

func (c *boundedConn) Close() error {
	c.expiry.Stop()
	return c.Conn.Close()
}

// hangUp closes the connection of a call.
func hangUp(ctx context.Context) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(svidInfo); ok {
			_ = info.conn.Close()
		}
	}
}
