package kvevents

import (
	"context"
	"errors"

	"golang.org/x/time/rate"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
)

// errNoRoom is the error where the tenant's share leaves no memory.
var errNoRoom = errors.New("the memory for cache events that the tenant may use is full: raise the picker's limit, or shrink the servers' caches")

// What costs more than the bytes that are read counts as so many bytes of the tenant's rate. A block takes about as long
// as 64 bytes of a payload of small ints, and a server's frame of a few bytes as long as reading some 64 at once. At
// 8 MiB a second, the default, a tenant so takes about a tenth of a core at most.
const (
	blockCost = 64
	frameCost = 64
	dialCost  = 4 << 10
)

// tenant is the owner of endpoints. They share its memory and its rate.
type tenant struct {
	share *fairshare.Share
	rate  *rate.Limiter
}

func newTenant(o Options, share *fairshare.Share) *tenant {
	return &tenant{share: share, rate: rate.NewLimiter(rate.Limit(o.BytesPerSecond), o.BytesPerSecond)}
}

// pay waits until so many bytes are within the tenant's rate. Those that wait are served in turn.
func (t *tenant) pay(ctx context.Context, bytes int) error {
	for bytes > 0 {
		some := min(bytes, t.rate.Burst())
		if err := t.rate.WaitN(ctx, some); err != nil {
			return err
		}
		bytes -= some
	}
	return nil
}

// hold is memory that is taken of a tenant's share.
type hold struct {
	tenant *tenant
	bytes  int64
}

// set takes or gives back memory so that the hold has so many bytes. Where the share does not allow more, the hold stays
// as it is, and the error is errNoRoom.
func (h *hold) set(bytes int64) error {
	more := bytes - h.bytes
	if fits := h.tenant.share.Take(more); !fits && more > 0 {
		h.tenant.share.Give(more)
		return errNoRoom
	}
	h.bytes = bytes
	return nil
}

// free gives all of the hold back.
func (h *hold) free() { _ = h.set(0) }
