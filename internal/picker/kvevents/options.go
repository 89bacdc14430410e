package kvevents

import (
	"errors"
	"fmt"
	"time"
)

// Options set how much servers may send, and how long they may take.
type Options struct {
	// MaxBytes bounds the memory of all blocks that servers named and of what was received of messages. Each tenant has its
	// fair share of it. 0 sets no limit.
	MaxBytes int64
	// BytesPerSecond is the rate at which a tenant's servers are read, all together. What costs more than its bytes counts
	// as more: see blockCost, frameCost and dialCost. A second's bytes may be read at once after a rest.
	BytesPerSecond int
	// RetryMin and RetryMax bound the time after which a failed connection is made again: it doubles with each failure. A
	// tenth is random. Replays after gaps are at least RetryMin apart.
	RetryMin, RetryMax time.Duration
	// RoomRetry is the shortest time after which an endpoint is tried again that had no memory left in its tenant's share.
	RoomRetry time.Duration
	// Timeout is how long the sources, a connection, a handshake or a write may take.
	Timeout time.Duration
	// Quiet is the time without any message after which a server is asked whether it is there. It has as long to answer,
	// and as long for a message from its first byte to its last.
	Quiet time.Duration
	// ReplayTimeout and ReplayBytes bound a replay. Waits for the tenant's rate do not count as its time.
	ReplayTimeout time.Duration
	ReplayBytes   int64
}

// DefaultOptions have room for 3 million blocks (see blockBytes): the caches of about a hundred servers of 500,000
// tokens in blocks of 16. vLLM's replay buffer holds 10,000 batches, of about 1 to 6 KB each.
func DefaultOptions() Options {
	return Options{
		MaxBytes:       256 << 20,
		BytesPerSecond: 8 << 20,
		RetryMin:       time.Second,
		RetryMax:       30 * time.Second,
		RoomRetry:      30 * time.Second,
		Timeout:        2 * time.Second,
		Quiet:          30 * time.Second,
		ReplayTimeout:  10 * time.Second,
		ReplayBytes:    128 << 20,
	}
}

// Validate returns all that is wrong with the options.
func (o Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(o.MaxBytes >= 0, "the memory of cache events must not be negative, got %d", o.MaxBytes)
	check(o.BytesPerSecond >= 1<<10, "a tenant's rate of cache events must be at least 1024 bytes a second, got %d", o.BytesPerSecond)
	check(o.RetryMin >= time.Millisecond, "the shortest retry interval must be at least 1ms, got %v", o.RetryMin)
	check(o.RetryMax >= o.RetryMin, "the longest retry interval must be at least the shortest (%v), got %v", o.RetryMin, o.RetryMax)
	check(o.RoomRetry >= o.RetryMin, "the retry interval without memory must be at least the shortest (%v), got %v", o.RetryMin, o.RoomRetry)
	check(o.Timeout >= time.Millisecond, "the timeout must be at least 1ms, got %v", o.Timeout)
	check(o.Quiet >= time.Millisecond, "the quiet time must be at least 1ms, got %v", o.Quiet)
	check(o.ReplayTimeout >= time.Millisecond, "the replay timeout must be at least 1ms, got %v", o.ReplayTimeout)
	check(o.ReplayBytes > 0, "the bytes of a replay must be above 0, got %d", o.ReplayBytes)
	return errors.Join(errs...)
}
