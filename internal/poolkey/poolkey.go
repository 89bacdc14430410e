// Package poolkey is the secret that the controller and its pickers share, and what follows from it: the token by which a
// waypoint shows that it serves a pool, and the seed of the hashes of prompts.
//
// Behind ztunnel a picker does not see who calls, only that it is a waypoint that is admitted. So the controller puts a
// pool's token into the configuration of the waypoints that serve the pool, where no other namespace can read it.
package poolkey

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SecretName is the Secret that holds the key, in the picker's namespace. The controller makes it.
const SecretName = "inference-picker-key"

// The Secret's data.
const (
	keyData      = "key"           // Length bytes
	enforcedData = "enforced-from" // a time as RFC 3339 has it
)

// grace is how long after a controller began pickers serve those who show no token of the key: until then the configuration
// of all waypoints has been written with it and has reached them, also where the controller before made no tokens.
const grace = 10 * time.Minute

// Length is a key's length in bytes.
const Length = 32

// tokenBytes are enough of a MAC that nobody guesses it by asking.
const tokenBytes = 12

// Key is the secret.
type Key [Length]byte

// New makes a key.
func New() Key {
	var k Key
	_, _ = rand.Read(k[:]) // never fails
	return k
}

// Token is what a waypoint shows to ask about the pool of this name, "namespace/name". It is the head of an HMAC-SHA-256
// (RFC 2104) in base64url.
func (k Key) Token(pool string) string {
	sum := k.mac("pool " + pool)
	return base64.RawURLEncoding.EncodeToString(sum[:tokenBytes])
}

// Seed begins the hashes of prompts, so that nobody outside can tell which texts collide. All pickers of a cluster have
// the same.
func (k Key) Seed() uint64 { return binary.LittleEndian.Uint64(k.mac("seed")) }

func (k Key) mac(of string) []byte {
	m := hmac.New(sha256.New, k[:])
	m.Write([]byte(of))
	return m.Sum(nil)
}

// secret is the object that holds a key which is made now.
func (k Key) secret(namespace string, now time.Time) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: SecretName},
		Type:       corev1.SecretTypeOpaque,
		Data: map[string][]byte{
			keyData:      k[:],
			enforcedData: []byte(now.Add(grace).UTC().Format(time.RFC3339)),
		},
	}
}

// read takes a key from its Secret, and the time from which its tokens are asked for; the zero time where it has none.
func read(s *corev1.Secret) (Key, time.Time, error) {
	data := s.Data[keyData]
	if len(data) != Length {
		return Key{}, time.Time{}, fmt.Errorf("reading Secret %s/%s: %s has %d bytes, want %d; delete it and restart the controller, which makes another",
			s.Namespace, s.Name, keyData, len(data), Length)
	}
	var enforced time.Time
	if text := s.Data[enforcedData]; len(text) > 0 {
		var err error
		if enforced, err = time.Parse(time.RFC3339, string(text)); err != nil {
			return Key{}, time.Time{}, fmt.Errorf("reading Secret %s/%s: %s: %w", s.Namespace, s.Name, enforcedData, err)
		}
	}
	return Key(data), enforced, nil
}
