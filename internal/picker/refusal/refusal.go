// Package refusal holds the reasons for which the picker refuses a call. Each is a typed error that knows its
// HTTP status and its metric label; this is the one place that maps them, and nobody reads a message's text.
package refusal

import (
	"errors"
	"fmt"
	"net/http"
)

// Reason is a kind of refusal and, as text, its metric label and the code in the error's body.
type Reason string

// The statuses that go with them are those of the Endpoint Picker Protocol 1.0.0: 503 where no endpoint can serve,
// 429 where the call is to be shed. A body that stands still has that of HTTP: 408.
const (
	UnknownPool Reason = "unknown_pool"  // the stream names no pool, or one that does not exist
	NoEndpoints Reason = "no_endpoints"  // the pool has no ready endpoint
	NotInSubset Reason = "not_in_subset" // none of the endpoints that the proxy allows is ready
	NotAdmitted Reason = "not_admitted"  // the proxy has not shown that it serves the pool
	Overloaded  Reason = "overloaded"    // the picker or the pool is at its limit
	Stalled     Reason = "stalled_body"  // the caller sent a part of its body, and no more
	Internal    Reason = "internal"      // a fault of ours
)

// Error is a refused call.
type Error struct {
	Reason  Reason
	Message string // for the caller: what is wrong, and with which pool
}

func (e *Error) Error() string { return e.Message }

// Status is the HTTP status with which the call is refused.
func (e *Error) Status() int {
	switch e.Reason {
	case Overloaded:
		return http.StatusTooManyRequests
	case Stalled:
		return http.StatusRequestTimeout
	case Internal:
		return http.StatusInternalServerError
	default:
		return http.StatusServiceUnavailable
	}
}

// New makes a refusal.
func New(reason Reason, format string, args ...any) *Error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Of finds the refusal in an error's chain. Any other error becomes an Internal one whose text stays inside.
func Of(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return New(Internal, "the endpoint picker failed")
}
