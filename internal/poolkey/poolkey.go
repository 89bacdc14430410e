// Package poolkey keeps the secret key that the controller and its pickers share, and derives from it the tokens of pools
// and the seed of prompt hashes. It must not know how waypoints get tokens or how prompts are hashed.
//
// Behind ztunnel a picker cannot see which waypoint calls it, only that the caller is an admitted waypoint. So the
// controller puts a pool's token into the configuration of the waypoints that serve the pool. No other namespace can read it.
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
	enforcedData = "enforced-from" // a time in RFC 3339
)

// grace is how long after a controller's start pickers check no tokens. In this time the controller writes the tokens into
// the configuration of all waypoints, and istiod sends it to them, also if the previous controller made no tokens.
const grace = 10 * time.Minute

// Length is a key's length in bytes.
const Length = 32

// tokenBytes is the length of a token's MAC in bytes, enough that nobody can find it by trying.
const tokenBytes = 12

// Key is the secret key that controller and pickers share.
type Key [Length]byte

// New makes a key.
func New() Key {
	var k Key
	_, _ = rand.Read(k[:]) // never fails
	return k
}

// Token makes the token of a pool, "namespace/name". A waypoint sends it to ask for picks of this pool. It is the head of
// an HMAC-SHA-256 (RFC 2104) in base64url.
func (k Key) Token(pool string) string {
	sum := k.mac("pool " + pool)
	return base64.RawURLEncoding.EncodeToString(sum[:tokenBytes])
}

// Seed makes the seed of prompt hashes, so that nobody outside can compute texts that collide. All pickers of a cluster
// have the same seed.
func (k Key) Seed() uint64 { return binary.LittleEndian.Uint64(k.mac("seed")) }

// Peers makes the seed of the key pair by which pickers know each other.
func (k Key) Peers() []byte { return k.mac("peers") }

func (k Key) mac(of string) []byte {
	m := hmac.New(sha256.New, k[:])
	m.Write([]byte(of))
	return m.Sum(nil)
}

// secret makes the Secret for a key. Pickers check tokens from now plus the grace period on.
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

// read takes from the Secret the key, and the time from which pickers check tokens; the zero time where it has none.
func read(s *corev1.Secret) (Key, time.Time, error) {
	data := s.Data[keyData]
	if len(data) != Length {
		return Key{}, time.Time{}, fmt.Errorf("reading Secret %s/%s: %s has %d bytes, want %d; delete the Secret and restart the controller, which creates another",
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
