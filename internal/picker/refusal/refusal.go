// Package refusal holds the typed reasons for which the picker refuses a call, and maps each to its HTTP status and
// metric label. It must not know how a refusal reaches the caller. Nothing reads a message's text.
package refusal

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Reason is a kind of refusal and, as text, its metric label and the code in the error body.
type Reason string

// Their statuses are those of the Endpoint Picker Protocol 1.0.0: 503 where no endpoint can serve, 429 where the call
// is shed. A body that stops coming gets HTTP's 408.
const (
	UnknownPool Reason = "unknown_pool"  // the stream names no pool, or one that does not exist
	NoEndpoints Reason = "no_endpoints"  // the pool has no ready endpoint
	NotInSubset Reason = "not_in_subset" // none of the endpoints that the proxy allows is ready
	NotAdmitted Reason = "not_admitted"  // the proxy did not send the pool's token
	Overloaded  Reason = "overloaded"    // the picker or the pool is at its limit
	TooLate     Reason = "too_late"      // the first token would come after the time that the call has for it
	Shed        Reason = "shed"          // a call of a negative priority, while others wait
	LineFull    Reason = "line_full"     // the pool or the caller has as many calls waiting as it may
	Stalled     Reason = "stalled_body"  // the caller sent only a part of its body
	Internal    Reason = "internal"      // an error of the picker itself
)

// Error is a refused call.
type Error struct {
	Reason  Reason
	Message string // for the caller: what is wrong, and with which pool
	// RetryAfter is when the call may be tried again, with hope; 0 where that is not known.
	RetryAfter time.Duration
}

func (e *Error) Error() string { return e.Message }

// Status is the HTTP status with which the call is refused.
func (e *Error) Status() int {
	switch e.Reason {
	case Overloaded, TooLate, Shed, LineFull:
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

// Of returns the refusal in an error's chain. Any other error becomes an Internal one, whose text callers do not see.
func Of(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return New(Internal, "the endpoint picker failed")
}
