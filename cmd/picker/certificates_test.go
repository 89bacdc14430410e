package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3" //nolint:depguard // the test plays the proxy
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// authority issues certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = newKey(t)
	a.cert = a.sign(template, template, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// issue makes a certificate for 127.0.0.1, as server or client, and its key, in PEM.
func (a *authority) issue() (cert, key []byte) {
	a.t.Helper()
	private := newKey(a.t)
	leaf := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, private)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// client dials with trust in an authority and, if one is given, with a certificate by another.
func (a *authority) client(p *program, by *authority) *grpc.ClientConn {
	a.t.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AddCert(a.cert)
	if by != nil {
		pair, err := tls.X509KeyPair(by.issue())
		if err != nil {
			a.t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	conn, err := grpc.NewClient(p.addresses["extproc"], grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// check asks for the server's health over a connection.
func check(t *testing.T, conn *grpc.ClientConn) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	return err
}

func TestRunServesTLSAndReadsCertificatesAgain(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		writePools(t, path, string(content))
		return path
	}
	ours, clients, others := newAuthority(t), newAuthority(t), newAuthority(t)
	cert, key := ours.issue()
	p := start(t, "--static", "../../samples/static/pools.yaml", "--drain-timeout=0s",
		"--tls-cert-file", write("cert", cert), "--tls-key-file", write("key", key), "--tls-client-ca-file", write("ca", clients.pem()))

	// 1. Only clients with a certificate by the authority are served.
	conn := ours.client(p, clients)
	if err := check(t, conn); err != nil {
		t.Fatal(err)
	}
	for name, by := range map[string]*authority{"no certificate": nil, "another's certificate": others} {
		if err := check(t, ours.client(p, by)); status.Code(err) != codes.Unavailable {
			t.Errorf("a client with %s gets %v, want unavailable", name, err)
		}
	}
	// 2. A certificate without its key changes nothing, and is logged.
	ctx := metadata.AppendToOutgoingContext(t.Context(), pool.NameHeader, "models/llama")
	stream, err := extprocv3.NewExternalProcessorClient(conn).Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = others.issue()
	write("cert", cert)
	eventually(t, "a word on the wrong files", func() bool { return p.logged("last valid ones stay") })
	if err := check(t, ours.client(p, clients)); err != nil {
		t.Errorf("with wrong files: %v", err)
	}
	// 3. With its key it serves new connections, as does the new authority of clients.
	write("key", key)
	write("ca", others.pem())
	eventually(t, "the new certificate", func() bool { return check(t, others.client(p, others)) == nil })
	eventually(t, "the new authority", func() bool { return check(t, others.client(p, clients)) != nil })
	// 4. A stream that was open goes on.
	headers := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{
		RequestHeaders: &extprocv3.HttpHeaders{EndOfStream: true},
	}}
	if err := stream.Send(headers); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Errorf("the stream that was open ends with %v", err)
	}
}

func TestCertificatesThatAreWrong(t *testing.T) {
	cert, key := newAuthority(t).issue()
	tests := map[string]struct{ cert, key, ca []byte }{
		"a key of another":         {cert, func() []byte { _, k := newAuthority(t).issue(); return k }(), nil},
		"no certificate":           {[]byte("nonsense"), key, nil},
		"no authority in its file": {cert, key, []byte("nonsense")},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			o := Options{TLSCertFile: filepath.Join(dir, "cert"), TLSKeyFile: filepath.Join(dir, "key")}
			files := map[string][]byte{o.TLSCertFile: tt.cert, o.TLSKeyFile: tt.key}
			if tt.ca != nil {
				o.TLSClientCAFile = filepath.Join(dir, "ca")
				files[o.TLSClientCAFile] = tt.ca
			}
			for path, content := range files {
				if err := os.WriteFile(path, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := openCertificates(o, nil); err == nil {
				t.Error("no error")
			}
		})
	}
}
