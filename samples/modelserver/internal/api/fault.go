package api

import (
	"io"
	"net/http"
	"slices"
	"sync/atomic"
)

// The faults that the server can be told to have, to see what its callers do then.
const (
	faultNone    = "none"
	faultShed    = "shed"    // every completion is answered with 429
	faultFail    = "fail"    // with 500
	faultHang    = "hang"    // with nothing, until the caller leaves
	faultAbort   = "abort"   // by closing the connection
	faultUnready = "unready" // completions are served, and GET /health is answered with 503
)

var faults = []string{faultNone, faultShed, faultFail, faultHang, faultAbort, faultUnready}

// fault is the fault that the server has now.
type fault struct{ now atomic.Pointer[string] }

func (f *fault) is(name string) bool {
	now := f.now.Load()
	return now != nil && *now == name
}

// setFault is PUT /fault/{name}.
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

// faulty serves a completion by the fault that the server has, or by next where it has none.
func (s *Server) faulty(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.fault.is(faultShed):
			s.fail(w, &requestError{http.StatusTooManyRequests, "there is too much to do"})
		case s.fault.is(faultFail):
			s.fail(w, &requestError{http.StatusInternalServerError, "out of order"})
		case s.fault.is(faultHang):
			_, _ = io.Copy(io.Discard, r.Body) // only then is it noticed that the caller leaves
			<-r.Context().Done()
		case s.fault.is(faultAbort):
			panic(http.ErrAbortHandler)
		default:
			next(w, r)
		}
	}
}
