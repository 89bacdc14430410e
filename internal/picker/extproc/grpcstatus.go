package extproc

import (
	"bytes"
	"net/http"
	"strconv"

	"google.golang.org/grpc/codes"
)

// A gRPC call that fails is answered with HTTP status 200. If the failure is known at once, the headers are the whole
// answer and hold the gRPC status ("Trailers-Only" in gRPC over HTTP/2). Otherwise the trailers hold it.
const grpcStatusHeader = "grpc-status"

// ofGRPC says whether these are the headers of a gRPC answer.
func (r *received) ofGRPC() bool { return bytes.HasPrefix(r.contentType, []byte("application/grpc")) }

// statusOfGRPC returns the HTTP status that stands for the same outcome as the headers of a gRPC answer, and whether
// the answer ends with them. Headers of an answer that goes on show no outcome yet. Headers that end the answer without
// a status count as Unknown, as they do to gRPC clients.
func (r *received) statusOfGRPC() (status int, ended bool) {
	code := r.header(grpcStatusHeader)
	if code == nil && !r.end {
		return http.StatusOK, false
	}
	switch grpcCode(code) {
	case codes.OK:
		return http.StatusOK, true
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests, true
	case codes.Unavailable, codes.Internal, codes.Unknown, codes.DeadlineExceeded:
		return http.StatusInternalServerError, true
	}
	return http.StatusBadRequest, true
}

// failedAsGRPC says whether an answer's trailers show that its gRPC call failed.
func (r *received) failedAsGRPC() bool {
	code := r.header(grpcStatusHeader)
	return code != nil && grpcCode(code) != codes.OK
}

// grpcCode parses a gRPC status. Text that is no status counts as Unknown, as it does to gRPC clients.
func grpcCode(text []byte) codes.Code {
	n, err := strconv.ParseUint(string(text), 10, 32)
	if err != nil {
		return codes.Unknown
	}
	return codes.Code(n)
}
