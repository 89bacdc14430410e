package api

import (
	"io"
	"net/http"
	"slices"
	"sync/atomic"
)

// The faults that the server can be set to, to test its callers.
const (
	faultNone    = "none"
	faultShed    = "shed"    // each completion gets 429
	faultFail    = "fail"    // each gets 500
	faultHang    = "hang"    // each gets no answer, until the caller leaves
	faultAbort   = "abort"   // each gets its connection closed
	faultUnready = "unready" // completions are served, and GET /health gets 503
)

var faults = []string{faultNone, faultShed, faultFail, faultHang, faultAbort, faultUnready}

// fault is the server's current fault.
type fault struct{ now atomic.Pointer[string] }

func (f *fault) is(name string) bool {
	now := f.now.Load()
	return now != nil && *now == name
}

// setFault handles PUT /fault/{name}.
func (s *Server) setFault(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !slices.Contains(faults, name) {
		s.fail(w, &requestError{http.StatusNotFound, "there is no such fault"})
		return
	}
	s.fault.now.Store(&name)
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	if s.fault.is(faultUnready) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

// faulty handles a completion by the current fault, or by next without one.
func (s *Server) faulty(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.fault.is(faultShed):
			s.fail(w, &requestError{http.StatusTooManyRequests, "there is too much to do"})
		case s.fault.is(faultFail):
			s.fail(w, &requestError{http.StatusInternalServerError, "out of order"})
		case s.fault.is(faultHang):
			_, _ = io.Copy(io.Discard, r.Body) // Go notices that the caller leaves only once the body is read
			<-r.Context().Done()
		case s.fault.is(faultAbort):
			panic(http.ErrAbortHandler)
		default:
			next(w, r)
		}
	}
}
