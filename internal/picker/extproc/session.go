package extproc

import (
	"bytes"
	"net/http"
	"strconv"
	"sync"
	"time"

	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/mem"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/answer"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
)

const (
	// factsLimit is how much of a body is held before the pick where the proxy streams it to us: as much as Envoy
	// sends in its buffered modes by default. What comes after it only makes the prompt longer.
	factsLimit = 1 << 20

	// chunkLimit is the longest piece in which a held body is given back: ext_proc recommends at most 64 KiB.
	chunkLimit = 64 << 10

	// cheapBody is the length of a body that is read without waiting for a turn at the processors: that takes a few
	// microseconds, a tenth of what all else takes that is done for a call.
	cheapBody = 4 << 10

	// turnPatience is how long a call waits for its turn to be read. It is behind the calls of its own namespace alone:
	// where they come faster than they can be read, those that are late are picked by load. Waypoints wait half as long
	// again for a pick.
	turnPatience = 200 * time.Millisecond

	// blocksKept bounds what a finished session keeps for the next one: the blocks of a 2 MiB prompt, 64 KiB.
	blocksKept = 8192
)

// sender is the way back to the proxy. It takes a *reply, which is only valid during the call.
type sender interface {
	SendMsg(reply any) error
}

// phase is where a call's exchange with the proxy stands.
type phase uint8

const (
	opened     phase = iota // nothing of the request has come
	awaitsBody              // the headers are replied to, and the body comes in one message that decides
	holds                   // the reply to the headers waits for the pick, and the body's pieces are held for it
	passes                  // picked, and the rest of the request's body passes through us
	settled                 // picked, and nothing of the request is on its way through us
	parted                  // picked, and the stream is not ours any more
	faulty                  // a fault of ours left the exchange in an unknown state
)

// decided says that there was a pick, or a refusal in its place.
func (p phase) decided() bool { return p >= passes }

// streaming says that pieces of the request's body are on their way through us.
func (p phase) streaming() bool { return p == holds || p == passes }

// decidedWhere is the phase of a call that is decided on, where the rest of its body passes through us or not.
func decidedWhere(bodyPasses bool) phase {
	if bodyPasses {
		return passes
	}
	return settled
}

// session is one call's exchange with the proxy. A message that comes out of order is answered as its kind demands and
// never faults: the call still gets the best pick that is possible then.
type session struct {
	server  *Server
	send    sender
	pool    string
	stream  *terminable
	waiting waiting
	tenant  string
	room    *fairshare.Share // among calls; nil before the first message

	mu     sync.Mutex // held while a message is answered
	phase  phase
	flowed time.Time // when the last piece of an answer came that passes through us; zero where none does

	message received
	reply   reply

	requestMode, answerMode bodyMode
	path                    string
	session                 string // the value of the pool's session header
	subset                  poolstate.Subset
	held                    heldBody // of a streamed body, before the pick
	refused                 *refusal.Error
	outcome                 poolstate.Outcome
	span                    trace.Span   // from the headers to the pick; nil where nobody traces
	tail                    *answer.Tail // of the answer, if its usage is counted

	facts       request.Facts
	reservation poolstate.Reservation
	endpoints   []byte // the pick, "ip:port,ip:port"
	call        uint64 // its name for the proxy
}

// bodyMode is what a way of sending bodies means for us.
type bodyMode uint8

const (
	// duplex: the body comes in chunks, is ours to give back, and the headers' reply may wait for it. It is what
	// endpoint pickers are sent by default, and is assumed of a proxy that does not tell its mode.
	duplex bodyMode = iota
	// buffered: once the headers are replied to, the body comes in one message whose reply can change headers.
	buffered
	// unseen: no body comes, or none before the headers are gone: they are the last chance for a pick.
	unseen
)

func modeOf(m int32) bodyMode {
	switch procmodev3.ProcessingMode_BodySendMode(m) {
	case procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED:
		return duplex
	case procmodev3.ProcessingMode_BUFFERED, procmodev3.ProcessingMode_BUFFERED_PARTIAL:
		return buffered
	default:
		return unseen
	}
}

// step takes the message that the proxy sent last, and sends what it calls for. done says that the exchange is over.
func (x *session) step() (done bool, err error) {
	m := &x.message
	if m.observability {
		return false, nil // the proxy only shows what it does, and ignores replies
	}
	if m.modesTold { // in the first message only
		x.requestMode, x.answerMode = modeOf(m.requestMode), modeOf(m.answerMode)
	}
	if m.subset != nil && !x.phase.decided() && !x.subset.Given {
		if err := readSubset(m.subset, &x.subset); err != nil {
			return false, err
		}
	}
	switch m.kind {
	case onRequestHeaders:
		err = x.requestHeaders()
	case onRequestBody:
		err = x.requestBody()
	case onRequestTrailers:
		err = x.requestTrailers()
	case onAnswerHeaders:
		x.attempt(x.noteAnswer)
		err = x.sendPlain()
	case onAnswerBody:
		err = x.answerBody()
	case onAnswerTrailers:
		if !x.message.failedAsGRPC() {
			x.noteEnd()
		}
		err = x.sendPlain()
	default: // a message without a kind, or of one that is newer than we are, asks for nothing
	}
	return x.refused != nil, err
}

func (x *session) requestHeaders() error {
	if x.phase.decided() {
		return x.sendPick(onRequestHeaders)
	}
	x.path = string(x.message.path)
	if p := x.server.find(x.pool); p != nil && p.SessionHeader() != "" {
		x.session = string(x.message.header(p.SessionHeader()))
	}
	x.startSpan()
	streams := x.requestMode == duplex && !x.message.end
	switch {
	case x.message.end || x.requestMode == unseen || !x.message.carriesPrompt():
		x.decide(nil, decidedWhere(streams))
		return x.sendPick(onRequestHeaders)
	case streams:
		x.phase = holds
		return nil
	default:
		x.phase = awaitsBody
		return x.sendPlain()
	}
}

// carriesPrompt reports whether the request whose headers these are may carry a prompt. For any other body nothing
// waits: it may never end.
func (r *received) carriesPrompt() bool {
	return request.CarriesPrompt(string(r.method), string(r.contentType))
}

func (x *session) requestBody() error {
	switch {
	case x.requestMode == duplex:
		return x.requestChunk()
	case x.phase.decided():
		return x.sendPlain()
	default:
		x.decide(x.message.body, settled)
		return x.sendPick(onRequestBody)
	}
}

// requestChunk holds chunks until there is enough to decide on, and gives back each one that comes after. Enough is
// also what the server's room for held bodies allows: a call picked on a shorter head is better than one refused.
func (x *session) requestChunk() error {
	m := &x.message
	switch {
	case x.phase.decided():
		x.phase = decidedWhere(!m.end)
		return x.giveBack(onRequestBody, m.bodyBuffer(), m.end)
	case m.end && x.held.len() == 0: // most bodies are one chunk, and are not copied
		return x.decideStreamed(m.bodyBuffer(), true)
	case x.phase != holds: // no headers came that could wait
		return x.decideStreamed(m.bodyBuffer(), false)
	}
	room := x.hold(len(m.body))
	x.held.add(m.body)
	if room && !m.end && x.held.len() < factsLimit {
		return nil
	}
	return x.decideHeld(m.end)
}

// decideHeld decides on the chunks that were held. end says that nothing, not even trailers, comes after them.
func (x *session) decideHeld(end bool) error {
	x.release()
	return x.decideStreamed(x.held.take(), end)
}

// hold takes room for n more bytes of a body, and says whether there was some left. It is taken in any case: release must
// follow.
func (x *session) hold(n int) bool {
	x.server.options.Metrics.Held(n)
	return x.server.held.Of(x.tenant).Take(int64(n))
}

// release gives the room of the held body back.
func (x *session) release() {
	if n := x.held.len(); n > 0 {
		x.server.options.Metrics.Held(-n)
		x.server.held.Of(x.tenant).Give(int64(n))
	}
}

// letGo ends the holding of a body.
func (x *session) letGo() {
	x.release()
	x.held.take().Free()
}

// decideStreamed picks from a body's head, then replies to the headers and gives the head back. It frees body.
func (x *session) decideStreamed(body mem.Buffer, end bool) error {
	defer body.Free()
	headersWait := x.phase == holds
	x.decide(body.ReadOnlyData(), decidedWhere(!end))
	if headersWait || x.refused != nil {
		if err := x.sendPick(onRequestHeaders); err != nil || x.refused != nil {
			return err
		}
	}
	n := body.Len()
	if n == 0 && !end {
		return nil
	}
	for from := 0; ; from += chunkLimit {
		to := min(from+chunkLimit, n)
		if err := x.giveBack(onRequestBody, body.Slice(from, to), end && to == n); err != nil || to == n {
			return err
		}
	}
}

// requestTrailers end a body that did not say that it ended.
func (x *session) requestTrailers() error {
	switch {
	case x.phase.decided():
	case x.requestMode == duplex:
		if err := x.decideHeld(false); err != nil || x.refused != nil {
			return err
		}
	default:
		x.decide(nil, settled)
		return x.sendPick(onRequestTrailers)
	}
	x.phase = settled
	return x.sendPlain()
}

func (x *session) answerBody() error {
	if x.message.end {
		x.noteEnd()
	}
	if x.tail != nil {
		x.attempt(func() { x.tail.Add(x.message.body) })
	}
	if x.answerMode == duplex {
		return x.giveBack(onAnswerBody, x.message.bodyBuffer(), x.message.end)
	}
	return x.sendPlain()
}

// noteAnswer learns from the answer's headers who serves the call and how it goes.
func (x *session) noteAnswer() {
	if !x.reservation.Held() {
		return
	}
	status, _ := strconv.Atoi(string(x.message.status)) // none, or no number, counts as "other"
	x.reservation.Metrics().Responded(status)
	if p := x.server.find(x.pool); p != nil && p.CountsUsage() && x.tail == nil {
		x.tail = x.server.tails.Get().(*answer.Tail)
	}
	addr, told := poolstate.ParseEndpoint(string(x.message.served))
	if told {
		x.reservation.Served(addr)
	}
	x.outcome = x.message.outcome(status, told)
	x.reservation.Responded(x.outcome)
}

// outcome is what an answer's head tells. Served says that the proxy names the endpoint that serves: an answer that it
// made itself, for want of an endpoint or to hold a caller to a limit, blames none.
func (r *received) outcome(status int, served bool) poolstate.Outcome {
	whole := r.whole()
	if status == http.StatusOK && r.ofGRPC() {
		status, whole = r.statusOfGRPC()
	}
	switch {
	case status >= 200 && status < 300 && whole:
		return poolstate.Answered
	case status >= 200 && status < 300, status == http.StatusSwitchingProtocols:
		return poolstate.Ended
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		if served {
			return poolstate.Shed
		}
	case status >= 500 && served:
		return poolstate.Failed
	case status >= 500:
		return poolstate.Abandoned
	}
	return poolstate.Refused
}

// whole says that with its head an answer's end is there too, or is about to be. JSON is written when its generation has
// ended. The head of a stream may come before its prompt is prefilled.
func (r *received) whole() bool {
	return r.end || bytes.HasPrefix(r.contentType, []byte("application/json"))
}

// noteEnd notes that the answer came to its end, where the proxy lets us see it.
func (x *session) noteEnd() {
	if x.outcome == poolstate.Ended {
		x.outcome = poolstate.Answered
	}
}

// sendPlain replies to the message that nothing is to be changed.
func (x *session) sendPlain() error { return x.sendReply(reply{kind: x.message.kind}) }

// sendPick replies to a message of a kind with the pick, or ends the call with the refusal.
func (x *session) sendPick(k kind) error {
	return x.sendReply(reply{kind: k, endpoints: x.endpoints, call: x.call, refused: x.refused})
}

// giveBack replies with a chunk of the request's or the answer's body. It frees chunk.
func (x *session) giveBack(k kind, chunk mem.Buffer, end bool) error {
	defer chunk.Free()
	return x.sendReply(reply{kind: k, chunk: chunk, end: end})
}

func (x *session) sendReply(r reply) error {
	x.reply = r
	err := x.send.SendMsg(&x.reply)
	x.reply = reply{}
	return err
}

// decide picks, once for a call, which takes it to the next phase. Where a fault of ours stands in the way, the call is
// still picked, by load alone; a second fault ends the stream, and what then becomes of the call is for the pool's failure
// mode to say.
func (x *session) decide(body []byte, next phase) {
	x.phase = next
	if x.attempt(func() { x.pick(body) }) {
		return
	}
	x.reservation.Release(poolstate.Abandoned)
	x.pick(nil)
}

// pick reads the facts, picks and reserves. The refusal, if any, is already counted.
func (x *session) pick(body []byte) {
	begin := time.Now()
	p := x.server.find(x.pool)
	if p == nil {
		x.refuse(refusal.New(refusal.UnknownPool, "there is no pool %q", x.pool))
		return
	}
	if len(body) > cheapBody {
		if x.server.reading.Enter(x.tenant, turnPatience) {
			defer x.server.reading.Leave()
		} else {
			p.Metrics().PickedUnread()
			body = nil
		}
	}
	x.facts.Seed = x.server.fleet.Seed()
	x.facts.Read(x.path, body)
	call := poolstate.Call{Facts: &x.facts, Subset: x.subset, Session: x.session, Explained: x.recording()}
	why, err := p.Pick(&call, &x.reservation)
	if err != nil {
		x.refuse(refusal.Of(err))
		return
	}
	x.traceWhy(why)
	x.endpoints, x.call = x.reservation.Endpoints(x.endpoints[:0]), x.reservation.ID()
	took := time.Since(begin)
	p.Metrics().Picked(x.reservation.PromptTokens, x.reservation.CachedTokens, took)
	x.tellPick(took)
}

func (x *session) refuse(e *refusal.Error) {
	x.refused = e
	x.server.countRefusal(x.pool, e.Reason)
	x.tellRefusal()
}

// end gives back what the call holds and makes the session ready for the next call.
func (x *session) end() {
	x.reservation.Release(x.outcome)
	x.letGo()
	if x.tail != nil {
		x.server.countUsage(x.pool, x.tail)
	}
	x.endSpan()
	x.message.free()
	blocks := x.facts.Blocks[:0]
	if cap(blocks) > blocksKept {
		blocks = nil
	}
	*x = session{
		server:    x.server,
		facts:     request.Facts{Model: x.facts.Model, Blocks: blocks}, // the next call's model is often the same
		subset:    poolstate.Subset{Endpoints: x.subset.Endpoints[:0]},
		endpoints: x.endpoints[:0],
	}
}
