package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"testing"
)

// TestBodiesAroundTheLimit sends a waypoint bodies of about the length that it buffers, with and without a content-length.
// Each arrives complete, with its end: with BUFFERED_PARTIAL Envoy loses the end of some longer bodies, and with BUFFERED it
// answers 413 to what its listener's own limit does not let it buffer.
func TestBodiesAroundTheLimit(t *testing.T) {
	const limit, each = 1 << 20, 15
	for _, door := range []string{"waypoint", "waypoint narrow", "waypoint http2", "waypoint " + duplex} {
		for _, length := range []int{100_000, 999_999, 1_000_000, limit - 1, limit, limit + 1, limit + 60_000, limit + 150_000, 2 * limit} {
			for _, told := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, %d bytes, told %v", door, length, told), func(t *testing.T) {
					body := append(prompt("around the limit", length/2), bytes.Repeat([]byte(" "), length)...)[:length]
					sum := sha256.Sum256(body)
					for range each {
						var reader io.Reader = bytes.NewReader(body)
						if !told {
							reader = struct{ io.Reader }{reader} // the client cannot tell its length
						}
						a := call(t, door, reader, header("Content-Type", "application/json"))
						if a.status != http.StatusOK || a.heard.Bytes != int64(length) || a.heard.SHA256 != hex.EncodeToString(sum[:]) {
							t.Fatalf("the answer is %d, and %d bytes arrived", a.status, a.heard.Bytes)
						}
					}
				})
			}
		}
	}
}
