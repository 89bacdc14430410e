package peers

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// Pickers know each other by a key pair that all of them have: it is made of a secret that only they and the controller can
// read. Each connection proves on both sides that the other one has the key. It is encrypted with keys of its own (TLS 1.3),
// so that who learns the secret later cannot read what was told before. Certificates are made at the start, and never leave
// the process but for the other pickers.

var (
	errNoSecret = errors.New("the secret by which pickers know each other is not there yet: the controller makes it")
	errStranger = errors.New("the other side of the connection is no picker that has this picker's key")
)

// tlsOf makes the configuration of both sides from the seed of the key pair.
func tlsOf(seed []byte) (*tls.Config, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, errNoSecret
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "inference-picker"},
		NotAfter:     time.Now().AddDate(100, 0, 0), // nobody looks at the dates: clocks may differ
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return nil, fmt.Errorf("making the certificate for other pickers: %w", err)
	}
	own, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("making the certificate for other pickers: %w", err)
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: private}},
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, //nolint:gosec // VerifyConnection compares the key itself, which no authority signs
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 || !bytes.Equal(s.PeerCertificates[0].RawSubjectPublicKeyInfo, own) {
				return errStranger
			}
			return nil
		},
	}, nil
}

// identity keeps the configuration of the current secret: strangers who connect must not make the picker sign anything.
type identity struct {
	secret func() []byte

	mu     sync.Mutex
	seed   []byte
	config *tls.Config
}

func (i *identity) current() (*tls.Config, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	seed := i.secret()
	if i.config != nil && bytes.Equal(seed, i.seed) {
		return i.config, nil
	}
	config, err := tlsOf(seed)
	if err == nil {
		i.seed, i.config = seed, config
	}
	return config, err
}

// forServer are credentials that use the secret that is there when a connection comes.
func (i *identity) forServer() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return i.current() },
	})
}
