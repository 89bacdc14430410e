package extproc

import (
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/answer"
)

// observe reads the answer to a call, on a stream that a proxy opens to show it, and counts the tokens that the answer
// reports. It sends no reply, as the proxy waits for none (observability_mode of Envoy's ext_proc filter). It may end
// the stream at any time: the proxy then stops showing, and the answer goes on.
//
// The stream idles in a gRPC receive that only the proxy can end, so it has a goroutine of its own, as a call has.
func (s *Server) observe(stream extprocv3.ExternalProcessor_ProcessServer, name string) error {
	room := s.shown.Of(s.tenantOf(name))
	may := room.Take(1)
	defer room.Give(1)
	if p := s.find(name); p == nil || !p.CountsUsage() || !may {
		return nil
	}
	seen := make(chan struct{})
	go func() {
		defer close(seen)
		s.readAnswer(stream, name)
	}()
	select {
	case <-seen:
	case <-s.parted:
	}
	return nil
}

// readAnswer reads the answer's body. However the stream ends, what came by then is counted.
func (s *Server) readAnswer(stream extprocv3.ExternalProcessor_ProcessServer, name string) {
	defer func() {
		if fault := recover(); fault != nil {
			s.logPanic(name, fault)
		}
	}()
	t := s.tails.Get().(*answer.Tail)
	var m received
	defer m.free()
	for ended := false; !ended; {
		if err := stream.RecvMsg(&m); err != nil {
			break // the call's end, or the stream's
		}
		switch m.kind {
		case onAnswerHeaders:
			ended = m.end
		case onAnswerBody:
			t.Add(m.body)
			ended = m.end
		case onAnswerTrailers:
			ended = true
		}
		m.free()
	}
	s.countUsage(name, t)
}

// countUsage counts the tokens that an answer's end reports, under the pool if it still exists, and puts the tail back.
// An answer of which nothing came is not counted.
func (s *Server) countUsage(name string, t *answer.Tail) {
	if p := s.find(name); p != nil && !t.Empty() {
		if used, ok := t.Usage(); ok {
			p.Metrics().Used(used.Prompt, used.Cached, used.Completion)
		} else {
			p.Metrics().UsageMissing()
		}
	}
	t.Reset()
	s.tails.Put(t)
}
