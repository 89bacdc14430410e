package waypointwatch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// world is a cluster's waypoints and what their pods answer. It is used in a bubble of synctest, whose time is its own.
type world struct {
	mu        sync.Mutex
	waypoints []Waypoint
	pages     map[netip.Addr]func(context.Context) (map[string]counters, error)
	bytes     map[string]int // of a page, by the first byte of the pod's address
	changed   []string
	inFlight  map[string]int // by the first byte of the address
	most      map[string]int
}

func newWorld() *world {
	return &world{pages: map[netip.Addr]func(context.Context) (map[string]counters, error){}, bytes: map[string]int{}, inFlight: map[string]int{}, most: map[string]int{}}
}

func (w *world) watch() *Watch {
	return newWatch(
		func(context.Context) ([]Waypoint, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Clone(w.waypoints), nil
		},
		func(_ context.Context, name types.NamespacedName) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.changed = append(w.changed, name.String())
		},
		func(error) {},
		func(ctx context.Context, pod netip.Addr) (map[string]counters, int, error) {
			whose := strings.Split(pod.String(), ".")[0]
			w.mu.Lock()
			w.inFlight[whose]++
			w.most[whose] = max(w.most[whose], w.inFlight[whose])
			page, bytes := w.pages[pod], w.bytes[whose]
			w.mu.Unlock()
			defer func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.inFlight[whose]--
			}()
			if page == nil {
				return nil, 0, errors.New("connection refused")
			}
			out, err := page(ctx)
			return out, bytes, err
		},
		clock.RealClock{},
	)
}

func named(namespace, name string) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: name}
}

// at is a waypoint of a namespace with so many pods, that serves pools of the namespace.
func at(namespace string, net, pods int, pools ...string) Waypoint {
	out := Waypoint{Name: named(namespace, "waypoint")}
	for _, p := range pools {
		out.Pools = append(out.Pools, Pool{Name: named(namespace, p)})
	}
	for i := range pods {
		out.Pods = append(out.Pods, Pod{UID: types.UID(fmt.Sprint(namespace, i)), Address: netip.AddrFrom4([4]byte{byte(net), 0, 0, byte(i)})})
	}
	return out
}

// counting answers with pages on which calls come by the second, each picked or none.
func counting(picked bool, pools ...types.NamespacedName) func(context.Context) (map[string]counters, error) {
	start := time.Now()
	return func(context.Context) (map[string]counters, error) {
		n := int64(time.Since(start) / time.Second)
		out := map[string]counters{}
		for _, p := range pools {
			c := counters{started: n, closed: n, sent: 3 * n, received: 3 * n}
			if !picked {
				c = counters{started: n, closed: n, failed: n, allowed: n, sent: n}
			}
			out[pool.CounterName(p)] = c
		}
		return out, nil
	}
}

func (w *Watch) state(namespace, name string) Verdict {
	v, _ := w.Verdict(Place{Pool: named(namespace, name), Waypoint: named(namespace, "waypoint")})
	return v
}

// The first failing calls change the verdict within ten seconds.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		the := newWorld()
		llama := named("a", "llama")
		the.waypoints = []Waypoint{at("a", 1, 2, "llama")}
		the.pages[the.waypoints[0].Pods[0].Address] = counting(true, llama)
		the.pages[the.waypoints[0].Pods[1].Address] = counting(true, llama)
		w := the.watch()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx, 5*time.Second)
		time.Sleep(time.Minute)
		if got := w.state("a", "llama"); got != (Verdict{State: Picked}) {
			t.Errorf("while calls are picked: %+v", got)
		}
		the.mu.Lock()
		for _, p := range the.waypoints[0].Pods { // proxies that were started anew, whose picker refuses them
			the.pages[p.Address] = counting(false, llama)
		}
		the.changed = nil
		the.mu.Unlock()
		time.Sleep(10 * time.Second)
		the.mu.Lock()
		if got := w.state("a", "llama"); got.State != Unpicked || !slices.Contains(the.changed, "a/llama") {
			t.Errorf("ten seconds after the first failure: %+v, told of %v", got, the.changed)
		}
		the.mu.Unlock()
		time.Sleep(time.Minute)
		if got := w.state("a", "llama"); got != (Verdict{Unpicked, Refused}) {
			t.Errorf("a minute later: %+v", got)
		}
		_, counts := w.Verdict(Place{llama, named("a", "waypoint")})
		if counts.Asked < 50 || counts.Asked != counts.Unpicked {
			t.Errorf("of 60 calls of two pods %+v", counts)
		}
	})
}

// Calls without a pick are known as soon as Look has had the pages read, and only those that lack a pick of the default picker.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, duplex := range []bool{false, true} {
			the := newWorld()
			the.waypoints = []Waypoint{at("a", 1, 1, "llama")}
			the.waypoints[0].Pools[0].Duplex, the.waypoints[0].Pools[0].ByDefault = duplex, !duplex
			page := counting(true, named("a", "llama"))
			the.pages[the.waypoints[0].Pods[0].Address] = page
			w := the.watch()
			ctx, cancel := context.WithCancel(t.Context())
			go w.Run(ctx, time.Hour)
			time.Sleep(time.Minute)
			began := time.Now().Add(-time.Second)
			w.Look()
			time.Sleep(time.Second)
			if w.Unpicked(time.Time{}) {
				t.Error("calls that are picked count as unpicked")
			}
			the.mu.Lock()
			the.pages[the.waypoints[0].Pods[0].Address] = func(ctx context.Context) (map[string]counters, error) {
				out, err := page(ctx)
				for name, c := range out {
					c.failed, c.sent = 1, c.sent+1
					out[name] = c
				}
				return out, err
			}
			the.mu.Unlock()
			time.Sleep(time.Minute)
			if w.Unpicked(began) {
				t.Error("the page was read too early")
			}
			for range 3 { // more than once is once
				w.Look()
			}
			time.Sleep(time.Second)
			if got := w.Unpicked(began); got == duplex {
				t.Errorf("calls to a pool of another picker (%t) count as unpicked: %t", duplex, got)
			}
			if w.Unpicked(began.Add(time.Minute)) {
				t.Error("calls count that may have come before")
			}
			cancel()
		}
	})
}

// A page counts only for the pools of its own waypoint, and only maxPods pods of a waypoint are read.
func TestWatchOfForeignPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		the := newWorld()
		the.waypoints = []Waypoint{at("good", 1, 1, "llama"), at("evil", 2, 1, "own")}
		the.pages[the.waypoints[0].Pods[0].Address] = counting(true, named("good", "llama"))
		the.pages[the.waypoints[1].Pods[0].Address] = counting(false, named("good", "llama"), named("evil", "own"))
		w := the.watch()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx, 5*time.Second)
		time.Sleep(time.Minute)
		if got := w.state("good", "llama"); got != (Verdict{State: Picked}) {
			t.Errorf("the pool that another namespace's pod tells of: %+v", got)
		}
		if got := w.state("evil", "own"); got != (Verdict{Unpicked, Refused}) {
			t.Errorf("the pod's own pool: %+v", got)
		}
	})
}

// The bytes parsed for a namespace in a second are bounded, however many waypoints it has and whatever their pods answer.
func TestLongPagesOfManyWaypointsAreReadSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		the := newWorld()
		reads := map[string]int{}
		add := func(namespace string, net int) {
			w := at(namespace, net, 1, "llama")
			the.waypoints = append(the.waypoints, w)
			page := counting(true, named(namespace, "llama"))
			the.pages[w.Pods[0].Address] = func(ctx context.Context) (map[string]counters, error) {
				the.mu.Lock()
				reads[namespace]++
				the.mu.Unlock()
				return page(ctx)
			}
			the.bytes[fmt.Sprint(net)] = maxPage
		}
		for net := range 100 {
			add("evil", 100+net)
		}
		add("good", 1)
		ctx, cancel := context.WithCancel(t.Context())
		go the.watch().Run(ctx, 5*time.Second)
		time.Sleep(time.Minute + time.Second)
		the.mu.Lock() // while it still runs
		if most := (61*bytesBySecond + 13*pageBurst) / maxPage; reads["evil"] > most || reads["evil"] < 100 {
			t.Errorf("100 pages of 1 MiB were read %d times in a minute, want each once and %d in all at most", reads["evil"], most)
		}
		if reads["good"] != 13 {
			t.Errorf("the other namespace's page was read %d times in a minute, want 13", reads["good"])
		}
		the.mu.Unlock()
		cancel()
		synctest.Wait()
	})
}

// Slow pods, however many, delay only the pods of their own namespace.
func TestSlowPodsHoldUpTheirNamespaceAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		the := newWorld()
		good := at("good", 1, 2, "llama")
		the.waypoints = []Waypoint{good}
		read := 0
		for _, p := range good.Pods {
			page := counting(true, named("good", "llama"))
			the.pages[p.Address] = func(ctx context.Context) (map[string]counters, error) {
				the.mu.Lock()
				read++
				the.mu.Unlock()
				return page(ctx)
			}
		}
		slowRead := map[netip.Addr]bool{} // of the first slow namespace
		for net := range 60 {
			slow := at(fmt.Sprint("slow", net), 100+net, 50, "a", "b")
			the.waypoints = append(the.waypoints, slow)
			for _, p := range slow.Pods {
				the.pages[p.Address] = func(context.Context) (map[string]counters, error) {
					if net == 0 {
						the.mu.Lock()
						slowRead[p.Address] = true
						the.mu.Unlock()
					}
					time.Sleep(readTimeout)
					return nil, context.DeadlineExceeded
				}
			}
		}
		w := the.watch()
		ctx, cancel := context.WithCancel(t.Context())
		go w.Run(ctx, 5*time.Second)
		time.Sleep(time.Minute + time.Second)
		if got := w.state("good", "llama"); got != (Verdict{State: Picked}) {
			t.Errorf("beside slow pods: %+v", got)
		}
		the.mu.Lock()
		if want := 2 * 13; read != want {
			t.Errorf("the other namespace's pods were read %d times in a minute, want %d", read, want)
		}
		if the.most["100"] != readsByNamespace {
			t.Errorf("%d pods of one namespace were read at once, want %d", the.most["100"], readsByNamespace)
		}
		if len(slowRead) != maxPods {
			t.Errorf("%d pods of one waypoint were read, want %d", len(slowRead), maxPods)
		}
		the.mu.Unlock()
		if got := w.state("slow0", "a"); got != (Verdict{Unread, NotReached}) {
			t.Errorf("of slow pods: %+v", got)
		}
		cancel()
		synctest.Wait()
		time.Sleep(time.Minute)
	})
}

func TestWhyUnread(t *testing.T) {
	page, other := map[string]counters{}, map[string]counters{"x": {}}
	for name, tt := range map[string]struct {
		pages []map[string]counters
		want  Cause
	}{
		"no pods":                    {nil, NoPods},
		"none answers":               {[]map[string]counters{nil, nil}, NotReached},
		"one answers with no pools":  {[]map[string]counters{nil, page, nil}, NotCounted},
		"one answers with others'":   {[]map[string]counters{page, other}, NotConfigured},
		"the others do not help it":  {[]map[string]counters{other, nil}, NotConfigured},
		"the first of several tells": {[]map[string]counters{page, nil}, NotCounted},
	} {
		if got := whyUnread(tt.pages); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// Only existing pools have metrics, and the metrics show the current verdicts.
func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		the := newWorld()
		the.waypoints = []Waypoint{at("a", 1, 1, "llama", "new"), at("b", 2, 1, "llama"), at("c", 3, 0, "llama")}
		the.pages[the.waypoints[0].Pods[0].Address] = func(context.Context) (map[string]counters, error) {
			out, _ := counting(true)(t.Context())
			n := int64(time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) / time.Second)
			out[pool.CounterName(named("a", "llama"))] = counters{started: n, closed: n, sent: 2 * n, received: 2 * n}
			out[pool.CounterName(named("a", "new"))] = counters{}
			return out, nil
		}
		the.pages[the.waypoints[1].Pods[0].Address] = counting(false, named("b", "llama"))
		w := the.watch()
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(w)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx, 5*time.Second)
		time.Sleep(31 * time.Second)
		want := `inference_waypoint_calls_asked_total{pool="a/llama",waypoint="a/waypoint"} 30
inference_waypoint_calls_asked_total{pool="a/new",waypoint="a/waypoint"} 0
inference_waypoint_calls_asked_total{pool="b/llama",waypoint="b/waypoint"} 30
inference_waypoint_calls_asked_total{pool="c/llama",waypoint="c/waypoint"} 0
inference_waypoint_calls_unpicked_total{pool="a/llama",waypoint="a/waypoint"} 0
inference_waypoint_calls_unpicked_total{pool="a/new",waypoint="a/waypoint"} 0
inference_waypoint_calls_unpicked_total{pool="b/llama",waypoint="b/waypoint"} 30
inference_waypoint_calls_unpicked_total{pool="c/llama",waypoint="c/waypoint"} 0
inference_waypoint_picked{pool="a/llama",waypoint="a/waypoint"} 1
inference_waypoint_picked{pool="b/llama",waypoint="b/waypoint"} 0
`
		if diff := cmp.Diff(want, series(t, registry)); diff != "" {
			t.Errorf("metrics (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(Verdict{State: NotCalled}, w.state("a", "new")); diff != "" {
			t.Errorf("a pool that is not called (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(Verdict{Unread, NoPods}, w.state("c", "llama")); diff != "" {
			t.Errorf("a waypoint without pods (-want +got):\n%s", diff)
		}
		the.mu.Lock()
		the.waypoints = nil
		the.mu.Unlock()
		time.Sleep(5 * time.Second)
		if left := series(t, registry); left != "" {
			t.Errorf("of pools that are gone there is left:\n%s", left)
		}
		if len(w.pods) > 0 {
			t.Errorf("%d pods are kept", len(w.pods))
		}
	})
}

// series are a registry's, in the text format without its comments.
func series(t *testing.T, registry *prometheus.Registry) string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text, out strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&text, f); err != nil {
			t.Fatal(err)
		}
	}
	for l := range strings.Lines(text.String()) {
		if !strings.HasPrefix(l, "#") {
			out.WriteString(l)
		}
	}
	return out.String()
}
