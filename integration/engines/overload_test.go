//go:build engines

package engines

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

// outcomes are those of the calls of one load.
type outcomes struct {
	mu      sync.Mutex
	firsts  []time.Duration // the times to first token of what was served
	refused int
	failed  []error
}

// ask makes a call whose prompt has 100 to 3,000 tokens, most of them few, and notes what becomes of it.
func (o *outcomes) ask(ctx context.Context, random *rand.Rand) {
	tokens := min(int(100*math.Exp(1.2*math.Abs(random.NormFloat64()))), 3000)
	answer, err := say(ctx, Model, fmt.Sprint(random.Uint64(), " ", traffic.Text(random, tokens)), 8)
	o.mu.Lock()
	defer o.mu.Unlock()
	var refused *traffic.Refused
	switch {
	case errors.As(err, &refused) && refused.Status == http.StatusTooManyRequests:
		o.refused++
	case err != nil:
		o.failed = append(o.failed, err)
	default:
		o.firsts = append(o.firsts, answer.FirstToken)
	}
}

// p90 is the 90th percentile of the times to first token of what was served.
func (o *outcomes) p90() time.Duration {
	slices.Sort(o.firsts)
	return o.firsts[len(o.firsts)*9/10]
}

// most finds how many calls a second the engines can do: callers ask one call after the other.
func most(ctx context.Context, lasts time.Duration) float64 {
	var o outcomes
	var all sync.WaitGroup
	for n := range 12 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 1))
			for began := time.Now(); time.Since(began) < lasts; {
				o.ask(ctx, random)
			}
		})
	}
	all.Wait()
	return float64(len(o.firsts)) / lasts.Seconds()
}

// load makes so many calls a second at random times, the same each time, and returns when all have ended.
func load(ctx context.Context, rate float64, lasts time.Duration) *outcomes {
	var o outcomes
	var all sync.WaitGroup
	random := rand.New(rand.NewPCG(7, 7))
	for began, next := time.Now(), time.Duration(0); next < lasts; next += time.Duration(random.ExpFloat64() / rate * float64(time.Second)) {
		time.Sleep(next - time.Since(began))
		seed := random.Uint64()
		all.Go(func() { o.ask(ctx, rand.New(rand.NewPCG(seed, 1))) })
	}
	all.Wait()
	return &o
}

// Calls that come half as fast again as engines can serve them wait at the picker, the shortest go first, and some are refused. So what
// is served has its first token much sooner than where all calls wait at the engines.
func TestHoldingMoreThanEnginesCan(t *testing.T) {
	ctx := begin(t, 15*time.Minute)
	const lasts = 90 * time.Second
	rate := 1.5 * most(ctx, 30*time.Second)
	hold := func(ctx context.Context, patience string) {
		t.Helper()
		pool := &inferencev1.InferencePool{}
		pool.Namespace, pool.Name = "models", "llama"
		must(t, the.Client.Patch(ctx, pool, client.RawPatch(types.MergePatchType,
			fmt.Appendf(nil, `{"metadata":{"annotations":{"inference-waypoint.io/pick-patience":%s}}}`, patience))))
		time.Sleep(3 * time.Second) // until it counts
	}
	with := load(ctx, rate, lasts)
	hold(ctx, `"0s"`)
	t.Cleanup(func() { hold(context.WithoutCancel(ctx), "null") })
	without := load(ctx, rate, lasts)
	ratio := with.p90().Seconds() / without.p90().Seconds()
	t.Logf("%.1f calls a second: %d served, %d refused, p90 of first tokens %s; without holding %d, %d, %s; ratio %.2f",
		rate, len(with.firsts), with.refused, with.p90(), len(without.firsts), without.refused, without.p90(), ratio)
	must(t, errors.Join(slices.Concat(with.failed, without.failed)...))
	if ratio > 0.6 {
		t.Errorf("the 90th percentile of the times to first token is %.2f of that without holding, want 0.6 at most", ratio)
	}
	if len(with.firsts) < len(without.firsts)/2 {
		t.Errorf("%d calls were served, and %d without holding", len(with.firsts), len(without.firsts))
	}
}
