package extproc

import (
	"bytes"
	"context"
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
	// factsLimit is how many bytes of a streamed body are held before the pick: as many as Envoy's buffered modes send by
	// default. What comes after it only makes the prompt longer.
	factsLimit = 1 << 20

	// chunkLimit is the longest chunk, in bytes, in which a held body is sent back: ext_proc recommends at most 64 KiB.
	chunkLimit = 64 << 10

	// cheapBody is the length, in bytes, up to which a body is read without waiting for a turn at the processors. Reading
	// it takes a few microseconds, a tenth of all other work for a call.
	cheapBody = 4 << 10

	// turnPatience is how long a call waits for its turn to have its body read. It waits behind calls of its own namespace
	// only. Where those come faster than they can be read, late calls are picked by load. A waypoint waits half as long
	// again for a pick.
	turnPatience = 200 * time.Millisecond

	// blocksKept bounds the blocks that an ended session keeps for the next one: those of a 2 MiB prompt, 64 KiB.
	blocksKept = 8192

	// subsetKept is how many endpoints of a subset a call keeps after its pick, and a session for the next call.
	subsetKept = 64

	// textKept is how many bytes are kept of each header's value until the pick, which may be five minutes later. Envoy's
	// own limit is 60 KiB for all headers.
	textKept = 4 << 10
)

// sender sends replies to the proxy. SendMsg takes a *reply, which is valid only during the call.
type sender interface {
	SendMsg(reply any) error
}

// phase is the state of a call's exchange with the proxy.
type phase uint8

const (
	opened     phase = iota // no message of the request has come
	awaitsBody              // the headers are answered, and the one message with the body decides
	holds                   // the reply to the headers and the body's chunks are held until the pick
	passes                  // picked, and the rest of the request's body passes through the picker
	settled                 // picked, and no chunk of the request is on its way through the picker
	parted                  // picked, and the stream was ended at a drain
	faulty                  // a panic left the exchange in an unknown state
)

// decided says whether the call was picked or refused.
func (p phase) decided() bool { return p >= passes }

// streaming says whether chunks of the request's body are on their way through the picker.
func (p phase) streaming() bool { return p == holds || p == passes }

// decidedWhere returns the phase after the pick; bodyPasses says whether the rest of the request's body still comes.
func decidedWhere(bodyPasses bool) phase {
	if bodyPasses {
		return passes
	}
	return settled
}

// session is one call's exchange with the proxy. A message out of order gets the reply that its kind demands and never
// an error: the call still gets the best pick that is possible by then.
type session struct {
	server  *Server
	send    sender
	pool    string
	stream  *terminable
	context context.Context // the stream's
	caller  string          // the caller's identity; "" where it has proven none
	// behalf and objective are by the words of the caller; empty where these do not count.
	behalf, objective string
	holds             time.Duration // how long the proxy waits for the pick of a call that is held; 0 where it does not
	// bodiless says that the request has no body, and so nothing to prefill.
	bodiless bool
	waiting  waiting
	tenant   string
	room     *fairshare.Share // the tenant's share of MaxStreams; nil before the first message

	mu     sync.Mutex // held while a message is answered
	phase  phase
	flowed time.Time // when the last chunk came of an answer that passes through the picker; zero where none does

	message received
	reply   reply

	requestMode, answerMode bodyMode
	head                    request.Head
	session                 string        // the value of the pool's session header
	within                  time.Duration // in which the caller wants the first token; 0 where it does not say
	subset                  poolstate.Subset
	held                    heldBody // the head of a streamed body, before the pick
	refused                 *refusal.Error
	outcome                 poolstate.Outcome
	span                    trace.Span   // from the headers to the pick; nil without tracing
	tail                    *answer.Tail // the answer's end, if its usage is counted

	facts       request.Facts
	reservation poolstate.Reservation
	endpoints   []byte // the pick, "ip:port,ip:port"
	call        uint64 // the call's id, which the proxy gets with the pick
}

// bodyMode is what a mode of sending bodies means for the picker.
type bodyMode uint8

const (
	// duplex: the body comes in chunks, the picker sends them back, and the reply to the headers may wait for the body. It
	// is the endpoint picker protocol's default, and assumed of a proxy that does not send its mode.
	duplex bodyMode = iota
	// buffered: once the headers are answered, the body comes in one message whose reply can still change headers.
	buffered
	// unseen: no body comes, or none before the headers are sent on, so the pick must be made on the headers.
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

// step handles the message that the proxy sent last, and sends its reply. done says that the exchange is over.
func (x *session) step() (done bool, err error) {
	m := &x.message
	if m.observability {
		return false, nil // the proxy only shows its messages, and ignores replies
	}
	x.requestMode, x.answerMode = x.modes()
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
	default: // a message without a kind, or of an unknown kind, needs no reply
	}
	return x.refused != nil, err
}

// modes returns the modes in which the bodies come from the message on. Proxies tell them in their first message only.
func (x *session) modes() (request, answer bodyMode) {
	if m := &x.message; m.modesTold {
		return modeOf(m.requestMode), modeOf(m.answerMode)
	}
	return x.requestMode, x.answerMode
}

// returns says whether the message is a chunk that is sent back.
func (x *session) returns() bool {
	request, answer := x.modes()
	mode := request
	if x.message.kind == onAnswerBody {
		mode = answer
	}
	return mode == duplex && len(x.message.body) > 0 && !x.message.observability
}

func (x *session) requestHeaders() error {
	if x.phase.decided() {
		return x.sendPick(onRequestHeaders)
	}
	x.head, x.within, x.caller = x.message.head(), x.message.within, string(x.message.caller)
	if p := x.server.find(x.pool); p != nil {
		x.readFor(p)
	}
	x.startSpan()
	streams := x.requestMode == duplex && !x.message.end
	x.bodiless = x.message.end
	switch {
	case x.bodiless || x.requestMode == unseen || !x.message.carriesPrompt():
		x.decide(nil, false, decidedWhere(streams))
		return x.sendPick(onRequestHeaders)
	case streams:
		x.phase = holds
		return nil
	default:
		x.phase = awaitsBody
		return x.sendPlain()
	}
}

// readFor copies the values of the headers that count for a pool.
func (x *session) readFor(p *poolstate.Pool) {
	if name := p.SessionHeader(); name != "" {
		x.session = headOf(x.message.header(name))
	}
	if x.holds > 0 && p.TrustsCallers() {
		x.behalf, x.objective = nameOf(x.message.header(behalfHeader)), nameOf(x.message.header(objectiveHeader))
	}
}

// head copies what is needed of the headers until the pick.
func (r *received) head() request.Head {
	return request.Head{
		Path:            headOf(r.path),
		ContentType:     contentTypeOf(r.contentType),
		ContentEncoding: headOf(r.contentEncoding),
	}
}

// contentTypeOf copies a content type. That of nearly all calls needs no copy.
func contentTypeOf(value []byte) string {
	const usual = "application/json"
	if string(value) == usual {
		return usual
	}
	return headOf(value)
}

// headOf copies the head of a header's value, up to textKept.
func headOf(value []byte) string { return string(value[:min(len(value), textKept)]) }

// carriesPrompt reports whether the request with these headers may carry a prompt. The pick never waits for another
// body, which may never end.
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
		x.decide(x.message.body, x.message.end, settled)
		return x.sendPick(onRequestBody)
	}
}

// requestChunk holds chunks until they suffice for a pick, and sends back each later one. They also suffice where the
// limit on held bodies is reached: a pick on a shorter head is better than a refusal.
func (x *session) requestChunk() error {
	m := &x.message
	switch {
	case x.phase.decided():
		x.phase = decidedWhere(!m.end)
		return x.giveBack(onRequestBody, m.bodyBuffer(), m.end)
	case m.end && x.held.len() == 0: // most bodies are one chunk, which is not copied
		return x.decideStreamed(m.bodyBuffer(), true)
	case x.phase != holds: // the headers were not sent first
		return x.decideStreamed(m.bodyBuffer(), false)
	}
	room := x.hold(len(m.body))
	x.held.add(m.body)
	if room && !m.end && x.held.len() < factsLimit {
		return nil
	}
	return x.decideHeld(m.end)
}

// decideHeld picks on the chunks that were held. end says that neither more chunks nor trailers follow.
func (x *session) decideHeld(end bool) error {
	x.release()
	return x.decideStreamed(x.held.take(), end)
}

// hold takes room for n more bytes of a body, and reports whether there was enough. The room is taken in any case, so
// release must follow.
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

// dropHeld ends the holding of a body.
func (x *session) dropHeld() {
	x.release()
	x.held.take().Free()
}

// decideStreamed picks on a body's head, then answers the headers and sends the head back. It frees body.
func (x *session) decideStreamed(body mem.Buffer, end bool) error {
	defer body.Free()
	headersWait := x.phase == holds
	x.decide(body.ReadOnlyData(), end, decidedWhere(!end))
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

// requestTrailers ends a body whose chunks did not mark its end.
func (x *session) requestTrailers() error {
	switch {
	case x.phase.decided():
	case x.requestMode == duplex:
		if err := x.decideHeld(false); err != nil || x.refused != nil {
			return err
		}
	default:
		x.decide(nil, false, settled)
		return x.sendPick(onRequestTrailers)
	}
	x.phase = settled
	return x.sendPlain()
}

func (x *session) answerBody() error {
	if x.message.end {
		x.noteEnd()
	}
	x.attempt(x.keepAnswer)
	if x.answerMode == duplex {
		return x.giveBack(onAnswerBody, x.message.bodyBuffer(), x.message.end)
	}
	return x.sendPlain()
}

// keepAnswer keeps the end of an answer whose usage is counted.
func (x *session) keepAnswer() {
	if x.tail == nil {
		if p := x.server.find(x.pool); p == nil || !p.CountsUsage() {
			return
		}
		x.tail = x.server.tails.Get().(*answer.Tail)
	}
	x.tail.Add(x.message.body)
}

// noteAnswer notes, from the answer's headers, which endpoint serves the call and how the call goes.
func (x *session) noteAnswer() {
	if !x.reservation.Held() {
		return
	}
	status, _ := strconv.Atoi(string(x.message.status)) // a status that is missing or no number counts as "other"
	x.reservation.Metrics().Responded(status)
	addr, told := poolstate.ParseEndpoint(string(x.message.served))
	if told {
		x.reservation.Served(addr)
	}
	x.outcome = x.message.outcome(status, told)
	x.reservation.Responded(x.outcome)
}

// outcome returns the outcome that an answer's headers show. served says that the proxy named the endpoint that serves.
// An answer that the proxy made itself, without an endpoint or for a rate limit, blames no endpoint.
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

// whole says that the answer's end is there, or follows its headers at once. A server writes JSON when the generation
// has ended. The headers of a stream may come before its prompt is prefilled.
func (r *received) whole() bool {
	return r.end || bytes.HasPrefix(r.contentType, []byte("application/json"))
}

// noteEnd notes that the proxy showed the answer's end.
func (x *session) noteEnd() {
	if x.outcome == poolstate.Ended {
		x.outcome = poolstate.Answered
	}
}

// sendPlain replies to the message without changing anything.
func (x *session) sendPlain() error { return x.sendReply(reply{kind: x.message.kind}) }

// sendPick replies to a message with the pick, or ends the call with the refusal.
func (x *session) sendPick(k kind) error {
	return x.sendReply(reply{kind: k, endpoints: x.endpoints, call: x.call, refused: x.refused})
}

// giveBack replies with a chunk of the request's or the answer's body. It frees the chunk.
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

// decide picks for the call, and moves it to the next phase. whole says that nothing of the body follows. After a panic
// the call is picked by load alone. A second panic ends the stream, and the pool's failure mode decides what becomes of
// the call.
func (x *session) decide(body []byte, whole bool, next phase) {
	x.phase = next
	if !x.attempt(func() { x.pick(body, whole) }) {
		x.reservation.Release(poolstate.Abandoned)
		x.pick(nil, false)
	}
	// The call may last for minutes without what was for the pick.
	x.head, x.session, x.caller, x.behalf, x.objective = request.Head{}, "", "", "", ""
	if cap(x.subset.Endpoints) > subsetKept {
		x.subset.Endpoints = nil
	}
}

// pick reads the facts, picks and reserves. It also counts a refusal.
func (x *session) pick(body []byte, whole bool) {
	begin := time.Now()
	p := x.server.find(x.pool)
	if p == nil {
		x.refuse(refusal.New(refusal.UnknownPool, "there is no pool %q", x.pool))
		return
	}
	size := len(body)
	body = x.read(p, body)
	call := poolstate.Call{
		Facts: &x.facts, Subset: x.subset, Session: x.session, Explained: x.recording(),
		Caller: x.caller, Behalf: x.behalf, Objective: x.objective, FirstTokenWithin: x.within, MostWait: x.holds, Bytes: int64(heldCall + size + 8*len(x.facts.Blocks)),
	}
	if body == nil {
		call.Unread = size / request.BytesPerToken
	}
	if whole && x.head.ContentEncoding == "" {
		call.Body = body
	}
	why, held, err := x.ask(p, &call)
	if err != nil {
		x.refuse(refusal.Of(err))
		return
	}
	if !x.reservation.Held() {
		return // the caller has gone
	}
	x.traceWhy(why)
	x.endpoints, x.call = x.reservation.Endpoints(x.endpoints[:0]), x.reservation.ID()
	took := time.Since(begin) - held
	p.Metrics().Picked(x.reservation.PromptTokens, x.reservation.CachedTokens, took)
	x.logPick(took, held)
}

// read reads the facts of a body, as far as there is a turn at the processors. It returns the body that was read.
func (x *session) read(p *poolstate.Pool, body []byte) []byte {
	if x.costly(body) {
		if x.enter() {
			defer x.leave()
		} else {
			p.Metrics().PickedUnread()
			body = nil
		}
	}
	x.facts.Seed = x.server.fleet.Seed()
	x.facts.Read(x.head, body)
	return body
}

// costly says whether reading a body needs a turn at the processors.
func (x *session) costly(body []byte) bool {
	return len(body) > cheapBody || len(body) > 0 && x.head.Encoded()
}

// enter takes a turn at the processors and, for an encoded body, room to decode it in. It reports whether the tenant may
// have both. If it returns true, leave must follow.
func (x *session) enter() bool {
	if !x.server.reading.Enter(x.tenant, turnPatience) {
		return false
	}
	if x.head.Encoded() && !x.server.held.Of(x.tenant).Take(request.DecodingBytes) {
		x.leave()
		return false
	}
	return true
}

func (x *session) leave() {
	if x.head.Encoded() {
		x.server.held.Of(x.tenant).Give(request.DecodingBytes)
	}
	x.server.reading.Leave()
}

func (x *session) refuse(e *refusal.Error) {
	x.refused = e
	x.server.countRefusal(x.pool, e.Reason)
	x.logRefusal()
}

// end releases all that the call holds, and makes the session ready for the next call.
func (x *session) end() {
	x.dropHeld() // first: a panic of what follows must not keep its room
	x.reservation.Release(x.outcome)
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
