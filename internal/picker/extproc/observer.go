package extproc

import (
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/answer"
)

// look looks at the answer to a call to a pool, on a stream that a proxy opens to show it, and counts what it says of
// its tokens. Nothing is replied, as the proxy waits for nothing (observability_mode of Envoy's ext_proc filter). We may
// end the stream at any time: the proxy then stops showing, and the answer goes on.
//
// As a call's, the stream idles in a call of gRPC that only the proxy can end, so it has a goroutine of its own.
func (s *Server) look(stream extprocv3.ExternalProcessor_ProcessServer, name string) error {
	room := s.shown.Of(s.tenantOf(name))
	may := room.Take(1)
	defer room.Give(1)
	if p := s.find(name); p == nil || !p.CountsUsage() || !may {
		return nil
	}
	seen := make(chan struct{})
	go func() {
		defer close(seen)
		s.lookThrough(stream, name)
	}()
	select {
	case <-seen:
	case <-s.parted:
	}
	return nil
}

// lookThrough takes the answer's body. However the stream ends, what came by then is counted.
func (s *Server) lookThrough(stream extprocv3.ExternalProcessor_ProcessServer, name string) {
	defer func() {
		if fault := recover(); fault != nil {
			s.tellFault(name, fault)
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

// countUsage counts what an answer's end says of its tokens, under the pool if it is still there, and takes the tail
// back. An answer of which nothing came is none.
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
