// Package proxies decides which proxies may ask about which pool: those that open their stream with the pool's token.
// It must not know what the proxies ask: all services of the picker that proxies call use it.
package proxies

import (
	"context"

	"google.golang.org/grpc/metadata"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Check says whether a proxy that sends this token may ask about the pool of this name. Nil admits all.
type Check func(pool, token string) bool

// Admits says whether the proxy that opened a stream may ask about the pool of this name.
func (c Check) Admits(stream context.Context, name string) bool {
	return c == nil || c(name, Opened(stream, pool.TokenHeader))
}

// Opened returns the value of a key in the metadata of a stream's opening, or "".
func Opened(stream context.Context, key string) string {
	if values := metadata.ValueFromIncomingContext(stream, key); len(values) > 0 {
		return values[0]
	}
	return ""
}
