package poolkey

import (
	"context"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// refreshInterval is how often a picker reads the key. It is far shorter than grace, so that pickers have a new key in time.
	refreshInterval = 10 * time.Second
	// firstInterval is the interval before the first read that succeeds, as the picker is not ready until then.
	firstInterval = time.Second
)

// maxTokens bounds the tokens that a ring caches, at one for each pool.
const maxTokens = 10_000

// Ring keeps the current key in a picker and checks tokens. Its methods may be called from several goroutines.
type Ring struct {
	reader    client.Reader
	namespace string
	seed      func(uint64)
	log       *slog.Logger
	now       func() time.Time

	state   atomic.Pointer[keyState] // nil before there was a key
	problem string                   // the problem that was logged last
}

// keyState is the current key, and the time from which its tokens are checked.
type keyState struct {
	current  *tokens
	enforced time.Time
}

// NewRing makes a ring without a key, which Run reads in the namespace. Run calls seed with the seed of each new key.
func NewRing(config *rest.Config, namespace string, seed func(uint64), log *slog.Logger) (*Ring, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("building the scheme of Secrets: %w", err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("making the client for Secrets: %w", err)
	}
	return newRing(c, namespace, seed, log), nil
}

func newRing(reader client.Reader, namespace string, seed func(uint64), log *slog.Logger) *Ring {
	return &Ring{reader: reader, namespace: namespace, seed: seed, log: log, now: time.Now}
}

// Admits reports whether a caller with this token may ask about a pool, "namespace/name". While there is no key, every
// caller that the mesh admits may.
func (r *Ring) Admits(pool, token string) bool {
	h := r.state.Load()
	switch {
	case h == nil:
		return true
	case r.now().Before(h.enforced): // some waypoints have no token yet, or one of an earlier key
		return true
	default:
		return h.current.has(pool, token)
	}
}

// Peers returns the seed of the key pair by which pickers know each other; nil while there is no key.
func (r *Ring) Peers() []byte {
	h := r.state.Load()
	if h == nil {
		return nil
	}
	return h.current.key.Peers()
}

// Run reads the Secret again and again until the context ends. It calls synced once, after the first read that shows
// whether there is a key.
func (r *Ring) Run(ctx context.Context, synced func()) {
	var once sync.Once
	for wait := firstInterval; ctx.Err() == nil; {
		if r.refresh(ctx) {
			once.Do(synced)
			wait = refreshInterval
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// refresh reads the Secret, and reports whether it is known now which key there is, if any. A picker that may not read the
// Secret logs that and checks no tokens: the mesh's own policy still admits only waypoints.
func (r *Ring) refresh(ctx context.Context) (known bool) {
	var s corev1.Secret
	err := r.reader.Get(ctx, types.NamespacedName{Namespace: r.namespace, Name: SecretName}, &s)
	var key Key
	var enforced time.Time
	if err == nil {
		key, enforced, err = read(&s)
	}
	switch {
	case err == nil:
		r.problem = ""
		if r.store(key, enforced) {
			r.seed(key.Seed())
			r.log.Info("read a new key for the tokens of pools", "enforcedFrom", enforced)
		}
		return true
	case apierrors.IsNotFound(err): // the last key stays in use: the controller soon creates another
		if r.state.Load() == nil {
			r.logProblem("the controller has not created the key for the tokens of pools yet")
		}
		return true
	}
	r.logProblem(fmt.Sprintf("the key for the tokens of pools cannot be read: %v", err))
	return apierrors.IsForbidden(err) || s.Name != ""
}

// logProblem logs a problem, unless it was the last one logged.
func (r *Ring) logProblem(problem string) {
	if problem != r.problem {
		r.problem = problem
		r.log.Error("any admitted waypoint may ask about any pool, as there is no key", "problem", problem)
	}
}

// store stores a key, and reports whether it differs from the one before.
func (r *Ring) store(key Key, enforced time.Time) bool {
	old := r.state.Load()
	if old != nil && old.current.key == key {
		r.state.Store(&keyState{old.current, enforced})
		return false
	}
	r.state.Store(&keyState{&tokens{key: key}, enforced})
	return true
}

// tokens makes and caches the tokens of a key.
type tokens struct {
	key   Key
	n     atomic.Int64
	known sync.Map // token by pool
}

func (t *tokens) has(pool, token string) bool {
	want, ok := t.known.Load(pool)
	if !ok {
		made := t.key.Token(pool)
		want = made
		if t.n.Load() < maxTokens {
			if _, was := t.known.LoadOrStore(pool, made); !was {
				t.n.Add(1)
			}
		}
	}
	return subtle.ConstantTimeCompare([]byte(want.(string)), []byte(token)) == 1
}
