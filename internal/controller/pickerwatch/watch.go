// Package pickerwatch finds pickers whose node has vanished, long before Kubernetes does: it connects to each picker twice
// a second. It must not know a Kubernetes client, or decide how a picker is withdrawn or restored.
//
// A picker that is silent is not yet lost: the controller itself may be cut off, or the picker may only be held up. So a
// second witness has to agree, withdrawals are few and far between, and a picker that answers again is restored at once.
package pickerwatch

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

const (
	// askTimeout is how long a picker may take to say a first byte. A picker on a loaded node takes some milliseconds.
	askTimeout = 400 * time.Millisecond
	// lateBy is the excess over askTimeout from which a try counts as held up by the controller's own node.
	lateBy = 200 * time.Millisecond
	// silentTries is how many tries in a row must have no answer if another picker answers meanwhile. A single lost packet
	// delays one try only.
	silentTries = 3
	// silentTriesAlone is how many it must be if no picker answers, as on a node short of CPU, where the only picker may be
	// held up for seconds. A waypoint asks an ejected picker again after five seconds.
	silentTriesAlone = 6
	// answersToRestore is how many answers in a row restore a picker.
	answersToRestore = 2
	// pause is the time between two withdrawals. A node that vanishes rarely takes two pickers with it, but a network that
	// is split may silence all of them.
	pause = 10 * time.Second
	// probation is for how long a picker that was withdrawn and restored must answer before it can be withdrawn again. It
	// doubles each time, up to probation<<mostDoublings.
	probation     = 30 * time.Second
	mostDoublings = 6
	// lookFor is for how long the waypoints' counters are read for the sake of a silent picker.
	lookFor = time.Minute
	// actTimeout is how long a withdrawal or a restoration may take.
	actTimeout = 2 * time.Second
)

// Picker is a picker that runs.
type Picker struct {
	Name    types.NamespacedName
	UID     types.UID
	Node    string
	Address netip.AddrPort
	// Ready says that Kubernetes takes the picker for ready, and Withdrawn that it does not because of a withdrawal.
	Ready, Withdrawn bool
}

// World is what a Watch sees and does beside asking pickers. All functions are called from one goroutine.
type World struct {
	// Node is the node on which the controller runs. Pickers there say nothing about the network.
	Node string
	// Leads reports whether this replica of the controller acts. The others watch too, so that a new leader knows the pickers.
	Leads func() bool
	// List returns the pickers that run.
	List func(context.Context) ([]Picker, error)
	// Look has the waypoints' counters read soon.
	Look func()
	// Unpicked reports whether a waypoint has had calls without a pick after a time.
	Unpicked func(after time.Time) bool
	// Withdraw takes a picker out of its Service, and Restore undoes that.
	Withdraw func(ctx context.Context, p Picker, silent time.Duration) error
	Restore  func(context.Context, Picker) error
	// Failed is told each error of List, Withdraw and Restore, and nil after a round without an error.
	Failed func(error)
}

// Watch watches pickers.
type Watch struct {
	World
	ask   func(context.Context, netip.AddrPort) outcome
	clock clock.WithTicker
	known map[types.UID]*history
	last  time.Time // of the last withdrawal
}

// New makes a Watch.
func New(w World) *Watch { return newWatch(w, ask, clock.RealClock{}) }

func newWatch(w World, ask func(context.Context, netip.AddrPort) outcome, ticks clock.WithTicker) *Watch {
	return &Watch{World: w, ask: ask, clock: ticks, known: map[types.UID]*history{}}
}

// Run asks all pickers every interval until ctx ends.
func (w *Watch) Run(ctx context.Context, interval time.Duration) {
	ticker := w.clock.NewTicker(interval)
	defer ticker.Stop()
	for {
		if err := w.round(ctx); ctx.Err() == nil {
			w.Failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
	}
}

// round asks each picker once, all at the same time. It then withdraws at most one, and restores those that answer again.
func (w *Watch) round(ctx context.Context) error {
	pickers, err := w.List(ctx)
	if err != nil {
		return err
	}
	outcomes := w.askAll(ctx, pickers)
	if ctx.Err() != nil {
		return nil
	}
	known := map[types.UID]*history{}
	for i, p := range pickers {
		h := w.known[p.UID]
		if h == nil {
			h = &history{}
		}
		known[p.UID] = h
		h.add(outcomes[i], w.clock.Now())
	}
	w.known = known
	if !w.Leads() {
		return nil
	}
	for _, p := range pickers {
		if p.Withdrawn && known[p.UID].answers >= answersToRestore {
			if err := act(ctx, func(ctx context.Context) error { return w.Restore(ctx, p) }); err != nil {
				return err
			}
		}
	}
	for _, p := range pickers {
		if w.lost(p, pickers) {
			return w.withdraw(ctx, p)
		}
	}
	return nil
}

func (w *Watch) askAll(ctx context.Context, pickers []Picker) []outcome {
	out := make([]outcome, len(pickers))
	var all sync.WaitGroup
	for i, p := range pickers {
		all.Go(func() {
			began := w.clock.Now()
			limited, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			if out[i] = w.ask(limited, p.Address); out[i] == silence && w.clock.Since(began) > askTimeout+lateBy {
				out[i] = unknown
			}
		})
	}
	all.Wait()
	return out
}

// lost reports whether a picker is to be withdrawn: it is ready and silent, a witness agrees, and others stay.
func (w *Watch) lost(p Picker, all []Picker) bool {
	h, now := w.known[p.UID], w.clock.Now()
	if !p.Ready || !h.heard || h.silent == 0 || lastReady(all) {
		return false
	}
	if !h.trustedAgain(now) || now.Sub(w.last) < pause {
		return false
	}
	if answered(p, all, w.known, w.Node) {
		return h.silent >= silentTries
	}
	return w.missed(h) && h.silent >= silentTriesAlone
}

// lastReady reports whether only one of several pickers is ready. It stays, as Envoy always asks the last one too.
func lastReady(all []Picker) bool {
	ready := 0
	for _, p := range all {
		if p.Ready {
			ready++
		}
	}
	return ready == 1 && len(all) > 1
}

// answered reports whether another picker answers. One on the same node shows that the node is there, and one on the
// controller's own shows nothing.
func answered(p Picker, all []Picker, known map[types.UID]*history, own string) bool {
	return slices.ContainsFunc(all, func(other Picker) bool {
		return known[other.UID].answers > 0 && other.Node != p.Node && other.Node != own
	})
}

// missed reports whether a waypoint has had calls without a pick since a picker is silent. It takes two readings of a
// waypoint to know, so the first is made at the first silence.
func (w *Watch) missed(h *history) bool {
	if w.Unpicked(h.since) {
		return true
	}
	if w.clock.Since(h.since) < lookFor {
		w.Look()
	}
	return false
}

func (w *Watch) withdraw(ctx context.Context, p Picker) error {
	h := w.known[p.UID]
	silent := w.clock.Since(h.since)
	if err := act(ctx, func(ctx context.Context) error { return w.Withdraw(ctx, p, silent) }); err != nil {
		return err
	}
	w.last = w.clock.Now()
	h.withdrawn++
	h.heard = false
	return nil
}

func act(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	return do(ctx)
}
