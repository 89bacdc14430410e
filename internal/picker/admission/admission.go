// Package admission says which proxies may speak of which pool: those that open their stream with the pool's token. It is
// the same for all services of the picker that proxies call.
package admission

import (
	"context"

	"google.golang.org/grpc/metadata"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Check says whether a proxy that shows this token may speak of the pool of this name. Nil admits all.
type Check func(pool, token string) bool

// Admits says whether the proxy that opened a stream may speak of the pool of this name.
func (c Check) Admits(stream context.Context, name string) bool {
	return c == nil || c(name, Opened(stream, pool.TokenHeader))
}

// Opened is the value of a key of the metadata with which a stream was opened, or "".
func Opened(stream context.Context, key string) string {
	if values := metadata.ValueFromIncomingContext(stream, key); len(values) > 0 {
		return values[0]
	}
	return ""
}
