package extproc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
)

const (
	// headersWithin is how long a stream may be open without a message. A proxy opens it to send one.
	headersWithin = 10 * time.Second
	// bodyWithin is the default of Options.BodyWithin.
	bodyWithin = 5 * time.Minute
	// refusedWithin is how long the refusal of a call that was given up may take. A proxy that does not read blocks it,
	// and any other reply that the session is sending.
	refusedWithin = time.Second
)

// waitlist ends streams whose next message is late. All get the same time, so the oldest is the next to end. One list
// and one timer serve all streams: a timer for each would cost more than all other work on it here.
type waitlist struct {
	awaited string        // what the streams must send
	within  time.Duration // how long they may take
	most    int           // how many may wait before the oldest is ended; 0 sets no limit
	refuses bool          // their calls are refused, instead of left to the failure mode

	mu             sync.Mutex
	n              int
	oldest, newest *session
	watched        bool // the timer runs
}

// waiting is a session's place in a waitlist, whose mutex guards it.
type waiting struct {
	on           bool
	ending       chan struct{} // closed once the stream of a session that was given up is being ended; nil before
	since        time.Time
	older, newer *session
}

// begin adds a session to the list; end must follow.
func (p *waitlist) begin(x *session) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	x.waiting = waiting{on: true, since: now, older: p.newest}
	if p.newest != nil {
		p.newest.waiting.newer = x
	} else {
		p.oldest = x
	}
	p.newest = x
	p.n++
	if p.most > 0 && p.n > p.most {
		p.giveUp(p.oldest)
	}
	if !p.watched {
		p.watched = true
		time.AfterFunc(p.within, p.watch)
	}
}

// end removes a session, and reports whether it was given up before.
func (p *waitlist) end(x *session) (givenUp bool) {
	p.mu.Lock()
	if x.waiting.on {
		p.remove(x)
		p.mu.Unlock()
		return false
	}
	p.mu.Unlock()
	if x.waiting.ending == nil {
		return false // it was passed
	}
	<-x.waiting.ending
	return !x.decided() || x.stream.terminated() // what decides may have come just before
}

// pass removes a session for which nothing is awaited any more, before its end is due.
func (p *waitlist) pass(x *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if x.waiting.on {
		p.remove(x)
	}
}

// watch gives up the sessions whose time is over.
func (p *waitlist) watch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for now := time.Now(); p.oldest != nil; p.giveUp(p.oldest) {
		if left := p.within - now.Sub(p.oldest.waiting.since); left > 0 {
			time.AfterFunc(left, p.watch)
			return
		}
	}
	p.watched = false
}

// giveUp removes a session and ends its stream. The mutex is held.
func (p *waitlist) giveUp(x *session) {
	p.remove(x)
	ending := make(chan struct{})
	x.waiting.ending = ending
	if !p.refuses {
		x.stream.terminate()
		close(ending)
		return
	}
	go func() { // the reply may have to wait for the proxy, up to refusedWithin
		defer close(ending)
		stream := x.stream // the timer may outlast the session
		defer time.AfterFunc(refusedWithin, stream.terminate).Stop()
		stalled := true
		x.attempt(func() { stalled = x.refuseStalled(p.within) })
		if stalled {
			stream.terminate()
		}
	}()
}

func (p *waitlist) remove(x *session) {
	w := &x.waiting
	if w.older != nil {
		w.older.waiting.newer = w.newer
	} else {
		p.oldest = w.newer
	}
	if w.newer != nil {
		w.newer.waiting.older = w.older
	} else {
		p.newest = w.older
	}
	*w = waiting{}
	p.n--
}

// refuseStalled refuses a call whose body stopped coming, whatever its pool's failure mode is. A model server would wait
// for the rest as well. In mode BUFFERED_PARTIAL, moreover, an Envoy 1.40 whose stream just ended would send the part that
// it has, and then that part again with the rest. It reports whether the call was still to be decided on.
func (x *session) refuseStalled(within time.Duration) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase.decided() {
		return false
	}
	x.refuse(refusal.New(refusal.Stalled, "the rest of the request's body did not come within %s", within))
	_ = x.sendPick(onRequestBody) // a proxy that is gone needs none
	return true
}

// timedOut counts and logs a stream that was given up, and returns the error that ends it. The proxy then follows the
// pool's failure mode.
func (s *Server) timedOut(p *waitlist, pool string) error {
	s.options.Metrics.StreamTimedOut(p.awaited)
	s.options.Log.Warn("ended a stream whose proxy sent too little for a pick in time", "pool", pool, "awaited", p.awaited, "within", p.within)
	return status.FromContextError(context.DeadlineExceeded).Err()
}

// terminable is a stream's context that can be cancelled, which gRPC does not offer to handlers: RecvMsg returns only
// when the proxy sends something or this context ends. gRPC then ends the stream with the context's error.
type terminable struct {
	context.Context
	cancel context.CancelFunc
	late   atomic.Bool
}

type terminableKey struct{}

func (c *terminable) Value(key any) any {
	if key == (terminableKey{}) {
		return c
	}
	return c.Context.Value(key)
}

func (c *terminable) Err() error {
	err := c.Context.Err()
	if err != nil && c.late.Load() {
		return context.DeadlineExceeded
	}
	return err
}

// terminate ends the stream as timed out. It does nothing for a stream of a gRPC server without ServerOptions, which
// has no such context.
func (c *terminable) terminate() {
	if c != nil {
		c.late.Store(true)
		c.cancel()
	}
}

func (c *terminable) terminated() bool { return c != nil && c.late.Load() }

// makeTerminable is gRPC's hook for a new stream. The context ends with the stream in any case.
func makeTerminable(ctx context.Context, stream *tap.Info) (context.Context, error) {
	if stream.FullMethodName != extprocv3.ExternalProcessor_Process_FullMethodName {
		return ctx, nil
	}
	c := &terminable{}
	c.Context, c.cancel = context.WithCancel(ctx)
	return c, nil
}

func terminableOf(ctx context.Context) *terminable {
	c, _ := ctx.Value(terminableKey{}).(*terminable)
	return c
}
