package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// The tests in this file send more calls than the servers can do. What waits then waits at the picker.

// slowServers are flags of servers that prefill 2,000 tokens a second, so that some calls are more than they can do.
var slowServers = []string{"--prefill-tokens-per-second=2000", "--decode-tokens-per-second=200"}

// heldTokens is the length of a prompt that takes such a server half a second.
const heldTokens = 1000

// asked is a call that was answered, or not.
type asked struct {
	status, retryAfter int
	code               string // of a refusal
	server             string
	took               time.Duration // to the answer's head
	err                error
}

// askWith makes a call with a prompt of its own, whose answer has a few tokens.
func (c choice) askWith(ctx context.Context, with *http.Client, tokens int) asked {
	began := time.Now()
	body := traffic.Body("sample-model", []traffic.Message{{Role: "user", Content: distinct(1, tokens)[0]}}, 4)
	response, err := post(ctx, with, c.host, body, "")
	if err != nil {
		return asked{err: err}
	}
	defer func() { _ = response.Body.Close() }()
	a := asked{status: response.StatusCode, took: time.Since(began), server: response.Header.Get("X-Served-By")}
	a.retryAfter, _ = strconv.Atoi(response.Header.Get("Retry-After")) // 0 where there is none
	answer, err := io.ReadAll(response.Body)
	if a.err = err; err == nil && a.status != http.StatusOK {
		var refused struct{ Error struct{ Code string } }
		if err := json.Unmarshal(answer, &refused); err != nil {
			a.err = fmt.Errorf("status %d with %.200q: %w", a.status, answer, err)
		}
		a.code = refused.Error.Code
	}
	return a
}

// askAll makes so many calls at once.
func (c choice) askAll(ctx context.Context, with *http.Client, calls, tokens int) func() []asked {
	out := make([]asked, calls)
	var all sync.WaitGroup
	for i := range out {
		all.Go(func() { out[i] = c.askWith(ctx, with, tokens) })
	}
	return func() []asked { all.Wait(); return out }
}

var vllmWaiting = regexp.MustCompile(`(?m)^vllm:num_requests_waiting\{.*\} (\S+)$`)

// sumOf sums a metric of the pickers for a pool.
func (c choice) sumOf(ctx context.Context, t *testing.T, metric string) (sum int) {
	t.Helper()
	for _, p := range pickers(ctx, t) {
		if page, err := metricsOf(ctx, &p, "9090"); err == nil {
			sum += counted(t, page, metric, "models", c.name)
		}
	}
	return sum
}

// awaitLine waits until so many calls wait at the picker.
func (c choice) awaitLine(ctx context.Context, t *testing.T, least int) {
	t.Helper()
	eventually(ctx, t, fmt.Sprintf("%d calls that wait", least), func(ctx context.Context) error {
		if n := c.sumOf(ctx, t, "requests_waiting"); n < least {
			return fmt.Errorf("%d do", n)
		}
		return nil
	})
}

// wantServed checks that all calls were served.
func wantServed(t *testing.T, calls []asked) {
	t.Helper()
	for i, a := range calls {
		if a.err != nil || a.status != http.StatusOK {
			t.Errorf("call %d of %d: status %d %s, %v", i, len(calls), a.status, a.code, a.err)
		}
	}
}

// topTells makes calls of which most wait, until kubectl inference top tells of them. A busy machine may start it when they are
// over.
func (c choice) topTells(ctx context.Context, t *testing.T) (calls func() []asked) {
	t.Helper()
	for {
		calls = c.askAll(ctx, c.client(), 30, heldTokens)
		c.awaitLine(ctx, t, 15)
		said := kubectl(ctx, t, "", "", "top", c.name, "-n", "models").out
		if strings.Contains(said, "wait at the picker") && strings.Contains(said, "/ns/shop/sa/checkout: ") {
			return calls
		}
		if c.sumOf(ctx, t, "requests_waiting") > 0 {
			t.Fatalf("kubectl inference top does not tell of the calls that wait:\n%s", said)
		}
		wantServed(t, calls())
	}
}

// More calls than servers can do wait at the picker and not at the servers, the shortest go first, and all are served. The waypoint
// waits for their picks for as long as it takes.
func TestCallsWaitForServers(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	c := choosePicked(ctx, t, "held", 2, 2, "", slowServers...)
	before, err := the.WaypointStats(ctx, "models", "waypoint")
	must(t, err)
	long := c.topTells(ctx, t)
	short := c.askAll(ctx, c.client(), 3, 50)()
	waiting := 0
	for _, p := range c.endpoints(ctx, t) {
		page, err := metricsOf(ctx, &p, "8000")
		must(t, err)
		n, err := strconv.ParseFloat(vllmWaiting.FindStringSubmatch(page)[1], 64)
		must(t, err)
		waiting += int(n)
	}
	if waiting > 4 {
		t.Errorf("%d calls wait at two servers", waiting)
	}
	wantServed(t, short)
	all := long()
	wantServed(t, all)
	slowest := slices.MaxFunc(all, func(a, b asked) int { return int(a.took - b.took) }).took
	for _, a := range short {
		if a.took > slowest/2 {
			t.Errorf("a short call waited %s, and the longest wait was %s", a.took, slowest)
		}
	}
	if slowest < 3*time.Second {
		t.Errorf("the last of 30 calls of half a second waited only %s", slowest)
	}
	after, err := the.WaypointStats(ctx, "models", "waypoint")
	must(t, err)
	for name, n := range after {
		if strings.Contains(name, "ext_proc") && (strings.HasSuffix(name, ".message_timeouts") || strings.HasSuffix(name, ".override_message_timeout_ignored")) && n > before[name] {
			t.Errorf("%s rose by %d", name, n-before[name])
		}
	}
	c.awaitNoLine(ctx, t)
}

func (c choice) awaitNoLine(ctx context.Context, t *testing.T) {
	t.Helper()
	eventually(ctx, t, "nothing that waits", func(ctx context.Context) error {
		if n := c.sumOf(ctx, t, "requests_waiting"); n > 0 {
			return fmt.Errorf("%d calls wait", n)
		}
		return nil
	})
}

// Rules apply by the identity that the waypoint has proven, whatever headers say. Callers who go leave the line.
func TestCallersInTheLine(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	c := choosePicked(ctx, t, "ranked", 1, 1, "", slowServers...)
	low, err := the.NewCaller(ctx, "shop", "nightly", "nightly")
	must(t, err)
	t.Cleanup(low.Close)
	c.annotate(ctx, t, picksettings.Prefix+"callers", "shop/nightly priority=-1; shop/checkout weight=2")
	eventually(ctx, t, "the rules", func(ctx context.Context) error {
		leaving, leave := context.WithCancel(ctx)
		done := c.askAll(leaving, c.client(), 6, heldTokens)
		defer func() { leave(); done() }()
		c.awaitLine(ctx, t, 2)
		forged := &http.Client{Transport: withHeader{low.HTTP.Transport, "X-Gateway-Inference-Objective", "urgent"}}
		a := c.askWith(ctx, forged, 50)
		if a.status != http.StatusTooManyRequests || a.code != "shed" || a.retryAfter < 1 {
			return fmt.Errorf("a call of a negative priority gets %+v", a)
		}
		return nil
	})
	c.awaitNoLine(ctx, t)
	wantServed(t, []asked{c.askWith(ctx, low.HTTP, 50)})
	if served, err := c.say(ctx, "Are you still there?"); err != nil {
		t.Errorf("after the line: %+v, %v", served, err)
	}
}

// A call whose turn would come too late is refused at once, with the time after which to try again.
func TestRefusedEarly(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	c := choosePicked(ctx, t, "late", 1, 1, `inference-waypoint.io/pick-patience: 4s`, slowServers...)
	wantServed(t, c.askAll(ctx, c.client(), 8, heldTokens)()) // the picker learns the speed
	wantServed(t, c.askAll(ctx, c.client(), 8, heldTokens)())
	served, early := 0, 0
	for i, a := range c.askAll(ctx, c.client(), 60, heldTokens)() {
		switch {
		case a.status == http.StatusOK:
			served++
		case a.status != http.StatusTooManyRequests || a.code != "too_late" || a.retryAfter < 1 || a.retryAfter > 60 || a.err != nil:
			t.Errorf("call %d gets %+v", i, a)
		case a.took < time.Second:
			early++
		}
	}
	if served < 6 || served > 20 || early < (60-served)/2 {
		t.Errorf("of 60 calls of half a second %d were served, and %d refused within a second", served, early)
	}
	c.awaitNoLine(ctx, t)
}

// A picker that dies, or is replaced, while it holds calls costs none of them: the waypoint goes on without it.
func TestHeldCallsOutliveTheirPicker(t *testing.T) {
	ctx := begin(t, 5*time.Minute)
	setPickers(ctx, t, 2, "")
	c := choose(ctx, t, "outlived", 2, 2, "", slowServers...)
	for name, end := range map[string]func(){
		"dies": func() {
			at := mostOf(picksBy(ctx, t, c.name))
			for _, p := range pickers(ctx, t) {
				if p.Name == at {
					must(t, the.Kill(p.UID))
				}
			}
		},
		"is replaced": func() { rollPickers(ctx, t) },
	} {
		t.Run(name, func(t *testing.T) {
			c.awaitEndpoints(ctx, t, 2)
			calls := c.askAll(ctx, c.client(), 24, heldTokens)
			c.awaitLine(ctx, t, 8)
			end()
			wantServed(t, calls())
		})
	}
}

// A pool that is scaled to zero has its calls wait for a pod, if it is set to.
func TestCallsWaitForAPod(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	c := choose(ctx, t, "asleep", 1, 1, `inference-waypoint.io/pick-endpoints-within: 1m`, "--time-scale=20")
	scale := func(replicas int) {
		must(t, patch(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: c.name}}, fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)))
	}
	scale(0)
	eventually(ctx, t, "a pool without endpoints", func(ctx context.Context) error {
		if n := c.sumOf(ctx, t, "endpoints"); n != 0 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	calls := c.askAll(ctx, c.client(), 5, 50)
	c.awaitLine(ctx, t, 5)
	if needed := c.sumOf(ctx, t, "servers_needed"); needed < 1 {
		t.Errorf("%d servers are needed by 5 calls that wait", needed)
	}
	scale(1)
	wantServed(t, calls())
}

// InferenceObjectives of the API group of the time give calls their priority, where the pool trusts its callers.
func TestObjectives(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	defineReferenceKinds(ctx, t)
	c := choosePicked(ctx, t, "objectives", 1, 1, `inference-waypoint.io/pick-trust-callers: "true"`, slowServers...)
	must(t, the.ApplyYAML(ctx, `
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
metadata: {name: whenever, namespace: models}
spec: {priority: -5, poolRef: {name: objectives}}
`))
	whenever := &http.Client{Transport: withHeader{c.client().Transport, "x-gateway-inference-objective", "whenever"}}
	eventually(ctx, t, "the objective", func(ctx context.Context) error { // the picker looks for the API each half minute
		leaving, leave := context.WithCancel(ctx)
		done := c.askAll(leaving, c.client(), 6, heldTokens)
		defer func() { leave(); done() }()
		c.awaitLine(ctx, t, 2)
		if a := c.askWith(ctx, whenever, 50); a.status != http.StatusTooManyRequests || a.code != "shed" {
			return fmt.Errorf("a call of this objective gets %+v", a)
		}
		return nil
	})
	c.awaitNoLine(ctx, t)
	wantServed(t, []asked{c.askWith(ctx, whenever, 50)})
}
