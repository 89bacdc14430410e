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
	// bodyWithin is for Options.BodyWithin.
	bodyWithin = 5 * time.Minute
	// refusedWithin is how long a refusal may take of a call that was given up. A proxy that does not read holds it up,
	// and what the session sends at the time.
	refusedWithin = time.Second
)

// patience is with streams that owe us something: the first who came is the first whose time is over. One list and one
// timer serve all streams, as a timer for each costs more than all else that is done with it here.
type patience struct {
	awaited string        // what they owe
	within  time.Duration // and in which time
	most    int           // how many there may be before the oldest gives way; 0 sets no limit
	refuses bool          // their calls are refused, or else left to the failure mode

	mu             sync.Mutex
	n              int
	oldest, newest *session
	watched        bool // the timer runs
}

// waiting is a session's place among those that owe something. It belongs to the patience that the session is with.
type waiting struct {
	on           bool
	ending       chan struct{} // closed once the stream of one that was given up is being ended; nil before
	since        time.Time
	older, newer *session
}

// begin begins to wait for a session; end must follow.
func (p *patience) begin(x *session) {
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

// end ends the wait, and says whether the session was given up before.
func (p *patience) end(x *session) (givenUp bool) {
	p.mu.Lock()
	if x.waiting.on {
		p.remove(x)
		p.mu.Unlock()
		return false
	}
	p.mu.Unlock()
	<-x.waiting.ending
	return true
}

// watch gives up those whose time is over.
func (p *patience) watch() {
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

// giveUp ends the wait for a session and has its stream's next message fail. The mutex is held.
func (p *patience) giveUp(x *session) {
	p.remove(x)
	ending := make(chan struct{})
	x.waiting.ending = ending
	if !p.refuses {
		x.stream.terminate()
		close(ending)
		return
	}
	go func() { // a reply may have to wait for the proxy, if not for long
		defer close(ending)
		stream := x.stream // the timer may outlast the session
		defer time.AfterFunc(refusedWithin, stream.terminate).Stop()
		x.attempt(func() { x.refuseStalled(p.within) })
		stream.terminate()
	}()
}

func (p *patience) remove(x *session) {
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

// refuseStalled refuses a call whose body stands still, whatever its pool's failure mode is. Where the stream just ends in
// the middle of a body, Envoy 1.40 that fails open sends on what it has, and again with the rest, as its router keeps bodies
// for retries: the model server would get a body whose head is there twice.
func (x *session) refuseStalled(within time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase.decided() {
		return
	}
	x.refuse(refusal.New(refusal.Stalled, "the rest of the request's body did not come within %s", within))
	_ = x.sendPick(onRequestBody) // a proxy that is gone needs none
}

// lost counts and tells of a stream that was given up, and is the error that it ends with. The proxy then does what the
// pool's failure mode says.
func (s *Server) lost(p *patience, pool string) error {
	s.options.Metrics.StreamTimedOut(p.awaited)
	s.options.Log.Warn("ended a stream that stood still before its pick", "pool", pool, "awaited", p.awaited, "within", p.within)
	return status.FromContextError(context.DeadlineExceeded).Err()
}

// terminable is a stream's context with the means to end it, which gRPC keeps from those who serve a stream: a call of
// RecvMsg returns only if the proxy sends something or this context ends. gRPC then ends the stream with the context's
// error.
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

// terminate ends the stream as one whose time is over. Of a stream of a server that was not made with ServerOptions there
// is no such context, and it does nothing.
func (c *terminable) terminate() {
	if c != nil {
		c.late.Store(true)
		c.cancel()
	}
}

// makeTerminable is gRPC's hook for a stream that comes. The context ends with the stream in any case.
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
