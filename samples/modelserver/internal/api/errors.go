package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/engine"
)

// requestError is a refusal with its HTTP status.
type requestError struct {
	status  int
	message string
}

func (e *requestError) Error() string { return e.message }

func badRequest(format string, args ...any) error {
	return &requestError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// errorBody is OpenAI's form of an error, with vLLM's types.
type errorBody struct {
	Error errorDetail `json:"error"`
}

type errorDetail struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    int     `json:"code"`
}

func newErrorBody(err error) errorBody {
	status := statusOf(err)
	// "Bad Request" becomes "BadRequestError".
	kind := strings.ReplaceAll(http.StatusText(status), " ", "")
	if !strings.HasSuffix(kind, "Error") {
		kind += "Error"
	}
	return errorBody{errorDetail{Message: err.Error(), Type: kind, Code: status}}
}

// statusOf is the only place that turns an error into a status.
func statusOf(err error) int {
	var (
		refusal  *requestError
		tooLong  *engine.ContextLengthError
		tooLarge *http.MaxBytesError
		syntax   *json.SyntaxError
		badType  *json.UnmarshalTypeError
	)
	switch {
	case errors.As(err, &refusal):
		return refusal.status
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.As(err, &tooLong), errors.As(err, &syntax), errors.As(err, &badType), errors.Is(err, engine.ErrNoLoRA):
		return http.StatusBadRequest
	case errors.Is(err, engine.ErrStopped), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

func (s *Server) fail(w http.ResponseWriter, err error) {
	s.writeJSON(w, statusOf(err), newErrorBody(err))
}

// writeJSON writes a whole response. A failure, as when the caller has left, is
// logged at debug level.
func (s *Server) writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("writing a response", "error", err)
	}
}
