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
	// interval is how often a picker looks whether there is another key: one small read, long before one is asked for.
	interval = 10 * time.Second
	// soon is how long a picker waits that is not ready before it has been able to look.
	soon = time.Second
)

// maxTokens bounds the tokens that a ring remembers, which are some of the pools that there are.
const maxTokens = 10_000

// Ring is what a picker knows of keys. Its methods may be called from several goroutines.
type Ring struct {
	reader    client.Reader
	namespace string
	seed      func(uint64)
	log       *slog.Logger
	now       func() time.Time

	held    atomic.Pointer[held] // nil before there was a key
	problem string               // the last that was told
}

// held is the key at one time, and from when on its tokens are asked for.
type held struct {
	current  *tokens
	enforced time.Time
}

// NewRing makes a ring without a key, which is to be read in a namespace. The seed of each new key is told to seed.
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

// Admits reports whether who shows the token may ask about the pool of this name, "namespace/name". Where no controller
// has made a key, everybody may whom the mesh admits.
func (r *Ring) Admits(pool, token string) bool {
	h := r.held.Load()
	switch {
	case h == nil:
		return true
	case r.now().Before(h.enforced): // waypoints have no token yet, or one of a key that this picker never saw
		return true
	default:
		return h.current.has(pool, token)
	}
}

// Run keeps the ring as the Secret is until the context ends. It calls synced once, when it has first been able to tell
// whether there is a key.
func (r *Ring) Run(ctx context.Context, synced func()) {
	var once sync.Once
	for wait := soon; ctx.Err() == nil; {
		if r.look(ctx) {
			once.Do(synced)
			wait = interval
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// look reads the Secret, and reports whether that told what the key is. That none may be read is told to people, and
// counts as that there is none: the mesh's own policy still keeps all but waypoints away.
func (r *Ring) look(ctx context.Context) (known bool) {
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
		if r.take(key, enforced) {
			r.seed(key.Seed())
			r.log.Info("took the key of pools' tokens", "enforcedFrom", enforced)
		}
		return true
	case apierrors.IsNotFound(err): // what was known stays: a key that is deleted is soon another
		if r.held.Load() == nil {
			r.tell("there is no key of pools' tokens yet, which the controller makes")
		}
		return true
	}
	r.tell(fmt.Sprintf("the key of pools' tokens cannot be read: %v", err))
	return apierrors.IsForbidden(err) || s.Name != ""
}

// tell says once what is wrong.
func (r *Ring) tell(problem string) {
	if problem != r.problem {
		r.problem = problem
		r.log.Error("without a key any waypoint that is admitted may ask about any pool", "problem", problem)
	}
}

// take takes a key, and reports whether it is another than before.
func (r *Ring) take(key Key, enforced time.Time) bool {
	old := r.held.Load()
	if old != nil && old.current.key == key {
		r.held.Store(&held{old.current, enforced})
		return false
	}
	r.held.Store(&held{&tokens{key: key}, enforced})
	return true
}

// tokens are a key's, each made once.
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
