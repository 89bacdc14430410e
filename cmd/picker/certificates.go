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

// certificates are a server's certificate and key, and the authorities of its clients if it asks for theirs: files,
// read again when their content changes. Connections keep what they began with; streams never notice.
//
// No library does this as it must be done here: gRPC's pemfile provider says nothing of wrong files at the start and
// writes the private key into its log where it does not fit the certificate, and controller-runtime's certwatcher reads
// no authorities.
type certificates struct {
	files  []string // certificate, key and, optionally, authorities
	log    *slog.Logger
	config atomic.Pointer[tls.Config]
	read   [][]byte // the files' content as last seen, right or wrong
}

// openCertificates reads the files, which must be in order at the start.
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

// credentials are gRPC's, with whatever the files say when a connection comes.
func (c *certificates) credentials() credentials.TransportCredentials {
	return exceptInMemory{credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.config.Load(), nil },
	})}
}

// exceptInMemory asks for TLS of all connections but those of the picker to itself.
type exceptInMemory struct {
	credentials.TransportCredentials
}

func (c exceptInMemory) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if conn.LocalAddr().Network() == inMemory {
		return insecure.NewCredentials().ServerHandshake(conn)
	}
	return c.TransportCredentials.ServerHandshake(conn)
}

// inMemory is how package bufconn names its network.
const inMemory = "bufconn"

// run looks at the files every interval until the context ends. Files that are wrong, such as a certificate whose key
// is still to be written, leave those in force that were right, and are told once. As with pools, the content is
// compared rather than watched for.
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
			c.log.Error("TLS certificates are wrong; the last good ones stay in force", "error", err)
		default:
			c.log.Info("TLS certificates were read again")
		}
	}
}

// load reads the files and, if they are in order, puts them in force. It reports whether they are others than before.
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
		// A resumed session would pass by the authorities of the time; proxies connect seldom.
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
