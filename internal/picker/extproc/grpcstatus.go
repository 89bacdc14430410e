package extproc

import (
	"bytes"
	"net/http"
	"strconv"

	"google.golang.org/grpc/codes"
)

// A call of gRPC that fails is answered with 200, and with its status in a header where that is known at once: then the
// head is the whole answer ("Trailers-Only" of the gRPC protocol over HTTP/2). Else the status is in the trailers.
const grpcStatusHeader = "grpc-status"

// ofGRPC says whether these are the headers of an answer of gRPC.
func (r *received) ofGRPC() bool { return bytes.HasPrefix(r.contentType, []byte("application/grpc")) }

// statusOfGRPC is the status of HTTP that says of an endpoint what the head of an answer of gRPC does, and whether the
// answer has ended with it. The head of an answer that goes on tells nothing yet; one that ends the answer and has no
// status is one that clients take for unknown.
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

// failedAsGRPC says whether an answer's trailers tell that its call failed.
func (r *received) failedAsGRPC() bool {
	code := r.header(grpcStatusHeader)
	return code != nil && grpcCode(code) != codes.OK
}

// grpcCode reads a status of gRPC. What is none is unknown, as it is to clients.
func grpcCode(text []byte) codes.Code {
	n, err := strconv.ParseUint(string(text), 10, 32)
	if err != nil {
		return codes.Unknown
	}
	return codes.Code(n)
}
