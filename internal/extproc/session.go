package extproc

import (
	"strconv"
	"time"

	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/inference-waypoint/inference-waypoint/internal/fleet"
	"github.com/inference-waypoint/inference-waypoint/internal/inferencereq"
	"github.com/inference-waypoint/inference-waypoint/internal/refusal"
)

const (
	// factsLimit is how much of a body is held before the pick where the proxy streams it to us: as much as Envoy
	// sends in its buffered modes by default. What comes after it only makes the prompt longer.
	factsLimit = 1 << 20

	// chunkLimit is the longest piece in which a held body is given back: ext_proc recommends at most 64 KiB.
	chunkLimit = 64 << 10

	// blocksKept bounds what a finished session keeps for the next one: the blocks of a 2 MiB prompt, 64 KiB.
	blocksKept = 8192
)

// sender is the way back to the proxy. A reply is only valid during the call.
type sender interface {
	Send(*extprocv3.ProcessingResponse) error
}

// session is one call's exchange with the proxy. Its states follow from the messages: before the headers, waiting
// for a body that decides, picked. A message that comes out of order is answered as its kind demands and never
// faults: the call still gets the best pick that is possible then.
type session struct {
	server *Server
	send   sender
	pool   string

	requestMode, answerMode bodyMode
	path                    string
	subset                  fleet.Subset
	held                    []byte // of a streamed body, before the pick
	headersHeld             bool   // the reply to the headers waits for the pick
	picked                  bool
	outcome                 fleet.Outcome

	message extprocv3.ProcessingRequest

	facts       inferencereq.Facts
	reservation fleet.Reservation
	pick        *pickReply
	chunk       *chunkReply
	endpoints   []byte
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

func modeOf(m procmodev3.ProcessingMode_BodySendMode) bodyMode {
	switch m {
	case procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED:
		return duplex
	case procmodev3.ProcessingMode_BUFFERED, procmodev3.ProcessingMode_BUFFERED_PARTIAL:
		return buffered
	default:
		return unseen
	}
}

// step takes the proxy's next message and sends what it calls for. done says that the exchange is over.
func (x *session) step(m *extprocv3.ProcessingRequest) (done bool, err error) {
	if m.GetObservabilityMode() {
		return false, nil // the proxy only shows what it does, and ignores replies
	}
	x.readModes(m.GetProtocolConfig())
	if !x.picked && !x.subset.Given {
		readSubset(m.GetMetadataContext(), &x.subset)
	}
	switch r := m.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		return x.requestHeaders(r.RequestHeaders)
	case *extprocv3.ProcessingRequest_RequestBody:
		return x.requestBody(r.RequestBody)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		return x.requestTrailers()
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		x.noteAnswer(m, r.ResponseHeaders)
		return false, x.send.Send(continueAnswerHeaders)
	case *extprocv3.ProcessingRequest_ResponseBody:
		return false, x.answerBody(r.ResponseBody)
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		return false, x.send.Send(continueAnswerTrailers)
	}
	return false, nil // a message without a request, or of a kind that is newer than we are, asks for nothing
}

// readModes notes how the proxy sends bodies; it tells in the first message only.
func (x *session) readModes(c *extprocv3.ProtocolConfiguration) {
	if c != nil {
		x.requestMode, x.answerMode = modeOf(c.GetRequestBodyMode()), modeOf(c.GetResponseBodyMode())
	}
}

func (x *session) requestHeaders(h *extprocv3.HttpHeaders) (done bool, err error) {
	if x.picked {
		return false, x.send.Send(x.pick.onHeaders())
	}
	x.path = header(h.GetHeaders(), ":path")
	switch {
	case h.GetEndOfStream() || x.requestMode == unseen:
		if refused := x.decide(nil, !h.GetEndOfStream()); refused != nil {
			return true, x.send.Send(refuse(refused))
		}
		return false, x.send.Send(x.pick.onHeaders())
	case x.requestMode == duplex:
		x.headersHeld = true
		return false, nil
	default:
		return false, x.send.Send(continueRequestHeaders)
	}
}

func (x *session) requestBody(b *extprocv3.HttpBody) (done bool, err error) {
	if x.requestMode == duplex {
		return x.requestChunk(b)
	}
	if x.picked {
		return false, x.send.Send(continueRequestBody)
	}
	if refused := x.decide(b.GetBody(), !b.GetEndOfStream()); refused != nil {
		return true, x.send.Send(refuse(refused))
	}
	return false, x.send.Send(x.pick.onBody())
}

// requestChunk holds chunks until there is enough to decide on, and gives back each one that comes after.
func (x *session) requestChunk(b *extprocv3.HttpBody) (done bool, err error) {
	if x.picked {
		return false, x.send.Send(x.chunk.ofRequest(b.GetBody(), b.GetEndOfStream()))
	}
	if x.held == nil {
		x.held = b.GetBody() // most bodies are one chunk: no copy
	} else {
		x.held = append(x.held, b.GetBody()...)
	}
	if !b.GetEndOfStream() && len(x.held) < factsLimit {
		return false, nil
	}
	return x.decideStreamed(!b.GetEndOfStream(), b.GetEndOfStream())
}

// decideStreamed picks from what was held, then replies to the headers and gives the held back. truncated says that
// the body goes on, end that nothing, not even trailers, comes after it.
func (x *session) decideStreamed(truncated, end bool) (done bool, err error) {
	if refused := x.decide(x.held, truncated); refused != nil {
		return true, x.send.Send(refuse(refused))
	}
	if x.headersHeld {
		x.headersHeld = false
		if err := x.send.Send(x.pick.onHeaders()); err != nil {
			return false, err
		}
	}
	held := x.held
	x.held = nil
	for len(held) > chunkLimit {
		if err := x.send.Send(x.chunk.ofRequest(held[:chunkLimit], false)); err != nil {
			return false, err
		}
		held = held[chunkLimit:]
	}
	if len(held) == 0 && !end {
		return false, nil
	}
	return false, x.send.Send(x.chunk.ofRequest(held, end))
}

// requestTrailers end a body that did not say that it ended.
func (x *session) requestTrailers() (done bool, err error) {
	switch {
	case x.picked:
	case x.requestMode == duplex:
		if done, err := x.decideStreamed(false, false); done || err != nil {
			return done, err
		}
	default:
		if refused := x.decide(nil, false); refused != nil {
			return true, x.send.Send(refuse(refused))
		}
		return false, x.send.Send(x.pick.onTrailers())
	}
	return false, x.send.Send(continueRequestTrailers)
}

func (x *session) answerBody(b *extprocv3.HttpBody) error {
	if x.answerMode == duplex {
		return x.send.Send(x.chunk.ofAnswer(b.GetBody(), b.GetEndOfStream()))
	}
	return x.send.Send(continueAnswerBody)
}

// noteAnswer learns from the answer's headers who serves the call and how it went.
func (x *session) noteAnswer(m *extprocv3.ProcessingRequest, h *extprocv3.HttpHeaders) {
	if !x.reservation.Held() {
		return
	}
	status, _ := strconv.Atoi(header(h.GetHeaders(), ":status")) // none, or no number, counts as "other"
	x.reservation.Metrics().Responded(status)
	if status < 500 {
		x.outcome = fleet.Answered
	}
	if addr, ok := fleet.ParseEndpoint(served(m)); ok {
		x.reservation.Served(addr)
	}
}

// decide reads the facts, picks and reserves, and makes the reply ready. It is done once for a call; the refusal, if
// any, is already counted.
func (x *session) decide(body []byte, truncated bool) *refusal.Error {
	begin := time.Now()
	x.picked = true
	x.facts.Read(x.path, body, truncated)
	name, ok := fleet.ParseName(x.pool)
	p := x.server.fleet.Pool(name)
	if !ok || p == nil {
		x.server.metrics.RefusedWithoutPool(string(refusal.UnknownPool))
		return refusal.New(refusal.UnknownPool, "there is no pool %q", x.pool)
	}
	if err := p.Pick(&x.facts, &x.subset, &x.reservation); err != nil {
		refused := refusal.Of(err)
		p.Metrics().Refused(string(refused.Reason))
		return refused
	}
	x.endpoints = x.reservation.Endpoints(x.endpoints[:0])
	x.pick.set(x.endpoints)
	p.Metrics().Picked(x.reservation.PromptTokens, x.reservation.CachedTokens, time.Since(begin))
	x.server.logPick(x)
	return nil
}

// end gives back what the call holds and makes the session ready for the next call.
func (x *session) end() {
	x.reservation.Release(x.outcome)
	blocks, subset, endpoints := x.facts.Blocks[:0], x.subset.Endpoints[:0], x.endpoints[:0]
	if cap(blocks) > blocksKept {
		blocks = nil
	}
	x.message.Reset()
	x.chunk.set(nil, false)
	x.send, x.pool, x.path, x.held = nil, "", "", nil
	x.requestMode, x.answerMode = duplex, duplex
	x.headersHeld, x.picked, x.outcome = false, false, fleet.Abandoned
	x.facts = inferencereq.Facts{Blocks: blocks}
	x.subset = fleet.Subset{Endpoints: subset}
	x.endpoints = endpoints
}
