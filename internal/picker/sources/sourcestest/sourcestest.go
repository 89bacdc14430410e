// Package sourcestest holds what the tests of sources of pools share.
package sourcestest

import (
	"bytes"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// NewFleet makes a fleet without pools.
func NewFleet() *poolstate.Fleet {
	return poolstate.New(poolstate.Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry())})
}

// AddressesOf lists a pool's endpoints; nil where there is no such pool.
func AddressesOf(f *poolstate.Fleet, name string) []string {
	key, _ := pool.ParseName(name)
	p := f.Pool(key)
	if p == nil {
		return nil
	}
	out := []string{}
	for _, e := range p.Endpoints() {
		out = append(out, e.Address.String())
	}
	return out
}

// Eventually waits until holds returns true, which another goroutine brings about.
func Eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// Buffer is a buffer that one goroutine may write while another reads it.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

var _ io.Writer = (*Buffer)(nil)

// Write adds to the buffer.
func (l *Buffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns all that was written.
func (l *Buffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
