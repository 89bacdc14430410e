package protocol

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
)

// waypointLimits are the controller's limits for a pool's cluster.
func waypointLimits() any {
	patch, err := envoypatch.ClusterPatch(envoypatch.Cluster{Name: "limited"})
	if err != nil {
		panic(err) // the cluster is a constant
	}
	return patch.Patch.Value.AsMap()["circuit_breakers"]
}

// When all calls lose their endpoint at once, Envoy retries no more than the retry budget allows: half of the calls in
// flight.
func TestRetryBudget(t *testing.T) {
	const calls = 80
	var first, again, lost atomic.Int64
	all, answer := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var callers sync.WaitGroup
	for range calls {
		var attempts atomic.Int64
		crash := script(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if attempts.Add(1) > 1 {
				again.Add(1)
				<-answer
				return
			}
			if first.Add(1) == calls {
				close(all)
			}
			<-all
			panic(http.ErrAbortHandler)
		})
		callers.Go(func() {
			response, err := try(ctx, client, "waypoint limited", ask(t.Name()), crash)
			if err != nil {
				t.Error(err)
				return
			}
			_ = response.Body.Close()
			if response.StatusCode != http.StatusOK {
				lost.Add(1)
			}
		})
	}
	eventually(t, "each call to be repeated or lost", func() bool { return again.Load()+lost.Load() == calls })
	close(answer)
	callers.Wait()
	if got := again.Load(); got < 16 || got > calls/2+1 {
		t.Errorf("%d of %d calls are repeated at once, want at least 16 and at most half", got, calls)
	}
}
