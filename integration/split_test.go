package integration

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// All pickers pick for a pool that is split, each for pods of its own. To split a pool under load, and to join it again, costs no
// call, and next to nothing of what is cached.
func TestSplitPool(t *testing.T) {
	ctx := begin(t, 5*time.Minute)
	setPickers(ctx, t, 3, "")
	c := choose(ctx, t, "split", 4, 4, "", "--time-scale=20")
	clients := make([]*http.Client, callers) // all at one of three pickers once in 2,187 times
	for i := range clients {
		pod, err := the.NewCaller(ctx, "models", fmt.Sprint("split-caller-", i), "caller")
		must(t, err)
		t.Cleanup(pod.Close)
		clients[i] = pod.HTTP
	}
	talk := converse(ctx, c, clients...)
	defer talk.stop()
	const settled = 16 * time.Second
	time.Sleep(settled)
	before := talk.since(time.Now().Add(-settled / 2))
	t.Logf("before: %s", before)
	if before.share() < 0.75 { // it is 0.81 where each call finds its conversation
		t.Fatalf("only %.2f of the prompts is cached", before.share())
	}
	for _, change := range []struct {
		name, split string
		wantPickers func(n int) bool
	}{
		{"the pool is split", "callers", func(n int) bool { return n > 1 }},
		{"and joined", "none", func(n int) bool { return n == 1 }},
	} {
		t.Run(change.name, func(t *testing.T) {
			began := time.Now()
			c.annotate(ctx, t, picksettings.Prefix+"split", change.split)
			soon, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			eventually(soon, t, "the change", func(ctx context.Context) error {
				if by := c.pickersIn(ctx, t, time.Second); !change.wantPickers(len(by)) {
					return fmt.Errorf("the pickers are %v", by)
				}
				return nil
			})
			time.Sleep(10 * time.Second)
			if said := kubectl(ctx, t, "", "", "status", c.name, "-n", "models").out; strings.Contains(said, "at the same time") {
				t.Errorf("kubectl inference status warns:\n%s", said)
			}
			got := talk.since(began)
			t.Logf("%s, by pickers %v", got, c.pickersIn(ctx, t, time.Second))
			if got.failed > 0 {
				t.Errorf("%d of %d calls failed, the first with: %v", got.failed, got.calls, got.err)
			}
			if got.share() < 0.95*before.share() {
				t.Errorf("%.3f of the prompts was cached, and %.3f before", got.share(), before.share())
			}
			talk.log(t, began)
		})
	}
	talk.stop()

	c.annotate(ctx, t, picksettings.Prefix+"split", "callers")
	eventually(ctx, t, "one picker for each pod, whatever it claims to be, and more than one for all", func(ctx context.Context) error {
		all := map[string]bool{}
		for i, from := range clients {
			before := picksBy(ctx, t, c.name)
			for n := range 4 {
				claims := &http.Client{Transport: withHeader{from.Transport, "X-Forwarded-For", fmt.Sprintf("192.0.2.%d", n)}}
				if _, err := traffic.Chat(ctx, claims, c.host, "sample-model", []traffic.Message{{Role: "user", Content: "Who picks?"}}, 1); err != nil {
					return err
				}
			}
			by := rose(before, picksBy(ctx, t, c.name))
			if len(by) != 1 {
				return fmt.Errorf("pickers %v pick for pod %d", by, i)
			}
			all[by[0]] = true
		}
		if len(all) < 2 {
			return fmt.Errorf("all pods have the same picker")
		}
		return nil
	})
}

func (c choice) annotate(ctx context.Context, t *testing.T, name, value string) {
	t.Helper()
	must(t, patch(ctx, pool(c.name), fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, name, value)))
}

// pickersIn returns the pickers that pick for the pool in a time from now on.
func (c choice) pickersIn(ctx context.Context, t *testing.T, lasts time.Duration) []string {
	t.Helper()
	before := picksBy(ctx, t, c.name)
	time.Sleep(lasts)
	return rose(before, picksBy(ctx, t, c.name))
}

// rose returns the pickers that picked between two counts.
func rose(before, after map[string]int) (names []string) {
	for name, n := range after {
		if n > before[name] {
			names = append(names, name)
		}
	}
	return names
}
