package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

// The tests in this file have endpoints that shed, fail, hang or are unready for a moment, and calls that callers cut. The
// model servers can be set to have such a fault.

const faultyServersYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: models}
spec:
  replicas: 4
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      containers:
        - name: server
          image: inference-waypoint/modelserver
          args: [--name=$(POD), --time-scale=20]
          env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
          readinessProbe: {httpGet: {path: /health, port: 8000}}
`

// chooseFaulty makes four model servers and a pool over them, and waits until all can be picked.
func chooseFaulty(ctx context.Context, t *testing.T, name string) choice {
	t.Helper()
	t.Cleanup(func() {
		must(t, the.Client.Delete(context.WithoutCancel(ctx), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: name}}))
		must(t, the.Client.Delete(context.WithoutCancel(ctx), pool(name)))
	})
	must(t, the.ApplyYAML(ctx, strings.ReplaceAll(faultyServersYAML, "NAME", name)))
	must(t, the.AwaitDeployment(ctx, "models", name))
	must(t, the.ApplyYAML(ctx, strings.NewReplacer("NAME", name, "ANNOTATIONS", "").Replace(choicePoolYAML)))
	c := choice{name: name, host: "http://" + name + ".models.inference.internal"}
	c.awaitEndpoints(ctx, t, 4)
	used := map[string]bool{}
	eventually(ctx, t, "calls to all four servers", func(ctx context.Context) error { // the waypoint learns of them later
		if server := c.once(ctx); server != "" {
			used[server] = true
		}
		if len(used) < 4 {
			return fmt.Errorf("only to %v", used)
		}
		return nil
	})
	return c
}

// awaitEndpoints waits until calls are served and the picker has so many endpoints.
func (c choice) awaitEndpoints(ctx context.Context, t *testing.T, want int) {
	t.Helper()
	eventually(ctx, t, fmt.Sprintf("%d endpoints of pool %s", want, c.name), func(ctx context.Context) error {
		if _, err := c.say(ctx, "Are you there?"); err != nil {
			return err
		}
		why, err := c.explain(ctx, "sample-model", "Are you there?")
		if err == nil && len(why.Candidates) != want {
			err = fmt.Errorf("%d endpoints, want %d", len(why.Candidates), want)
		}
		return err
	})
}

// setFault sets or clears a model server's fault.
func setFault(ctx context.Context, t *testing.T, p corev1.Pod, name string) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, directly(p)+"/fault/"+name, nil)
	must(t, err)
	response, err := http.DefaultClient.Do(request)
	must(t, err)
	must(t, response.Body.Close())
	if response.StatusCode != http.StatusOK {
		t.Fatalf("setting fault %s: %s", name, response.Status)
	}
}

// tally counts calls by the server that answered, and under "" those without an answer within patience. Of the latter it
// also counts the total.
type tally struct {
	mu   sync.Mutex
	by   map[string]int
	lost int
}

func (y *tally) add(server string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.by[server]++
	if server == "" {
		y.lost++
	}
}

// noneLost fails the test if a call had no answer within patience.
func (y *tally) noneLost(t *testing.T) {
	t.Helper()
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.lost > 0 {
		t.Errorf("%d calls were not answered within %s", y.lost, patience)
	}
}

// take returns the counts since the last take.
func (y *tally) take() map[string]int {
	y.mu.Lock()
	defer y.mu.Unlock()
	out := y.by
	y.by = map[string]int{}
	return out
}

// patience is how long a caller waits for the beginning of an answer.
const patience = 2 * time.Second

// load calls the pool from several clients until the test ends, with a new prompt in each call.
func (c choice) load(ctx context.Context, t *testing.T) *tally {
	t.Helper()
	y := &tally{by: map[string]int{}}
	var (
		callers sync.WaitGroup
		stopped atomic.Bool
	)
	t.Cleanup(func() { stopped.Store(true); callers.Wait() })
	for range 8 {
		callers.Go(func() {
			for !stopped.Load() && ctx.Err() == nil {
				y.add(c.once(ctx))
			}
		})
	}
	return y
}

// once makes a call and returns the name of the server that answered.
func (c choice) once(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	body := traffic.Body("sample-model", []traffic.Message{{Role: "user", Content: distinct(1, 50)[0]}}, 8)
	response, err := post(ctx, the.caller.HTTP, c.host, body, "")
	if err != nil {
		return ""
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.Header.Get("X-Served-By")
}

// share returns the share of calls that one server answered. It fails for fewer calls than least.
func share(calls map[string]int, server string, least int) (float64, error) {
	all := 0
	for _, n := range calls {
		all += n
	}
	if all < least {
		return 0, fmt.Errorf("%d calls, want %d at least", all, least)
	}
	return float64(calls[server]) / float64(all), nil
}

// watch waits until a server's share of the next calls satisfies ok.
func watch(ctx context.Context, t *testing.T, y *tally, server, what string, ok func(share float64) bool) {
	t.Helper()
	y.take()
	got := map[string]int{}
	eventually(ctx, t, what, func(context.Context) error {
		for who, n := range y.take() {
			got[who] += n
		}
		part, err := share(got, server, 150)
		if err != nil {
			return err
		}
		counted := got
		got = map[string]int{}
		if !ok(part) {
			return fmt.Errorf("the share is %.2f, of %v", part, counted)
		}
		t.Logf("%s: a share of %.2f", what, part)
		return nil
	})
}

// An endpoint that sheds or fails gets few calls meanwhile, although it answers fastest, and its full share afterwards.
func TestShedAndFailedGetLess(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	c := chooseFaulty(ctx, t, "shedding")
	y := c.load(ctx, t)
	for _, p := range c.endpoints(ctx, t) {
		for _, fault := range []string{"shed", "fail"} {
			watch(ctx, t, y, p.Name, "its part before it has fault "+fault, func(s float64) bool { return s > 0.12 })
			setFault(ctx, t, p, fault)
			watch(ctx, t, y, p.Name, "less with fault "+fault, func(s float64) bool { return s < 0.08 })
			setFault(ctx, t, p, "none")
			watch(ctx, t, y, p.Name, "its part again", func(s float64) bool { return s > 0.12 })
		}
		return
	}
}

// A pool whose endpoints all shed passes on their answers, and the waypoint loses no call.
func TestAllShed(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	c := chooseFaulty(ctx, t, "all-shed")
	servers := c.endpoints(ctx, t)
	for _, p := range servers {
		setFault(ctx, t, p, "shed")
	}
	used := map[string]bool{}
	for range 60 {
		response, err := post(ctx, the.caller.HTTP, c.host, traffic.Body("sample-model", []traffic.Message{{Role: "user", Content: distinct(1, 20)[0]}}, 1), "")
		must(t, err)
		must(t, response.Body.Close())
		if response.StatusCode != http.StatusTooManyRequests || response.Header.Get("X-Served-By") == "" {
			t.Fatalf("answered with %s by %q, want the server's own 429", response.Status, response.Header.Get("X-Served-By"))
		}
		used[response.Header.Get("X-Served-By")] = true
	}
	if len(used) != len(servers) {
		t.Errorf("of %d servers that all shed, %d were asked", len(servers), len(used))
	}
}

// An endpoint that accepts calls and never answers gets one at a time, until it answers.
func TestHangingEndpointGetsOneCallAtATime(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	c := chooseFaulty(ctx, t, "hanging")
	y := c.load(ctx, t)
	for endpoint, p := range c.endpoints(ctx, t) {
		watch(ctx, t, y, p.Name, "its part before it hangs", func(s float64) bool { return s > 0.12 })
		setFault(ctx, t, p, "hang")
		eventually(ctx, t, "that the hanging endpoint is known", func(ctx context.Context) error {
			why, err := c.explain(ctx, "sample-model", "Are you there?")
			if err != nil {
				return err
			}
			if got := candidateOf(why, p); got.Class != "does not answer" || got.InFlight != 1 {
				return fmt.Errorf("%s is in class %q with %d calls", endpoint, got.Class, got.InFlight)
			}
			return nil
		})
		before := time.Now()
		calls := 0
		y.take()
		for calls < 300 {
			select {
			case <-ctx.Done():
				t.Fatal(context.Cause(ctx))
			case <-time.After(100 * time.Millisecond):
			}
			got := y.take()
			lost := got[""]
			for _, n := range got {
				calls += n
			}
			if most := int(time.Since(before)/patience) + 2; lost > most {
				t.Errorf("%d calls were lost at once, want one at a time", lost)
			}
		}
		t.Logf("%d calls in %s beside the endpoint that hangs", calls, time.Since(before))
		setFault(ctx, t, p, "none")
		watch(ctx, t, y, p.Name, "its part again", func(s float64) bool { return s > 0.12 })
		return
	}
}

// An endpoint that is unready for a moment keeps its cache, and the picker remembers it.
func TestReadinessFlapKeepsTheCache(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	c := chooseFaulty(ctx, t, "flapping")
	prompt := distinct(1, 3000)[0]
	answer, err := c.say(ctx, prompt)
	must(t, err)
	for _, p := range c.endpoints(ctx, t) {
		if p.Name != answer.Endpoint {
			continue
		}
		setFault(ctx, t, p, "unready")
		c.awaitEndpoints(ctx, t, 3)
		setFault(ctx, t, p, "none")
		c.awaitEndpoints(ctx, t, 4)
		why, err := c.explain(ctx, "sample-model", prompt)
		must(t, err)
		if got := candidateOf(why, p); got.CachedTokens < 2000 {
			t.Errorf("%d tokens are taken to be cached after the endpoint was not ready, want most of 3,000", got.CachedTokens)
		}
		// A call that comes before the waypoint knows the endpoint again would take the prompt to another one's cache.
		eventually(ctx, t, "a call of any prompt to it", func(ctx context.Context) error {
			next, err := c.say(ctx, distinct(1, 50)[0])
			if err == nil && next.Endpoint != answer.Endpoint {
				err = fmt.Errorf("it went to %s", next.Endpoint)
			}
			return err
		})
		next, err := c.say(ctx, prompt+" And then?")
		must(t, err)
		if next.Endpoint != answer.Endpoint {
			t.Errorf("a call went to %s, want %s by its cache", next.Endpoint, answer.Endpoint)
		}
		return
	}
	t.Fatalf("%s is no endpoint", answer.Endpoint)
}

// An endpoint whose readiness flaps gets no calls while unready, its share whenever it is ready, and loses no call.
func TestReadinessFlapUnderLoad(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	c := chooseFaulty(ctx, t, "flapping-busy")
	y := c.load(ctx, t)
	for _, p := range c.endpoints(ctx, t) {
		watch(ctx, t, y, p.Name, "its part before it flaps", func(s float64) bool { return s > 0.12 })
		for range 3 {
			setFault(ctx, t, p, "unready")
			watch(ctx, t, y, p.Name, "nothing while it is not ready", func(s float64) bool { return s == 0 })
			setFault(ctx, t, p, "none")
			watch(ctx, t, y, p.Name, "its part when it is ready again", func(s float64) bool { return s > 0.12 })
		}
		break
	}
	y.noneLost(t)
}

// New endpoints get their share of calls under load, although the picker and the waypoint learn of them at different times.
// No call is lost when endpoints come or go.
func TestScalingUnderLoad(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	c := chooseFaulty(ctx, t, "scaling")
	y := c.load(ctx, t)
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: c.name}}
	for range 2 {
		before := c.endpoints(ctx, t)
		must(t, patch(ctx, deployment, `{"spec":{"replicas":6}}`))
		c.awaitEndpoints(ctx, t, 6)
		most := c.endpoints(ctx, t)
		for endpoint, p := range most {
			if _, old := before[endpoint]; !old {
				watch(ctx, t, y, p.Name, "the part of an endpoint that came", func(s float64) bool { return s > 0.08 })
			}
		}
		must(t, patch(ctx, deployment, `{"spec":{"replicas":4}}`))
		c.awaitEndpoints(ctx, t, 4)
		why, err := c.explain(ctx, "sample-model", "Who is left?")
		must(t, err)
		for _, p := range most {
			if candidateOf(why, p).Endpoint == "" {
				watch(ctx, t, y, p.Name, "nothing for an endpoint that went", func(s float64) bool { return s == 0 })
			}
		}
	}
	y.noneLost(t)
}

// A streamed answer begins before the prefill of its prompt. After a caller who leaves then, the picker takes nothing for
// cached; after one who stays, it takes the prompt for cached.
func TestBrokenOffCallLeavesNothingCached(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	c := choose(ctx, t, "broken-off", 2, 2, "", "--time-scale=1")
	cached := func(prompt string) (most int, err error) {
		why, err := c.explain(ctx, "sample-model", prompt)
		if err != nil {
			return 0, err
		}
		if calls := inFlight(why); calls > 0 {
			return 0, fmt.Errorf("%d calls are in flight", calls)
		}
		for _, candidate := range why.Candidates {
			most = max(most, candidate.CachedTokens)
		}
		return most, nil
	}
	const tokens = 40_000 // five seconds
	for _, prompt := range distinct(3, tokens) {
		response, err := post(ctx, the.caller.HTTP, c.host, traffic.Body("sample-model", []traffic.Message{{Role: "user", Content: prompt}}, 8), "")
		must(t, err)
		must(t, response.Body.Close())
		eventually(ctx, t, "the end of the call that was broken off", func(context.Context) error {
			most, err := cached(prompt)
			if err == nil && most > 200 {
				err = fmt.Errorf("%d tokens are taken to be cached", most)
			}
			return err
		})
	}
	stayed := distinct(1, 4000)[0]
	_, err := c.say(ctx, stayed)
	must(t, err)
	eventually(ctx, t, "the prompt of the call that was answered", func(context.Context) error {
		most, err := cached(stayed)
		if err == nil && most < 3000 {
			err = errors.New("it is not taken to be cached")
		}
		return err
	})
}

// After a caller who leaves in the middle of the prefill, the picker takes for cached only the part prefilled by then. The
// waypoint reports that the call was cut; by elapsed time the picker would take the whole prompt for cached.
func TestBrokenOffCallLeavesItsPart(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	c := choose(ctx, t, "broken-part", 2, 2, "", "--time-scale=1")
	const (
		tokens    = 40_000 // five seconds
		leftAfter = 2 * time.Second
	)
	prompt := distinct(1, tokens)[0]
	response, err := post(ctx, the.caller.HTTP, c.host, traffic.Body("sample-model", []traffic.Message{{Role: "user", Content: prompt}}, 8), "")
	must(t, err)
	time.Sleep(leftAfter)
	must(t, response.Body.Close())
	eventually(ctx, t, "a part of the prompt of the call that was broken off", func(ctx context.Context) error {
		why, err := c.explain(ctx, "sample-model", prompt)
		if err != nil {
			return err
		}
		most := 0
		for _, candidate := range why.Candidates {
			most = max(most, candidate.CachedTokens)
		}
		if calls := inFlight(why); calls > 0 || most < tokens/20 || most > 3*tokens/4 {
			return fmt.Errorf("%d tokens are taken to be cached, and %d calls are in flight", most, calls)
		}
		return nil
	})
}

// inFlight sums the picker's own calls in flight at all candidates.
func inFlight(why *livestate.Explanation) (calls int) {
	for _, candidate := range why.Candidates {
		calls += candidate.InFlight
	}
	return calls
}
