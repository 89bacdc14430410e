package extproc

import (
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/admission"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// errFault ends a stream that a fault of ours leaves without a pick. The proxy then does what the pool's failure mode
// says, where it still can (see sayWhy); a reply without a pick would decide that for it, and is against the protocol.
var errFault = status.Error(codes.Internal, "the endpoint picker failed")

// errOverloaded ends the stream of a call for which there is no room, so that the pool's failure mode decides: the call
// could well be served, if not picked for.
var errOverloaded = status.Error(codes.ResourceExhausted, "the endpoint picker has as many calls in flight as it may have, or as the pool's namespace may")

// errNotAdmitted ends the stream of a proxy that has not shown that it serves the pool. If it does, its calls go on as the
// pool's failure mode says.
var errNotAdmitted = status.Error(codes.PermissionDenied, "the proxy has not shown the pool's token, by which the controller admits the waypoints that serve it")

// counter counts streams that are open.
type counter interface {
	StreamOpened()
	StreamClosed()
}

// counterOf is that of a pool, or of the streams of none.
func (s *Server) counterOf(name string) counter {
	if p := s.find(name); p != nil {
		return p.Metrics()
	}
	return s.options.Metrics
}

// Process serves one stream. It is one HTTP call, until the proxy ends it: with the call, by the protocol. Or it only
// shows the answer of one, if it is opened so.
func (s *Server) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	name := admission.Opened(stream.Context(), pool.NameHeader)
	if name == "" {
		if shownOf := admission.Opened(stream.Context(), pool.UsageHeader); shownOf != "" {
			if !s.admits(stream.Context(), shownOf) {
				return errNotAdmitted
			}
			return s.look(stream, shownOf)
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
// Up to the pick that takes a few messages within microseconds. Then the stream idles until the answer comes and again
// until it has ended, for minutes, in a call of gRPC that only the proxy can end. So the session gets a goroutine of
// its own by then, and this one stands ready to end the stream. An idle stream takes less than 14 KB all the same.
func (s *Server) serve(stream extprocv3.ExternalProcessor_ProcessServer, name string) error {
	x := s.sessions.Get().(*session)
	x.pool, x.send, x.stream = name, stream, terminableOf(stream.Context())
	if over, err := x.begin(stream); over {
		x.finish()
		return err
	}
	ended := make(chan struct{})
	var err error // once it has ended
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

// quiet is how long no piece of an answer that passes through us may have come before we part from it. Pieces that are on
// their way to us then would be lost, and an answer that lacks its middle looks like a whole one. So it outlasts the time
// for which a busy node keeps the proxy or us from running: on two cores with six programs at work, 100 ms did not.
const quiet = 500 * time.Millisecond

// begin takes messages until the call is decided on or over. Only a stream with a message is a call and takes the room of
// one: those that never say anything keep nobody out.
func (x *session) begin(stream grpc.ServerStream) (over bool, err error) {
	s := x.server
	s.silent.begin(x)
	err = stream.RecvMsg(&x.message)
	if s.silent.end(x) {
		return true, s.lost(&s.silent, x.pool)
	}
	if err != nil {
		return true, ended(err)
	}
	x.tenant = s.tenantOf(x.pool)
	x.room = s.streams.Of(x.tenant)
	// That there is no room for more calls is no reason to send none: a probe is never one too many.
	if !x.room.Take(1) && x.pool != probePool {
		return true, x.shed(errOverloaded)
	}
	asks := x.message.kind.ofRequest() && !x.message.observability // who only shows calls owes nothing
	if over, err = x.take(); over || x.phase.decided() {
		return over, err
	}
	if !asks { // a proxy that only shows answers owes no body
		return x.advance(stream, true)
	}
	s.bodiless.begin(x)
	over, err = x.advance(stream, true)
	if s.bodiless.end(x) {
		return true, s.lost(&s.bodiless, x.pool)
	}
	return over, err
}

// advance takes messages until the exchange is over or, if only so much is wanted, the call is decided on.
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

// take answers a message, and says whether the exchange is over.
func (x *session) take() (over bool, err error) {
	if n := len(x.message.body); n > 0 && x.requestMode == duplex {
		// A piece is in memory until it is given back, and a proxy may not read.
		room := x.server.pieces.Of(x.tenant)
		defer room.Give(int64(n))
		if !room.Take(int64(n)) && (n > chunkLimit || x.decided()) {
			x.message.free()
			return true, x.shed(errOverloaded)
		}
	}
	over, err = x.answer()
	// A stream lives as long as its call, a body's bytes only until the pick.
	x.message.free()
	return over || err != nil, ended(err)
}

// decided says that the call is decided on, to those who do not hold the mutex.
func (x *session) decided() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.phase.decided()
}

// answer does what the message calls for, and nothing once the session has parted.
func (x *session) answer() (over bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.phase == parted {
		return true, nil
	}
	if !x.attempt(func() { over, err = x.step() }) {
		x.sayWhy(refusal.Internal, errFault)
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

// shed gives a call up for which there is no room.
func (x *session) shed(err error) error {
	x.server.countRefusal(x.pool, refusal.Overloaded)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sayWhy(refusal.Overloaded, err)
	return err
}

// sayWhy refuses a call whose stream is about to end with an error, if that would not leave it to the pool's failure mode:
// while the request's body is streamed to us. Envoy 1.40 fails open only until it has sent the first piece, which comes
// right behind the headers, and then refuses the call without a reason.
func (x *session) sayWhy(reason refusal.Reason, err error) {
	m := &x.message
	mode := x.requestMode
	if m.modesTold {
		mode = modeOf(m.requestMode)
	}
	opens := m.kind == onRequestHeaders && mode == duplex && !m.end
	if x.phase == parted || x.refused != nil || !opens && !x.phase.streaming() {
		return
	}
	// A proxy that does not read is not waited for.
	defer time.AfterFunc(refusedWithin, x.stream.terminate).Stop()
	e := refusal.New(reason, "%s", status.Convert(err).Message())
	x.attempt(func() { _ = x.sendReply(reply{kind: m.kind, refused: e}) }) // a proxy that is gone needs none
}

// follow notes when of the answer's body a piece is on its way through us.
func (x *session) follow() {
	switch x.message.kind {
	case onAnswerHeaders, onAnswerBody: // the first piece comes close behind the headers
		x.flowed = time.Time{}
		if x.answerMode == duplex && !x.message.end {
			x.flowed = time.Now()
		}
	case onAnswerTrailers:
		x.flowed = time.Time{}
	}
}

// part keeps the session from using the stream any more, and says whether it does: not while the request's body is on
// its way through us, nor while the answer's is and does not pause.
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

// finish gives back what the call holds, and the session to the next call unless it is in an unknown state. Nobody may
// use the session any more: its goroutine has ended, and whoever waits for that goroutine calls finish.
func (x *session) finish() {
	server, usable := x.server, x.phase != faulty
	if x.room != nil {
		x.room.Give(1)
	}
	if x.attempt(x.end) && usable {
		server.sessions.Put(x)
	}
}
