package poolkey

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

const (
	system = "inference-system"
	llama  = "models/llama"
)

func fakeClient(t *testing.T) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).Build()
}

func ensure(t *testing.T, c client.Client) Key {
	t.Helper()
	k, err := Ensure(t.Context(), c, system, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestTokensAreOfOnePoolAndKey(t *testing.T) {
	a, b := New(), New()
	seen := map[string]bool{}
	for _, token := range []string{a.Token(llama), a.Token("models/llama2"), a.Token("other/llama"), b.Token(llama)} {
		if len(token) != 16 || seen[token] {
			t.Errorf("the token %q is not 16 characters of its own", token)
		}
		seen[token] = true
	}
	if same := a; same.Token(llama) != a.Token(llama) || same.Seed() != a.Seed() || a.Seed() == b.Seed() {
		t.Error("tokens and seeds do not follow from the key")
	}
}

// TestEnsure checks that controllers which start together get one key, and that a key of a wrong length is an error.
func TestEnsure(t *testing.T) {
	c := fakeClient(t)
	if first, second := ensure(t, c), ensure(t, c); first != second {
		t.Error("the second one makes another key")
	}
	if err := Delete(t.Context(), c, system); err != nil {
		t.Fatal(err)
	}
	if err := Delete(t.Context(), c, system); err != nil {
		t.Errorf("a key that is not there: %v", err)
	}
	cut := New().secret(system, time.Now())
	cut.Data[keyData] = cut.Data[keyData][:5]
	if err := c.Create(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(t.Context(), c, system, time.Now()); err == nil || !strings.Contains(err.Error(), "has 5 bytes, want 32") {
		t.Errorf("a key of 5 bytes: %v", err)
	}
}

// TestKeep checks that a controller ends once its key is no longer the Secret's.
func TestKeep(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, c client.Client){
		"gone":    func(t *testing.T, c client.Client) { must(t, Delete(t.Context(), c, system)) },
		"another": func(t *testing.T, c client.Client) { must(t, Delete(t.Context(), c, system)); ensure(t, c) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := fakeClient(t)
				key := ensure(t, c)
				ended := make(chan error, 1)
				go func() { ended <- Keep(t.Context(), c, system, key) }()
				time.Sleep(3 * keepInterval)
				select {
				case err := <-ended:
					t.Fatalf("it ended although nothing has changed: %v", err)
				default:
				}
				change(t, c)
				if err := <-ended; err == nil || !strings.Contains(err.Error(), "has changed") {
					t.Errorf("it ended with %v", err)
				}
			})
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// running is a ring that reads a Secret.
type running struct {
	*Ring
	t      *testing.T
	seeds  []uint64
	synced int
	log    bytes.Buffer
}

func run(t *testing.T, reader client.Reader) *running {
	t.Helper()
	r := &running{t: t}
	r.Ring = newRing(reader, system, func(seed uint64) { r.seeds = append(r.seeds, seed) }, slog.New(slog.NewTextHandler(&r.log, nil)))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx, func() { r.synced++ })
	}()
	t.Cleanup(func() { stop(); <-ended })
	synctest.Wait()
	return r
}

func (r *running) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (r *running) admits(token string, want bool) {
	r.t.Helper()
	if got := r.Admits(llama, token); got != want {
		r.t.Errorf("admits %q: %v, want %v", token, got, want)
	}
}

// TestRing follows a key from before its creation until after its replacement.
func TestRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fakeClient(t)
		r := run(t, c)
		r.admits("", true) // no controller has been here
		if r.synced != 1 || len(r.seeds) != 0 {
			t.Errorf("synced %d times with %d seeds, want once without", r.synced, len(r.seeds))
		}

		first := ensure(t, c)
		r.wait(refreshInterval)
		r.admits(first.Token(llama), true)
		r.admits("of a controller that went", true) // waypoints may have no better one yet
		r.admits("", true)
		r.wait(grace)
		r.admits(first.Token(llama), true)
		r.admits(first.Token("models/other"), false)
		r.admits("nonsense", false)
		r.admits("", false)

		if again := ensure(t, c); again != first { // a controller that begins, and may write tokens where none were
			t.Error("a controller that begins makes another key")
		}
		r.wait(refreshInterval)
		r.admits("", true)
		r.wait(grace)
		r.admits("", false)

		if err := Delete(t.Context(), c, system); err != nil {
			t.Fatal(err)
		}
		r.wait(refreshInterval)
		r.admits(first.Token(llama), true)
		r.admits("", false)
		second := ensure(t, c)
		r.wait(refreshInterval)
		r.admits(second.Token(llama), true)
		r.admits(first.Token(llama), true)
		r.wait(grace)
		r.admits(first.Token(llama), false)
		r.admits(second.Token(llama), true)
		if want := []uint64{first.Seed(), second.Seed()}; len(r.seeds) != 2 || r.seeds[0] != want[0] || r.seeds[1] != want[1] || r.synced != 1 {
			t.Errorf("seeds %v, synced %d times, want %v and once", r.seeds, r.synced, want)
		}
	})
}

// TestRingEnforces checks that an administrator can have tokens checked at once.
func TestRingEnforces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := fakeClient(t)
		k := New()
		s := k.secret(system, time.Now())
		s.Data[enforcedData] = nil
		if err := c.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		r := run(t, c)
		r.admits("", false)
		r.admits(k.Token(llama), true)
	})
}

// TestRingCannotRead waits for an API server that does not answer, and goes on without a key that it may not read.
func TestRingCannotRead(t *testing.T) {
	secrets := schema.GroupResource{Resource: "secrets"}
	tests := map[string]struct {
		err    error
		synced int
		told   string
	}{
		"no answer":     {errors.New("connection refused"), 0, "connection refused"},
		"not permitted": {apierrors.NewForbidden(secrets, SecretName, errors.New("no right")), 1, "no right"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := run(t, interceptor.NewClient(fakeClient(t), interceptor.Funcs{
					Get: func(context.Context, client.WithWatch, client.ObjectKey, client.Object, ...client.GetOption) error {
						return tt.err
					},
				}))
				r.wait(time.Minute)
				if r.synced != tt.synced || strings.Count(r.log.String(), tt.told) != 1 {
					t.Errorf("synced %d times, want %d, and told once; the log:\n%s", r.synced, tt.synced, r.log.String())
				}
				r.admits("", true)
			})
		})
	}
}

func BenchmarkAdmits(b *testing.B) {
	k := New()
	r := newRing(nil, system, nil, nil)
	r.store(k, time.Time{})
	token := k.Token(llama)
	b.ReportAllocs()
	for b.Loop() {
		if !r.Admits(llama, token) {
			b.Fatal("not admitted")
		}
	}
}
