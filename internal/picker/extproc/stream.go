package extproc

import (
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/proxies"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// errFault ends a stream that a panic left without a pick. The proxy then follows the pool's failure mode, where it
// still can (see refuseMidBody). A reply without a pick would override the failure mode and break the protocol.
var errFault = status.Error(codes.Internal, "the endpoint picker failed")

// errOverloaded ends the stream of a call above the limits, so that the pool's failure mode decides: the model servers
// could well serve the call without a pick.
var errOverloaded = status.Error(codes.ResourceExhausted, "the endpoint picker has reached its limit of calls in flight, or the pool's namespace has reached its share")

// errNotAdmitted ends the stream of a proxy that did not send the pool's token. If the proxy does serve the pool, its calls
// follow the pool's failure mode, but those whose body is streamed: these may end with Envoy's own 503.
var errNotAdmitted = status.Error(codes.PermissionDenied, "the proxy did not send the pool's token, which the controller gives to the waypoints that serve the pool")

// counter counts open streams.
type counter interface {
	StreamOpened()
	StreamClosed()
}

// counterOf returns a pool's counter, or that of streams without a pool.
func (s *Server) counterOf(name string) counter {
	if p := s.find(name); p != nil {
		return p.Metrics()
	}
	return s.options.Metrics
}

// Process serves one stream, which is one HTTP call and ends with it, by the protocol. A stream that is opened for the
// usage only shows the answer to a call.
func (s *Server) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	name := proxies.Opened(stream.Context(), pool.NameHeader)
	if name == "" {
		if shownOf := proxies.Opened(stream.Context(), pool.UsageHeader); shownOf != "" {
			if !s.admits(stream.Context(), shownOf) {
				return errNotAdmitted
			}
			return s.observe(stream, shownOf)
		}
	}
	if !s.admits(stream.Context(), name) {
		s.countRefusal(name, refusal.NotAdmitted)
		return errNotAdmitted
	}
	open := s.counterOf(name)
	open.StreamOpened()
	defer open.StreamClosed()
	return s.serve(stream, name)
}

// serve serves the stream of a call to a pool.
//
// Up to the pick a call takes a few messages within microseconds. Then the stream idles for minutes, until the answer
// comes and until it has ended, in a gRPC receive that only the proxy can end. So the session then gets a goroutine of
// its own, and this one waits to end the stream at a drain. An idle stream still takes less than 14 KB.
func (s *Server) serve(stream extprocv3.ExternalProcessor_ProcessServer, name string) error {
	x := s.sessions.Get().(*session)
	x.pool, x.send, x.context, x.stream = name, stream, stream.Context(), terminableOf(stream.Context())
	x.holds = holdsFor(proxies.Opened(x.context, pool.HoldHeader))
	if over, err := x.begin(stream); over {
		x.finish()
		return err
	}
	ended := make(chan struct{})
	var err error // of advance; valid once ended is closed
	go func() {
		_, err = x.advance(stream, false)
		close(ended)
	}()
	select {
	case <-ended:
		x.finish()
		return err
	case <-s.parted:
	}
	for !x.part() {
		select {
		case <-ended:
			x.finish()
			return err
		case <-time.After(quiet):
		}
	}
	// The session's goroutine ends with the stream, which ends when this returns.
	go func() {
		<-ended
		x.finish()
	}()
	return nil
}

// quiet is how long no chunk of an answer may have passed through the picker before the stream may be ended. A chunk on
// its way at the end would be lost, and an answer without its middle looks whole. So quiet outlasts the time for which
// a busy node stops the proxy or the picker: on two cores with six busy programs, 100 ms did not.
const quiet = 500 * time.Millisecond

// begin handles messages until the call is picked, refused or over. Only a stream with a message counts as a call and
// takes room: a stream without one keeps no call out.
func (x *session) begin(stream grpc.ServerStream) (over bool, err error) {
	s := x.server
	s.awaitHeaders.begin(x)
	err = stream.RecvMsg(&x.message)
	if s.awaitHeaders.end(x) {
		return true, s.timedOut(&s.awaitHeaders, x.pool)
	}
	if err != nil {
		return true, ended(err)
	}
	x.tenant = s.tenantOf(x.pool)
	x.room = s.streams.Of(x.tenant)
	// A probe is never over the limit: a picker without room for more calls still works.
	if !x.room.Take(1) && x.pool != probePool {
		return true, x.shed(errOverloaded)
	}
	for {
		asks := x.message.kind.ofRequest() && !x.message.observability
		if over, err = x.take(); over || x.phase.decided() {
			return over, err
		}
		if asks {
			break
		}
		if err = stream.RecvMsg(&x.message); err != nil { // a proxy that only shows calls owes no body
			return true, ended(err)
		}
	}
	s.awaitBody.begin(x)
	over, err = x.advance(stream, true)
	if s.awaitBody.end(x) {
		return true, s.timedOut(&s.awaitBody, x.pool)
	}
	return over, err
}

// advance handles messages until the exchange is over or, with untilDecided, until the call is picked or refused.
func (x *session) advance(stream grpc.ServerStream, untilDecided bool) (over bool, err error) {
	for !untilDecided || !x.phase.decided() {
		if err := stream.RecvMsg(&x.message); err != nil {
			return true, ended(err)
		}
		if over, err = x.take(); over {
			return true, err
		}
	}
	return false, nil
}

// take handles a message, and reports whether the exchange is over.
func (x *session) take() (over bool, err error) {
	if x.returns() {
		// A chunk is in memory until it is sent back, and a proxy may not read.
		n, room := len(x.message.body), x.server.pieces.Of(x.tenant)
		defer room.Give(int64(n))
		if !room.Take(int64(n)) && (n > chunkLimit || x.decided()) {
			x.message.free()
			return true, x.shed(errOverloaded)
		}
	}
	over, err = x.answer()
	// A stream lives as long as its call, but the body's bytes are needed only until the pick.
	x.message.free()
	return over || err != nil, ended(err)
}

// decided says whether the call was picked or refused, for callers that do not hold the mutex.
func (x *session) decided() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.phase.decided()
}

// answer sends the message's reply, and nothing once the stream was ended at a drain.
func (x *session) answer() (over bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase == parted {
		return true, nil
	}
	streaming := x.phase.streaming()
	if !x.attempt(func() { over, err = x.step() }) {
		x.refuseMidBody(refusal.Internal, errFault, streaming || x.phase.streaming())
		x.phase = faulty
		return true, errFault
	}
	x.follow()
	select {
	case <-x.server.parted:
		over = over || x.partLocked()
	default:
	}
	return over, err
}

// shed gives up a call that is over a limit.
func (x *session) shed(err error) error {
	x.server.countRefusal(x.pool, refusal.Overloaded)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.refuseMidBody(refusal.Overloaded, err, x.phase.streaming())
	return err
}

// refuseMidBody refuses a call whose stream is about to end with an error while the request's body is streaming: there
// the pool's failure mode does not apply. Envoy 1.40 fails open only until it has sent the first chunk, which follows
// the headers at once, and then refuses the call without a reason.
func (x *session) refuseMidBody(reason refusal.Reason, err error, streaming bool) {
	m := &x.message
	mode, _ := x.modes()
	opens := m.kind == onRequestHeaders && mode == duplex && !m.end
	if x.phase == parted || x.refused != nil || !opens && !streaming {
		return
	}
	// The stream is ended if the proxy does not read the refusal in time.
	defer time.AfterFunc(refusedWithin, x.stream.terminate).Stop()
	e := refusal.New(reason, "%s", status.Convert(err).Message())
	x.attempt(func() { _ = x.sendReply(reply{kind: m.kind, refused: e}) }) // a proxy that is gone needs none
}

// follow notes when a chunk of the answer's body last passed through the picker.
func (x *session) follow() {
	switch x.message.kind {
	case onAnswerHeaders, onAnswerBody: // the first chunk follows the headers at once
		x.flowed = time.Time{}
		if x.answerMode == duplex && !x.message.end {
			x.flowed = time.Now()
		}
	case onAnswerTrailers:
		x.flowed = time.Time{}
	}
}

// part keeps the session from using the stream any more, and reports whether it could. It cannot while the request's
// body passes through the picker, nor while the answer's body does without a pause.
func (x *session) part() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.partLocked()
}

func (x *session) partLocked() bool {
	if x.phase == settled && time.Since(x.flowed) > quiet {
		x.phase = parted
	}
	return x.phase == parted
}

// finish releases what the call holds, and returns the session to the pool unless its state is unknown. The session's
// goroutine has ended by then, and nothing uses the session afterwards.
func (x *session) finish() {
	server, usable := x.server, x.phase != faulty
	if x.room != nil {
		x.room.Give(1)
	}
	if x.attempt(x.end) && usable {
		server.sessions.Put(x)
	}
}
