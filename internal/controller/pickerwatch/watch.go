// Package pickerwatch finds pickers whose node has vanished, long before Kubernetes does: it connects to each ready picker
// twice a second. It must not know a Kubernetes client, or decide how a lost picker is withdrawn.
//
// A picker that is silent is not yet lost: the controller itself may be cut off. So a picker counts as lost only if another
// witness agrees. Either another picker answers the controller, or a waypoint has had calls without a pick meanwhile.
package pickerwatch

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

const (
	// askTimeout is how long a picker may take to say a first byte. A picker on a loaded node takes some milliseconds.
	askTimeout = 400 * time.Millisecond
	// silentTries is how many tries in a row must have no answer. A single lost packet delays one try only.
	silentTries = 3
	// lateBy is the excess over askTimeout from which a try counts as held up by the controller's own node.
	lateBy = 200 * time.Millisecond
)

// Picker is a picker that Kubernetes takes for ready.
type Picker struct {
	Name    types.NamespacedName
	UID     types.UID
	Address netip.AddrPort
}

// Witnesses are what a Watch asks beside the pickers themselves.
type Witnesses struct {
	// List returns the pickers that Kubernetes takes for ready.
	List func(context.Context) ([]Picker, error)
	// Look has the waypoints' counters read soon. It must not block.
	Look func()
	// Unpicked reports whether a waypoint has had calls without a pick since a time.
	Unpicked func(since time.Time) bool
}

// Watch watches pickers.
type Watch struct {
	Witnesses
	withdraw func(context.Context, Picker, time.Duration) error
	failed   func(error)
	ask      func(context.Context, netip.AddrPort) (heard bool)
	clock    clock.WithTicker
	known    map[types.UID]*history
}

// history is what is known of a picker.
type history struct {
	// heard says that the picker has answered since it was first seen, or since it was last withdrawn. A picker that the
	// controller cannot reach at all is so never withdrawn, and one that Kubernetes insists on is withdrawn once.
	heard bool
	// silent is the number of tries without an answer since the last answer, and since is the time of the first of them.
	silent int
	since  time.Time
}

// New makes a Watch that calls withdraw with each picker that is lost and with how long it has been silent, and failed with
// each error of List or of withdraw.
func New(w Witnesses, withdraw func(context.Context, Picker, time.Duration) error, failed func(error)) *Watch {
	return newWatch(w, withdraw, failed, ask, clock.RealClock{})
}

func newWatch(
	w Witnesses, withdraw func(context.Context, Picker, time.Duration) error, failed func(error),
	ask func(context.Context, netip.AddrPort) bool, ticks clock.WithTicker,
) *Watch {
	return &Watch{Witnesses: w, withdraw: withdraw, failed: failed, ask: ask, clock: ticks, known: map[types.UID]*history{}}
}

// Run asks all pickers every interval until ctx ends.
func (w *Watch) Run(ctx context.Context, interval time.Duration) {
	ticker := w.clock.NewTicker(interval)
	defer ticker.Stop()
	for {
		w.round(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
	}
}

// answer is the outcome of a try.
type answer int

const (
	unknown answer = iota // the try was held up here
	silence
	sound
)

// round asks each picker once, all at the same time, and withdraws those that are lost.
func (w *Watch) round(ctx context.Context) {
	pickers, err := w.List(ctx)
	if err != nil {
		w.failed(err)
		return
	}
	answers := w.askAll(ctx, pickers)
	if ctx.Err() != nil {
		return
	}
	others := 0 // pickers that answered
	known := map[types.UID]*history{}
	for i, p := range pickers {
		h := w.known[p.UID]
		if h == nil {
			h = &history{}
		}
		known[p.UID] = h
		h.add(answers[i], w.clock.Now())
		if answers[i] == sound {
			others++
		}
	}
	w.known = known
	for _, p := range pickers {
		h := known[p.UID]
		if !h.suspect() || !w.lost(h, others > 0) {
			continue
		}
		if err := w.withdraw(ctx, p, w.clock.Since(h.since)); err != nil {
			w.failed(err)
			continue
		}
		h.heard = false
	}
}

func (w *Watch) askAll(ctx context.Context, pickers []Picker) []answer {
	out := make([]answer, len(pickers))
	var all sync.WaitGroup
	for i, p := range pickers {
		all.Go(func() {
			began := w.clock.Now()
			limited, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			switch heard := w.ask(limited, p.Address); {
			case heard:
				out[i] = sound
			case w.clock.Since(began) < askTimeout+lateBy:
				out[i] = silence
			}
		})
	}
	all.Wait()
	return out
}

func (h *history) add(a answer, now time.Time) {
	switch a {
	case sound:
		h.heard, h.silent = true, 0
	case silence:
		if h.silent == 0 {
			h.since = now.Add(-askTimeout)
		}
		h.silent++
	}
}

// suspect reports whether a picker that once answered is silent.
func (h *history) suspect() bool { return h.heard && h.silent >= silentTries }

// lost asks the second witness whether a suspect is lost, or the controller is cut off.
func (w *Watch) lost(h *history, othersAnswer bool) bool {
	if othersAnswer || w.Unpicked(h.since) {
		return true
	}
	w.Look()
	return false
}
