package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
)

// attacksByNumber are made with many objects, and with pods that misbehave.
var attacksByNumber = []attack{
	{"metrics pages that drip, have no end or are megabytes", serveBadPages},
	{"a model server that lies", serveLies},
	{"endpoints by the hundred, and the victim's addresses", manyEndpoints},
	{"pods and a Gateway like the victim's waypoint", resemble},
	{"an edit each 10 ms", flap},
	{"pools and routes by the hundred", manyPools},
}

// idlePods makes pods of the tenant that run no program, and waits for their addresses.
func (m *hostile) idlePods(ctx context.Context, t *testing.T, n int, labels map[string]string) []corev1.Pod {
	t.Helper()
	for i := range n {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "mallory", Name: fmt.Sprint(labels["app"], "-", i), Labels: labels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "server", Image: mesh.ClientImage}}},
		}
		must(t, m.Create(ctx, p))
		t.Cleanup(func() {
			must(t, client.IgnoreNotFound(m.Delete(context.WithoutCancel(ctx), p, client.GracePeriodSeconds(0))))
		})
	}
	var out []corev1.Pod
	eventually(ctx, t, fmt.Sprint(n, " pods"), func(ctx context.Context) error {
		out = pods(ctx, t, "mallory", labels)
		for i := range out {
			if out[i].Status.PodIP == "" {
				return errors.New("one has no address")
			}
		}
		return nil
	})
	return out
}

// poolOver makes a pool over the pods with this label app, at eight ports of each.
func (m *hostile) poolOver(ctx context.Context, t *testing.T, app string) {
	t.Helper()
	var ports []string
	for port := range 8 {
		ports = append(ports, fmt.Sprintf("{number: %d}", 8000+port))
	}
	must(t, m.apply(ctx, t, strings.NewReplacer("NAME", app, "namespace: models", "namespace: mallory", "app: llama", "app: "+app,
		"    - number: 8000\n", "    - "+strings.Join(ports, "\n    - ")+"\n").Replace(poolYAML)))
}

// serveOn serves on eight ports of each pod from this process, until the end of the test.
func serveOn(ctx context.Context, t *testing.T, pods []corev1.Pod, handler http.Handler) {
	t.Helper()
	for _, p := range pods {
		for port := range 8 {
			listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(p.Status.PodIP, strconv.Itoa(8000+port)))
			must(t, err)
			server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Second}
			go func() { _ = server.Serve(listener) }() // ends at Close
			t.Cleanup(func() { _ = server.Close() })
		}
	}
}

// outside keeps pods out of the mesh: no HBONE listener is behind their addresses.
func outside(app string) map[string]string {
	return map[string]string{"app": app, "istio.io/dataplane-mode": "none"}
}

func serveBadPages(ctx context.Context, t *testing.T, m *hostile) {
	var mu sync.Mutex
	asked := map[string]int{}
	// Making the pools is not part of the attack, and keeps both cores busy.
	var begun atomic.Bool
	page := func(kind string, serve func(w io.Writer) error) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if !begun.Load() {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			mu.Lock()
			asked[kind]++
			mu.Unlock()
			for control := http.NewResponseController(w); serve(w) == nil && control.Flush() == nil; {
				continue
			}
		}
	}
	large := strings.Repeat("vllm:num_requests_waiting{model_name=\"a\"} 1\n", 1<<11)
	drip := func(w io.Writer) error {
		time.Sleep(100 * time.Millisecond)
		_, err := io.WriteString(w, "vllm:num_requests_waiting 1\n")
		return err
	}
	endless := func(w io.Writer) error {
		time.Sleep(20 * time.Millisecond)
		_, err := io.WriteString(w, large)
		return err
	}
	megabytes := strings.Repeat(large, 32)
	whole := func(w io.Writer) error { _, _ = io.WriteString(w, megabytes); return io.EOF }
	for kind, serve := range map[string]func(io.Writer) error{"drip": drip, "endless": endless, "whole": whole} {
		serveOn(ctx, t, m.idlePods(ctx, t, 3, outside(kind)), page(kind, serve))
		m.poolOver(ctx, t, kind)
	}
	time.Sleep(time.Second) // until istiod and the waypoint have the pools
	begun.Store(true)
	eventually(ctx, t, "readings of all kinds", func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if len(asked) < 3 {
			return fmt.Errorf("only %v", asked)
		}
		return nil
	})
	time.Sleep(attackTime)
	m.victim.wantKnown(ctx, t)
}

// serveLies has metrics that report an empty queue, an endless cache, and values that are not numbers.
func serveLies(ctx context.Context, t *testing.T, m *hostile) {
	const lies = `# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="sample-model"} -1e308
vllm:num_requests_running{model_name="sample-model"} NaN
vllm:kv_cache_usage_perc{model_name="sample-model"} -Inf
vllm:cache_config_info{block_size="1073741824",num_gpu_blocks="1073741824",cache_dtype="auto"} 1
`
	serveOn(ctx, t, m.idlePods(ctx, t, 2, outside("liar")), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Served-By", "liar")
		_, _ = io.WriteString(w, lies)
	}))
	m.poolOver(ctx, t, "liar")
	time.Sleep(attackTime)
	m.victim.wantKnown(ctx, t)
	for i := range victimCallers {
		if answer, err := m.victim.say(ctx, i); err != nil || !strings.HasPrefix(answer.Endpoint, "llama-") {
			t.Errorf("the victim's call: %v, %v", answer, err)
		}
	}
}

// manyEndpoints makes hundreds of pods, and names the victim's addresses in objects of the tenant.
func manyEndpoints(ctx context.Context, t *testing.T, m *hostile) {
	theirs := pods(ctx, t, "victim", client.MatchingLabels{"app": "llama"})[0].Status.PodIP
	must(t, m.apply(ctx, t, strings.ReplaceAll(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: theirs, namespace: mallory, labels: {kubernetes.io/service-name: plain}}
addressType: IPv4
endpoints: [{addresses: [ADDRESS], conditions: {ready: true}}]
ports: [{name: http, port: 8000}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: theirs, namespace: mallory, labels: {app: many}}
spec: {address: ADDRESS, labels: {app: many}}
`, "ADDRESS", theirs)))
	m.idlePods(ctx, t, large(60), outside("many"))
	m.poolOver(ctx, t, "many")
	token, err := the.Token(ctx, "mallory", "mallory")
	must(t, err)
	eventually(ctx, t, "the endpoints", func(ctx context.Context) error {
		_, text := askPage(ctx, t, m.victim.picker(ctx, t), http.MethodGet, "/debug/pools?pool=mallory/many", token)
		if n := strings.Count(text, `"address"`); n < 8*large(60) {
			return fmt.Errorf("%d endpoints", n)
		}
		if strings.Contains(text, `"`+theirs+`:`) {
			t.Error("an address of the victim's is an endpoint of mallory's pool")
		}
		return nil
	})
	time.Sleep(attackTime)
	m.victim.wantKnown(ctx, t)
}

// resemble makes a Gateway with the name of the victim's, and a pod that looks like one of its waypoint's.
func resemble(ctx context.Context, t *testing.T, m *hostile) {
	must(t, m.apply(ctx, t, strings.NewReplacer("NAME", victimWaypoint).Replace(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: NAME, namespace: mallory, labels: {istio.io/waypoint-for: all}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: NAME, namespace: mallory}
`)))
	m.idlePods(ctx, t, 1, map[string]string{
		"app": "like-a-waypoint", "gateway.networking.k8s.io/gateway-name": victimWaypoint,
		"gateway.networking.k8s.io/gateway-class-name": "istio-waypoint", "gateway.istio.io/managed": "istio.io-mesh-controller",
	})
	from, err := the.NewCaller(ctx, "mallory", "like-a-waypoint", victimWaypoint)
	must(t, err)
	defer from.Close()
	if conn, err := from.DialPod(ctx, m.victim.picker(ctx, t), 9002); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("a pod like the victim's waypoint asked the picker: %v, %v, want a 401", conn, err)
	}
	fresh := &http.Client{Transport: m.caller.HTTP.Transport.(*http.Transport).Clone()}
	for range 5 {
		response, err := fresh.Get("http://" + victimHost + "/v1/models") //nolint:noctx // bounded by the test
		must(t, err)
		must(t, response.Body.Close())
		if got := response.Header.Get("X-Served-By"); !strings.HasPrefix(got, "llama-") {
			t.Errorf("%q served a call to the victim", got)
		}
		fresh.CloseIdleConnections()
	}
}

// editVictim edits the victim's route and returns the time until the edit is in force.
func editVictim(ctx context.Context, t *testing.T, n int) time.Duration {
	t.Helper()
	began := time.Now()
	mark := fmt.Sprint(n)
	applyYAML(ctx, t, routeYAML("victim", "edited", "llama",
		"  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Edit, value: '"+mark+"'}]}}]\n    backendRefs: ["+to("llama")+"]\n"))
	eventually(ctx, t, "the victim's edit", func(ctx context.Context) error {
		got, err := send(ctx, http.MethodGet, "http://"+victimHost+"/v1/models", "")
		if err == nil && got.Answer.Get("X-Edit") != mark {
			err = fmt.Errorf("status %d, edit %q", got.Status, got.Answer.Get("X-Edit"))
		}
		return err
	})
	return time.Since(began)
}

// debounced is the longest time for which istiod collects continuous changes of anybody (PILOT_DEBOUNCE_MAX). Our
// controller cannot shorten it.
const debounced = 10 * time.Second

// editsInTime edits the victim's route. No edit may take more than three times quiet plus longer.
func editsInTime(ctx context.Context, t *testing.T, quiet, longer time.Duration) {
	t.Helper()
	var slowest time.Duration
	for n := range 3 {
		slowest = max(slowest, editVictim(ctx, t, 100+n))
	}
	t.Logf("the victim's edits: %s at most, %s without an attack", slowest, quiet)
	if slowest > 3*quiet+longer {
		t.Errorf("an edit of the victim's took %s, and %s without an attack", slowest, quiet)
	}
}

func flap(ctx context.Context, t *testing.T, m *hostile) {
	quiet := editVictim(ctx, t, 1)
	route := func(n int) string {
		return routeYAML("mallory", "flapping", "elder", fmt.Sprintf("  - matches: [{path: {value: /%d}}]\n    backendRefs: [%s]", n, to("elder")))
	}
	must(t, m.apply(ctx, t, route(0)))
	edit := func(n int) error {
		objects, err := manifest.Decode([]byte(route(n)))
		if err == nil {
			err = m.write(ctx, objects[0])
		}
		if err == nil {
			err = patchAs(ctx, m, poolOf("elder"), fmt.Sprintf(`{"metadata":{"annotations":{"inference-waypoint.io/pick-spread":"%d"}}}`, 2+n%5))
		}
		return err
	}
	var wait sync.WaitGroup
	var over atomic.Bool
	defer func() { over.Store(true); wait.Wait() }()
	wait.Go(func() {
		for n := 1; !over.Load(); n++ {
			if err := edit(n); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	time.Sleep(attackTime)
	editsInTime(ctx, t, quiet, debounced+time.Second)
}

func manyPools(ctx context.Context, t *testing.T, m *hostile) {
	quiet := editVictim(ctx, t, 2)
	var group errgroup.Group
	group.SetLimit(4)
	for n := range large(60) {
		name := fmt.Sprint("many-", n)
		pool := strings.NewReplacer("NAME", name, "namespace: models", "namespace: mallory", "app: llama", "app: elder").Replace(poolYAML)
		group.Go(func() error {
			return m.apply(ctx, t, pool+"---"+routeYAML("mallory", name, name, "  - backendRefs: ["+to(name)+"]"))
		})
	}
	must(t, group.Wait())
	editsInTime(ctx, t, quiet, debounced+time.Second) // the controller writes the pools' status for as long
}
