package integration

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

// editsDrain is the environment variable that selects the long form of TestEditsLoseNothing. Its value is the drain time of
// waypoints, such as Istio's default of 45s.
const editsDrain = "EDITS_DRAIN"

// The waypoints of this test.
const (
	editsWaypoint  = "edits-waypoint"
	editsWaypoint2 = "edits2-waypoint"
)

const editsYAML = `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edits-waypoint, namespace: models, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: {annotations: {proxy.istio.io/config: "drainDuration: DRAIN"}}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edits2-waypoint, namespace: models, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: {annotations: {proxy.istio.io/config: "drainDuration: DRAIN"}}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: edited-plain, namespace: models, labels: {istio.io/use-waypoint: edits-waypoint}}
spec:
  selector: {app: edited}
  ports: [{name: http, port: 80, targetPort: 8000}]
`

// editedTooYAML is the second pool of the split. It has no host of its own: the host's filter chain would update the
// listener, which the split itself does not need.
const editedTooYAML = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: edited-too, namespace: models, labels: {istio.io/use-waypoint: none}}
spec:
  selector: {matchLabels: {app: edited-too}}
  targetPorts: [{number: 8000}]
`

// editing is a pool that is edited while clients call it.
type editing struct {
	choice
	other *otherPicker
	drain time.Duration // drain time of its waypoints
	long  bool
	rows  []*editCost
	// probes counts the calls that only check whether an edit is in force.
	probes int
}

// Edits of a pool, of its routes, of its picker and of its waypoint lose no call and cut no streamed answer. Edits that
// need no change of the waypoint's listeners change none. A move to another waypoint may cost what it costs a plain
// Service. With EDITS_DRAIN=45s the test makes all edits at waypoints with Istio's default drain time, in a quarter of an
// hour. Otherwise it makes a third of the edits and waypoints drain for a second.
func TestEditsLoseNothing(t *testing.T) {
	ctx := begin(t, 28*time.Minute)
	e := setUpEditing(ctx, t)
	t.Cleanup(func() { t.Log("what edits cost:\n" + e.table()) })
	for _, kind := range e.kinds() {
		t.Run(kind.name, func(t *testing.T) {
			kind.ctx, kind.t = begin(t, 5*time.Minute), t
			e.run(kind)
		})
	}
	t.Run("moves to another waypoint", e.testMoves)
	t.Run("upgrade from the previous form", e.testUpgrade)
}

func setUpEditing(ctx context.Context, t *testing.T) *editing {
	t.Helper()
	e := &editing{drain: time.Second, long: os.Getenv(editsDrain) != ""}
	if e.long {
		var err error
		e.drain, err = time.ParseDuration(os.Getenv(editsDrain))
		must(t, err)
	}
	applyYAML(ctx, t, strings.ReplaceAll(editsYAML, "DRAIN", e.drain.String()))
	const decode = "--decode-tokens-per-second=50" // one piece of a stream each 20 ms
	runServers(ctx, t, "edited-too", 2, decode)
	e.choice = choose(ctx, t, "edited", 4, 4, "", decode)
	if e.drain > time.Second { // objects that calls may still use outlive the drain of waypoints
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "inference-controller"}}
		add := fmt.Appendf(nil, `[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--drain=%s"}]`, e.drain+15*time.Second)
		must(t, the.Client.Patch(ctx, d, client.RawPatch(types.JSONPatchType, add)))
		must(t, the.AwaitDeployment(ctx, system, d.Name))
	}
	e.other = runOtherPicker(ctx, t)
	for e.other.endpoint = range e.endpoints(ctx, t) {
		break
	}
	must(t, patch(ctx, pool(e.name), `{"metadata":{"labels":{"istio.io/use-waypoint":"`+editsWaypoint+`"}}}`))
	wantCondition(ctx, t, "models", e.name, editsWaypoint, "Accepted", metav1.ConditionTrue, "Accepted")
	must(t, e.setRoute(ctx, -1, nil))
	e.awaitEdit(ctx, t, -1)
	for _, host := range []string{e.host, plainHost} {
		eventually(ctx, t, "a call to "+host, func(ctx context.Context) error { return shortCall(ctx, the.caller.HTTP, host) })
	}
	return e
}

const plainHost = "http://edited-plain.models.svc.cluster.local"

func patch(ctx context.Context, o client.Object, merge string) error {
	return patchAs(ctx, the.Client, o, merge)
}

func patchAs(ctx context.Context, as client.Client, o client.Object, merge string) error {
	return as.Patch(ctx, o, client.RawPatch("application/merge-patch+json", []byte(merge)))
}

// editKind is a kind of edit, and what it may cost.
type editKind struct {
	name  string
	times int // number of edits in the long form
	every time.Duration
	edit  func(k *editKind, n int) error
	// after waits until the last edit is in force.
	after func(k *editKind, last int)
	// quiet says that no listener may be updated.
	quiet bool
	// replaces says that the edits must replace the filter chain; otherwise they did nothing.
	replaces bool
	// allowed is how many calls may be lost and streams cut.
	allowed *editCost

	ctx context.Context //nolint:containedctx // of the subtest, as t
	t   *testing.T
}

// kinds returns all kinds of edits except the move, which testMoves compares with that of a Service.
func (e *editing) kinds() []*editKind {
	route := func(k *editKind, n int) error { return e.setRoute(k.ctx, n, nil) }
	routed := func(k *editKind, last int) { e.awaitEdit(k.ctx, k.t, last) }
	const system, istio = "inference-system", "istio-system"
	return []*editKind{
		{name: "route edited", times: 60, every: 100 * time.Millisecond, edit: route, after: routed, quiet: true},
		{name: "weights shifted", times: 21, every: 300 * time.Millisecond, edit: e.shift, after: routed, quiet: true},
		{name: "failure mode flipped", times: 30, every: 200 * time.Millisecond, edit: e.flip, quiet: true},
		{name: "EnvoyFilters deleted", times: 5, every: time.Second, edit: e.deleteFilters, quiet: true},
		{name: "route deleted and made", times: 20, every: 300 * time.Millisecond, edit: e.remake, after: routed, quiet: true},
		{name: "settings and picker", times: 12, every: 500 * time.Millisecond, edit: e.set, quiet: true},
		{name: "route edited each 10 ms", times: 300, every: 10 * time.Millisecond, edit: route, after: routed, quiet: true},
		{name: "istiod killed amid edits", times: 60, every: 100 * time.Millisecond, edit: e.killing(istio, "app", "istiod", route), after: routed},
		{name: "controller killed amid edits", times: 60, every: 100 * time.Millisecond, edit: e.killing(system, "app.kubernetes.io/name", "inference-controller", route), after: routed},
		{name: "routes that never come", times: 3, every: 20 * time.Second, edit: e.unanswered, after: e.answered},
	}
}

// setRoute applies the route of the pool's host in one of several forms, chosen by n. A response header holds n. Without
// backends the pool is the only one.
func (e *editing) setRoute(ctx context.Context, n int, backends []string) error {
	if backends == nil {
		backends = []string{to(e.name)}
	}
	rule := func(match, filters, more string) string {
		return fmt.Sprintf("  - {matches: [%s], filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Edit, value: %q}]}}%s], backendRefs: [%s]%s}\n",
			match, fmt.Sprint(n), filters, strings.Join(backends, ", "), more)
	}
	const v1, all = "{path: {type: PathPrefix, value: /v1}}", "{path: {type: PathPrefix, value: /}}"
	var rules string
	switch n % 4 {
	case 1:
		rules = rule(all, "", fmt.Sprintf(", timeouts: {request: %ds}", 600+n))
	case 2:
		rules = rule(v1, "", "") + rule(fmt.Sprintf("{headers: [{name: X-Team, value: team-%d}]}", n), "", "") + rule(all, "", "")
	case 3:
		rules = rule(v1, ", {type: URLRewrite, urlRewrite: {hostname: model.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}", "") + rule(all, "", "")
	default:
		rules = rule(all, fmt.Sprintf(", {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Edit, value: %q}]}}", fmt.Sprint(n)), "")
	}
	return the.ApplyYAML(ctx, routeYAML("models", e.name, e.name, rules))
}

// awaitEdit waits until answers have the header of edit n.
func (e *editing) awaitEdit(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	eventually(ctx, t, fmt.Sprintf("edit %d of the route", n), func(ctx context.Context) error {
		h, err := send(ctx, http.MethodGet, e.host+"/v1/models", "")
		if err != nil {
			return err
		}
		e.probes++
		if got := h.Answer.Get("X-Edit"); got != fmt.Sprint(n) {
			return fmt.Errorf("status %d, edit %q", h.Status, got)
		}
		return nil
	})
}

// shift moves calls from the pool to a new one, step by step.
func (e *editing) shift(k *editKind, n int) error {
	if n == 0 {
		applyYAML(k.ctx, k.t, editedTooYAML)
		// The route must drop the second pool before the pool is deleted.
		k.t.Cleanup(func() {
			ctx := context.WithoutCancel(k.ctx)
			must(k.t, e.setRoute(ctx, -1, nil))
			e.awaitEdit(ctx, k.t, -1)
		})
	}
	weight := 100 * n / (e.times(k) - 1)
	backend := func(pool string, weight int) string {
		return strings.TrimSuffix(to(pool), "}") + fmt.Sprintf(", weight: %d}", weight)
	}
	return e.setRoute(k.ctx, n, []string{backend(e.name, 100-weight), backend("edited-too", weight)})
}

// flip changes the failure mode. Only the first flip is checked to come into force.
func (e *editing) flip(k *editKind, n int) error {
	mode := []string{"FailClose", "FailOpen"}[n%2]
	err := patch(k.ctx, pool(e.name), fmt.Sprintf(`{"metadata":{"annotations":{"inference-waypoint.io/failure-mode":%q}}}`, mode))
	if n == 0 {
		k.t.Cleanup(func() {
			must(k.t, patch(context.WithoutCancel(k.ctx), pool(e.name), `{"metadata":{"annotations":{"inference-waypoint.io/failure-mode":null}}}`))
		})
		eventually(k.ctx, k.t, "a pool that fails closed", func(ctx context.Context) error {
			all, err := the.WaypointConfig(ctx, "models", editsWaypoint, "", "")
			for _, config := range all {
				if bytes.Contains(config, []byte(`"failure_mode_allow": true`)) {
					err = errors.New("it fails open")
				}
			}
			return err
		})
	}
	return err
}

// deleteFilters tries to delete the pool's EnvoyFilters by hand.
func (e *editing) deleteFilters(k *editKind, _ int) error {
	if err := deleteFilters(k.ctx, "models", strings.TrimPrefix(e.host, "http://")); err == nil {
		return errors.New("EnvoyFilters were deleted by hand")
	}
	return nil
}

// remake deletes the route and makes it again, in turn.
func (e *editing) remake(k *editKind, n int) error {
	if n%2 == 1 {
		return e.setRoute(k.ctx, n, nil)
	}
	return the.Client.Delete(k.ctx, &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: e.name}})
}

// set changes settings of the pool, and switches its picker to another and back.
func (e *editing) set(k *editKind, n int) error {
	change := []string{
		`{"metadata":{"annotations":{"inference-waypoint.io/pick-usage":"true"}}}`,
		`{"spec":{"endpointPickerRef":{"name":"endless-picker","port":{"number":9002},"failureMode":"FailOpen"}}}`,
		`{"spec":{"endpointPickerRef":null}}`,
		`{"metadata":{"annotations":{"inference-waypoint.io/pick-usage":null,"inference-waypoint.io/pick-spread":"3"}}}`,
	}[n%4]
	before := e.other.picks.Load()
	err := patch(k.ctx, pool(e.name), change)
	if n%4 == 1 {
		eventually(k.ctx, k.t, "picks by the other picker", func(context.Context) error {
			if e.other.picks.Load() == before {
				return errors.New("there is none")
			}
			return nil
		})
	}
	return err
}

// neverYAML makes the chain of the pool's host ask somebody for its routes who never answers. istiod cannot be brought to that, as it
// answers for every name. With its usual time limit Envoy would wait 15 s for them, and then serve the host without any.
const neverYAML = `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: never-answered, namespace: models}
spec:
  priority: 100
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edits-waypoint}]
  configPatches:
    - applyTo: NETWORK_FILTER
      match:
        context: SIDECAR_INBOUND
        listener: {name: main_internal, filterChain: {name: "inbound-vip|80|http|HOST", filter: {name: envoy.filters.network.http_connection_manager}}}
      patch:
        operation: MERGE
        value:
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
            rds: {config_source: {api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: prometheus_stats}}]}}}
`

// unanswered has the waypoint wait for routes that never come.
func (e *editing) unanswered(k *editKind, _ int) error {
	if err := the.ApplyYAML(k.ctx, strings.ReplaceAll(neverYAML, "HOST", strings.TrimPrefix(e.host, "http://"))); err != nil {
		return err
	}
	return the.Await(k.ctx, "a listener that waits for its routes", func(ctx context.Context) error { return e.wantWaiting(ctx, 1) })
}

// answered has the waypoint get its routes again.
func (e *editing) answered(k *editKind, _ int) {
	must(k.t, e.wantWaiting(k.ctx, 1)) // to the last
	must(k.t, the.Client.Delete(k.ctx, &networkingv1alpha3.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "never-answered"}}))
	eventually(k.ctx, k.t, "no listener that waits", func(ctx context.Context) error { return e.wantWaiting(ctx, 0) })
}

// wantWaiting checks how many listeners of the waypoint wait for configuration.
func (e *editing) wantWaiting(ctx context.Context, want int) error {
	stats, err := the.WaypointStats(ctx, "models", editsWaypoint)
	if err != nil {
		return err
	}
	if got := stats["listener_manager.total_listeners_warming"]; got != want {
		return fmt.Errorf("%d listeners wait for configuration, want %d", got, want)
	}
	return nil
}

// killing makes edits and, in their middle, kills all replicas of a program, which restart after a moment.
func (e *editing) killing(namespace, label, value string, edit func(*editKind, int) error) func(*editKind, int) error {
	return func(k *editKind, n int) error {
		if n == e.times(k)/2 {
			victims := pods(k.ctx, k.t, namespace, client.MatchingLabels{label: value})
			if len(victims) == 0 {
				return fmt.Errorf("there is no pod of %s", value)
			}
			for _, victim := range victims {
				if err := the.Kill(victim.UID); err != nil {
					return err
				}
			}
		}
		return edit(k, n)
	}
}

// testMoves moves a plain Service, and then the pool, from one waypoint to another and back.
func (e *editing) testMoves(t *testing.T) {
	ctx := begin(t, 8*time.Minute)
	move := func(o client.Object) func(*editKind, int) error {
		return func(k *editKind, n int) error {
			to := []string{editsWaypoint2, editsWaypoint}[n%2]
			return patch(k.ctx, o, fmt.Sprintf(`{"metadata":{"labels":{"istio.io/use-waypoint":%q}}}`, to))
		}
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "edited-plain"}}
	plain := e.measure(&editKind{name: "a Service moved", times: 12, every: 2 * time.Second, edit: move(service), ctx: ctx, t: t}, plainHost)
	t.Logf("%s", plain)
	e.run(&editKind{
		name: "pool moved", times: 12, every: 2 * time.Second, edit: move(pool(e.name)), allowed: plain, ctx: ctx, t: t,
		after: func(k *editKind, _ int) {
			wantCondition(k.ctx, k.t, "models", e.name, editsWaypoint, "Accepted", metav1.ConditionTrue, "Accepted")
		},
	})
}

// times returns how often an edit is made.
func (e *editing) times(k *editKind) int {
	if e.long {
		return k.times
	}
	return k.times / 3
}

// run makes edits of a kind and fails if they cost more than allowed.
func (e *editing) run(k *editKind) {
	k.t.Helper()
	got, allowed := e.measure(k, e.host), cmp.Or(k.allowed, &editCost{})
	k.t.Logf("%s", got)
	if lost, may := total(got.lost), total(allowed.lost); lost > may {
		k.t.Errorf("%d of %d calls were lost, %d may be: %v", lost, got.calls, may, got.lost)
	}
	if cut, may := total(got.cut), total(allowed.cut); cut > may {
		k.t.Errorf("%d of %d streamed answers were cut, %d may be: %v", cut, got.streams, may, got.cut)
	}
	if updates := got.counted[listenerInPlace] + got.counted[listenerModified]; k.quiet && updates > 0 {
		k.t.Errorf("listeners were updated %d times", updates)
	}
	if updates := got.counted[listenerInPlace] + got.counted[listenerModified]; k.replaces && updates == 0 {
		k.t.Error("no listener was updated")
	}
	if got.calls < 50 || got.streams < 2 {
		k.t.Errorf("%d calls and %d streamed answers are too few to say anything", got.calls, got.streams)
	}
}

// measure makes edits of a kind while clients call a host, until the replaced listeners and chains have drained.
func (e *editing) measure(k *editKind, host string) *editCost {
	k.t.Helper()
	before := e.settle(k)
	picked, probed := e.picks(k), e.probes
	end := call(k.ctx, host)
	time.Sleep(time.Second) // until all calls and streams run
	times := e.times(k)
	for n, next := 0, time.Now(); n < times; n++ {
		must(k.t, k.edit(k, n))
		next = next.Add(k.every)
		time.Sleep(time.Until(next))
	}
	if k.after != nil {
		k.after(k, times-1)
	}
	after := e.settle(k)
	time.Sleep(e.drain + 2*time.Second)
	out := end()
	out.name, out.edits = k.name, times
	for i := range out.counted {
		out.counted[i] = after[i] - before[i]
	}
	if out.unpicked = -1; host == e.host {
		out.unpicked = max(0, out.calls-total(out.lost)+out.streams+e.probes-probed-(e.picks(k)-picked))
	}
	e.rows = append(e.rows, out)
	return out
}

// picks counts the picks of all pickers and pools of the test.
func (e *editing) picks(k *editKind) int {
	return picksOf(k.ctx, k.t, e.name) + picksOf(k.ctx, k.t, "edited-too") + int(e.other.picks.Load())
}

// The waypoint counters that show what an edit changed.
const (
	listenerInPlace = iota
	listenerModified
	routeUpdates
	clusterModified
	counters
)

var counterNames = [counters]*regexp.Regexp{
	listenerInPlace:  regexp.MustCompile(`^listener_manager\.listener_in_place_updated$`),
	listenerModified: regexp.MustCompile(`^listener_manager\.listener_modified$`),
	routeUpdates:     regexp.MustCompile(`\.rds\..*\.update_success$`),
	clusterModified:  regexp.MustCompile(`^cluster_manager\.cluster_modified$`),
}

// count sums the counters of both waypoints.
func (e *editing) count(ctx context.Context) (out [counters]int, err error) {
	for _, waypoint := range []string{editsWaypoint, editsWaypoint2} {
		stats, err := the.WaypointStats(ctx, "models", waypoint)
		if err != nil {
			return out, err
		}
		for name, value := range stats {
			for i, of := range counterNames {
				if of.MatchString(name) {
					out[i] += value
				}
			}
		}
	}
	return out, nil
}

// settle waits until the waypoints' configuration has not changed for two seconds, and returns the counters.
func (e *editing) settle(k *editKind) [counters]int {
	k.t.Helper()
	var last [counters]int
	var since time.Time
	eventually(k.ctx, k.t, "configuration that stays", func(ctx context.Context) error {
		now, err := e.count(ctx)
		if err != nil {
			return err
		}
		if now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < 2*time.Second {
			time.Sleep(100 * time.Millisecond)
			return errors.New("it changed a moment ago")
		}
		return nil
	})
	return last
}

// editCost is the outcome of the calls made during edits of a kind.
type editCost struct {
	name           string
	edits          int
	calls, streams int
	lost, cut      map[string]int // by the kind of error
	unpicked       int            // calls served without a pick; -1 without a picker
	slowest        time.Duration
	counted        [counters]int
}

func total(by map[string]int) (n int) {
	for _, some := range by {
		n += some
	}
	return n
}

const editHeader = "edits\ttimes\tcalls\tlost\tstreams\tcut\tunpicked\tslowest\tin place\tmodified\troutes\tclusters\tlost and cut by\t"

func (c *editCost) row() string {
	unpicked := fmt.Sprint(c.unpicked)
	if c.unpicked < 0 {
		unpicked = "-"
	}
	var by []string
	for _, some := range []map[string]int{c.lost, c.cut} {
		for _, reason := range slices.Sorted(maps.Keys(some)) {
			by = append(by, fmt.Sprintf("%d %s", some[reason], reason))
		}
	}
	return fmt.Sprintf("%s\t%d\t%d\t%d\t%d\t%d\t%s\t%.2fs\t%d\t%d\t%d\t%d\t%s\t", c.name, c.edits, c.calls, total(c.lost), c.streams, total(c.cut), unpicked,
		c.slowest.Seconds(), c.counted[listenerInPlace], c.counted[listenerModified], c.counted[routeUpdates], c.counted[clusterModified], strings.Join(by, "; "))
}

func (c *editCost) String() string { return table(c) }

func (e *editing) table() string { return table(e.rows...) }

func table(rows ...*editCost) string {
	var out strings.Builder
	columns := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(columns, editHeader)
	for _, row := range rows {
		_, _ = fmt.Fprintln(columns, row.row())
	}
	_ = columns.Flush()
	return out.String()
}

// call calls a host from eight clients in a loop, and reads two endless streamed answers, until end is called. Half of the
// clients speak HTTP/1.1, half HTTP/2, each on a connection of its own that it keeps.
func call(ctx context.Context, host string) (end func() *editCost) {
	out := &editCost{}
	lost, cut := &tally{by: map[string]int{}}, &tally{by: map[string]int{}}
	var mu sync.Mutex
	var wait sync.WaitGroup
	ending := make(chan struct{})
	over := func() bool {
		select {
		case <-ending:
			return true
		case <-ctx.Done():
			return true
		default:
			return false
		}
	}
	streaming, hangUp := context.WithCancel(ctx)
	for i := range 10 {
		with := newClient(i%2 == 0)
		wait.Go(func() {
			defer with.CloseIdleConnections()
			for !over() {
				if i < 2 {
					mu.Lock()
					out.streams++
					mu.Unlock()
					if err := endlessAnswer(streaming, with, host); err != nil {
						cut.add(kindOf(err))
						time.Sleep(afterLoss)
					}
					continue
				}
				began := time.Now()
				err := shortCall(ctx, with, host)
				mu.Lock()
				out.calls++
				out.slowest = max(out.slowest, time.Since(began))
				mu.Unlock()
				if err != nil {
					lost.add(kindOf(err))
					time.Sleep(afterLoss)
				}
			}
		})
	}
	return func() *editCost {
		close(ending)
		hangUp()
		wait.Wait()
		out.lost, out.cut = lost.take(), cut.take()
		return out
	}
}

// afterLoss is how long a client waits after a failed call, so that its next call is an independent try.
const afterLoss = 20 * time.Millisecond

// newClient makes a client of the caller's pod for one version of HTTP.
func newClient(http1 bool) *http.Client {
	transport := the.caller.HTTP.Transport.(*http.Transport).Clone()
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP1(http1)
	transport.Protocols.SetUnencryptedHTTP2(!http1)
	return &http.Client{Transport: transport}
}

// postOnce makes a call that Go's client does not retry on a closed connection, as many other clients do not.
func postOnce(ctx context.Context, with *http.Client, host string, body []byte) (*http.Response, error) {
	request, err := completion(ctx, host, body)
	if err != nil {
		return nil, err
	}
	request.GetBody = nil
	return with.Do(request)
}

// shortCall makes a call of some 50 ms. Its error says why the call was lost.
func shortCall(ctx context.Context, with *http.Client, host string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("no answer within 10 s"))
	defer cancel()
	response, err := postOnce(ctx, with, host, editBody(2))
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	switch {
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("status %d", response.StatusCode)
	case err != nil:
		return err
	case !bytes.Contains(text, []byte("data: [DONE]")):
		return io.ErrUnexpectedEOF
	}
	return nil
}

// endlessAnswer reads an answer until ctx ends. Its error says why the answer ended or stalled before.
func endlessAnswer(ctx context.Context, with *http.Client, host string) error {
	response, err := postOnce(ctx, with, host, editBody(6_000))
	if ctx.Err() != nil {
		return nil //nolint:nilerr // its end was wanted
	}
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	piece := make([]byte, 4096)
	for last := time.Now(); ; last = time.Now() {
		_, err := response.Body.Read(piece)
		switch {
		case ctx.Err() != nil && time.Since(last) > 5*time.Second: // 50 pieces are due per second
			return errors.New("the answer stood still")
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
	}
}

// editBody asks for exactly so many tokens, with a new prompt.
func editBody(tokens int) []byte {
	body := traffic.Body("sample-model", []traffic.Message{{Role: "user", Content: distinct(1, 50)[0]}}, tokens)
	return append([]byte(`{"ignore_eos":true,`), body[1:]...)
}

var streamID = regexp.MustCompile(`stream ID \d+; `)

// kindOf returns the innermost error's text, without the parts that differ from call to call.
func kindOf(err error) string {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return streamID.ReplaceAllString(err.Error(), "")
}
