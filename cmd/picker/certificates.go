package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// certificates are a server's certificate and key and, if it asks clients for theirs, the authorities: files that are
// read again when their content changes. A connection keeps the certificates that it began with, and so do its streams.
//
// No library does all that is needed here. gRPC's pemfile provider reports no wrong files at the start, and logs the
// private key if it does not fit the certificate. controller-runtime's certwatcher reads no authorities.
type certificates struct {
	files  []string // certificate, key and, optionally, authorities
	log    *slog.Logger
	config atomic.Pointer[tls.Config]
	read   [][]byte // the files' content as last seen, right or wrong
}

// openCertificates reads the files, which must be valid at the start.
func openCertificates(o Options, log *slog.Logger) (*certificates, error) {
	c := &certificates{files: []string{o.TLSCertFile, o.TLSKeyFile}, log: log}
	if o.TLSClientCAFile != "" {
		c.files = append(c.files, o.TLSClientCAFile)
	}
	if _, err := c.load(); err != nil {
		return nil, fmt.Errorf("reading TLS certificates: %w", err)
	}
	return c, nil
}

// credentials returns gRPC credentials that use the files' content at the time of each connection.
func (c *certificates) credentials() credentials.TransportCredentials {
	return exceptInMemory{credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.config.Load(), nil },
	})}
}

// exceptInMemory requires TLS of all connections except the picker's own to itself.
type exceptInMemory struct {
	credentials.TransportCredentials
}

func (c exceptInMemory) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if conn.LocalAddr().Network() == inMemory {
		return insecure.NewCredentials().ServerHandshake(conn)
	}
	return c.TransportCredentials.ServerHandshake(conn)
}

// inMemory is package bufconn's name for its network.
const inMemory = "bufconn"

// run reads the files every interval until the context ends. If they are invalid, such as a certificate whose key is
// not written yet, the last valid ones stay in use, and one error is logged. As for pools, run compares the content and
// needs no file watch.
func (c *certificates) run(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch changed, err := c.load(); {
		case !changed:
		case err != nil:
			c.log.Error("the TLS certificates are invalid; the last valid ones stay in use", "error", err)
		default:
			c.log.Info("read the changed TLS certificates")
		}
	}
}

// load reads the files and, if they are valid, uses them. It reports whether they changed.
func (c *certificates) load() (changed bool, err error) {
	var read [][]byte
	var wrong []error
	for _, file := range c.files {
		content, err := os.ReadFile(file)
		read, wrong = append(read, content), append(wrong, err)
	}
	err = errors.Join(wrong...)
	if slices.EqualFunc(c.read, read, bytes.Equal) {
		return false, err
	}
	c.read = read
	if err != nil {
		return true, err
	}
	pair, err := tls.X509KeyPair(read[0], read[1])
	if err != nil {
		return true, fmt.Errorf("%s and %s: %w", c.files[0], c.files[1], err)
	}
	config := &tls.Config{
		MinVersion:   tls.VersionTLS12, // the highest that Envoy offers by default
		Certificates: []tls.Certificate{pair},
		NextProtos:   []string{"h2"},
		// A resumed session would skip the check against the current authorities, and proxies connect seldom.
		SessionTicketsDisabled: true,
	}
	if len(read) > 2 {
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(read[2]) {
			return true, fmt.Errorf("%s holds no certificate", c.files[2])
		}
	}
	c.config.Store(config)
	return true, nil
}
