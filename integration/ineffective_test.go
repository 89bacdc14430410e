package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
)

// The hosts of these tests: that of a pool, and that of a Service at the same waypoint. Calls to the Service show whether
// istiod has applied a change.
const (
	ofPool    = "http://echo.lost.inference.internal"
	ofService = "http://plain.lost.svc.cluster.local"
)

// The pool's parts in the waypoint: istiod's filter chain and cluster for its host, and our cluster of its endpoints.
const (
	chainOfPool   = "inbound-vip|80|http|echo.lost.inference.internal"
	clusterOfPool = "inference|lost/echo"
)

// setUpLost makes the namespace of these tests.
func setUpLost(ctx context.Context, t *testing.T) {
	t.Helper()
	must(t, the.ApplyYAML(ctx, `
apiVersion: v1
kind: Namespace
metadata: {name: lost, labels: {istio.io/dataplane-mode: ambient, inference-waypoint.io/waypoint: inference}}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: lost, labels: {istio.io/use-waypoint: inference}}
spec: {selector: {app: echo}, ports: [{name: http, port: 80, targetPort: 8000}]}
`))
	serve(ctx, t, "lost", "echo", echoServer, 1)
	for _, host := range []string{ofPool, ofService} {
		eventually(ctx, t, "a served call to "+host, func(ctx context.Context) error { return wantAnswer(ctx, host, http.StatusOK) })
	}
}

// wantAnswer makes a call and fails if the status of the answer differs.
func wantAnswer(ctx context.Context, host string, status int) error {
	got, err := send(ctx, http.MethodGet, host+"/", "")
	if err == nil && got.Status != status {
		err = fmt.Errorf("status %d, want %d", got.Status, status)
	}
	return err
}

// wantMark makes a call and checks whether the answer has the header x-mark, as marked says.
func wantMark(ctx context.Context, host string, marked bool) error {
	got, err := send(ctx, http.MethodGet, host+"/", "")
	if err == nil && (got.Answer.Get("x-mark") != "") != marked {
		err = fmt.Errorf("status %d, headers %v: marked is to be %t", got.Status, got.Answer, marked)
	}
	return err
}

// applyYAML applies objects and deletes them after the test.
func applyYAML(ctx context.Context, t *testing.T, stream string) {
	t.Helper()
	must(t, the.ApplyYAML(ctx, stream))
	t.Cleanup(func() { withdraw(context.WithoutCancel(ctx), t, stream) })
}

// withdraw deletes objects, which may be gone already.
func withdraw(ctx context.Context, t *testing.T, stream string) {
	t.Helper()
	objects, err := manifest.Decode([]byte(stream))
	must(t, err)
	for _, o := range objects {
		must(t, client.IgnoreNotFound(the.Client.Delete(ctx, o)))
	}
}

// toldIneffective returns what the pool's status lists as having no effect.
func toldIneffective(ctx context.Context) (string, error) {
	var p inferencev1.InferencePool
	if err := the.Client.Get(ctx, client.ObjectKey{Namespace: "lost", Name: "echo"}, &p); err != nil {
		return "", err
	}
	parent := parentOf(&p, "inference")
	if parent == nil || !meta.IsStatusConditionTrue(parent.Conditions, "Accepted") {
		return "", fmt.Errorf("the pool is not accepted: %+v", p.Status.Parents)
	}
	if c := meta.FindStatusCondition(parent.Conditions, "inference-waypoint.io/IneffectiveConfig"); c != nil {
		return c.Message, nil
	}
	return "", nil
}

// wantTold waits until the pool's status lists an object, or none if object is empty.
func wantTold(ctx context.Context, t *testing.T, object string) {
	t.Helper()
	eventually(ctx, t, fmt.Sprintf("a status that tells of %q", object), func(ctx context.Context) error {
		got, err := toldIneffective(ctx)
		if err == nil && (object == "" && got != "" || !strings.Contains(got, object)) {
			err = fmt.Errorf("it tells of %q", got)
		}
		return err
	})
}

// The pool's status lists others' configuration that has no effect on calls to the pool, and no other.
func TestIneffectiveConfig(t *testing.T) {
	ctx := begin(t, 6*time.Minute)
	setUpLost(ctx, t)
	t.Run("VirtualService", testLostVirtualService)
	t.Run("DestinationRule", testLostDestinationRule)
	t.Run("EnvoyFilter of routes", testLostRoutePatch)
	t.Run("EnvoyFilter of clusters", testLostClusterPatch)
	t.Run("Telemetry, which holds", testTelemetry)
	t.Run("WasmPlugin, which holds", testWasmPlugin)
}

func testLostVirtualService(t *testing.T) {
	ctx := begin(t, time.Minute)
	const faults = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: faults, namespace: lost}
spec:
  hosts: [echo.lost.inference.internal, plain]
  http:
  - fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: plain}}]
`
	applyYAML(ctx, t, faults)
	wantTold(ctx, t, "VirtualService lost/faults (write an HTTPRoute")
	eventually(ctx, t, "the fault at the Service", func(ctx context.Context) error { return wantAnswer(ctx, ofService, http.StatusTeapot) })
	must(t, wantAnswer(ctx, ofPool, http.StatusOK))
	wantSaid(t, kubectl(ctx, t, "", "", "status", "-n", "lost"), 0, "VirtualService lost/faults (write an HTTPRoute", "next: docs/routes.md")
	if got := kubectl(ctx, t, "", "", "doctor").out; !strings.Contains(got, "warning  pool lost/echo: Without effect on calls to the pool: VirtualService lost/faults (write an HTTPRoute") {
		t.Errorf("doctor does not tell:\n%s", got)
	}
	withdraw(ctx, t, faults)
	wantTold(ctx, t, "")
}

func testLostDestinationRule(t *testing.T) {
	ctx := begin(t, time.Minute)
	const limits = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: limits, namespace: lost}
spec: {host: "*.lost.inference.internal", trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1234}}}}
`
	applyYAML(ctx, t, limits)
	wantTold(ctx, t, "DestinationRule lost/limits (")
	eventually(ctx, t, "the limit at istiod's own cluster", func(ctx context.Context) error {
		return wantIn(`"max_requests": 1234`, cluster(ctx, t, chainOfPool))
	})
	if wantIn("1234", cluster(ctx, t, clusterOfPool)) == nil {
		t.Error("the limit holds at the pool's cluster")
	}
	withdraw(ctx, t, limits)
	wantTold(ctx, t, "")
}

// filter is an EnvoyFilter at the waypoint.
func filter(name, patches string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: %s, namespace: lost}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: inference}]
  configPatches:
%s`, name, patches)
}

func testLostRoutePatch(t *testing.T) {
	ctx := begin(t, time.Minute)
	marks := filter("marks", `
  - applyTo: HTTP_ROUTE
    match: {context: SIDECAR_INBOUND}
    patch: {operation: MERGE, value: {response_headers_to_add: [{header: {key: x-mark, value: "1"}}]}}
`)
	applyYAML(ctx, t, marks)
	wantTold(ctx, t, "EnvoyFilter lost/marks (")
	eventually(ctx, t, "the mark at the Service", func(ctx context.Context) error { return wantMark(ctx, ofService, true) })
	must(t, wantMark(ctx, ofPool, false))
	withdraw(ctx, t, marks)
	wantTold(ctx, t, "")
}

// httpFilter is a patch that inserts a filter into all of the waypoint's filter chains.
func httpFilter(name, kind, config string) string {
	return fmt.Sprintf(`
  - applyTo: HTTP_FILTER
    match: {context: SIDECAR_INBOUND, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}}
    patch:
      operation: INSERT_FIRST
      value: {name: %s, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.%s, %s}}
`, name, kind, config)
}

func testLostClusterPatch(t *testing.T) {
	ctx := begin(t, time.Minute)
	// The mark shows that the waypoint has the filter from istiod, and that patches of HTTP filters apply.
	const mark = `mutations: {response_mutations: [{append: {header: {key: x-mark, value: "1"}}}]}`
	clusters := filter("clusters", `
  - applyTo: CLUSTER
    match: {context: SIDECAR_INBOUND, cluster: {name: inference|lost/echo}}
    patch: {operation: MERGE, value: {connect_timeout: 1.234s}}
  - applyTo: CLUSTER
    match: {context: SIDECAR_INBOUND, cluster: {service: echo.lost.inference.internal}}
    patch: {operation: MERGE, value: {connect_timeout: 1.234s}}
`+httpFilter("mark", "header_mutation.v3.HeaderMutation", mark))
	applyYAML(ctx, t, clusters)
	wantTold(ctx, t, "EnvoyFilter lost/clusters (")
	eventually(ctx, t, "the mark", func(ctx context.Context) error { return wantMark(ctx, ofPool, true) })
	for _, name := range []string{clusterOfPool, chainOfPool} {
		if wantIn("1.234s", cluster(ctx, t, name)) == nil {
			t.Errorf("the patch holds at cluster %s", name)
		}
	}
	withdraw(ctx, t, clusters)
	wantTold(ctx, t, "")
}

func testTelemetry(t *testing.T) {
	ctx := begin(t, time.Minute)
	applyYAML(ctx, t, `
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: failures, namespace: lost}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: inference}]
  accessLogging: [{providers: [{name: envoy}], filter: {expression: response.code == 418}}]
`)
	eventually(ctx, t, "the log's filter in the pool's chain", func(ctx context.Context) error {
		return wantIn("response.code == 418", chain(ctx, t, chainOfPool))
	})
	wantTold(ctx, t, "")
}

// teapot is a WebAssembly filter that answers each request with status 418. In its text form:
//
//	(module
//	  (import "env" "proxy_send_local_response" (func (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
//	  (memory (export "memory") 1)
//	  (func (export "proxy_abi_version_0_2_1"))
//	  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
//	  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
//	    (drop (call 0 (i32.const 418) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
//	    (i32.const 1)))
func teapot() []byte {
	section := func(id byte, content ...byte) []byte { return append([]byte{id, byte(len(content))}, content...) }
	name := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	join := func(parts ...[]byte) (out []byte) {
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	const i32 = 0x7f
	types := []byte{4,
		0x60, 8, i32, i32, i32, i32, i32, i32, i32, i32, 1, i32,
		0x60, 0, 0,
		0x60, 1, i32, 1, i32,
		0x60, 3, i32, i32, i32, 1, i32,
	}
	exports := join([]byte{4}, name("memory"), []byte{2, 0}, name("proxy_abi_version_0_2_1"), []byte{0, 1},
		name("proxy_on_memory_allocate"), []byte{0, 2}, name("proxy_on_request_headers"), []byte{0, 3})
	code := []byte{3,
		2, 0, 0x0b,
		5, 0, 0x41, 0x80, 0x08, 0x0b,
		24, 0, 0x41, 0xa2, 0x03, 0x41, 0, 0x41, 0, 0x41, 0, 0x41, 0, 0x41, 0, 0x41, 0, 0x41, 0x7f, 0x10, 0, 0x1a, 0x41, 1, 0x0b,
	}
	return join([]byte("\x00asm\x01\x00\x00\x00"), section(1, types...),
		section(2, join([]byte{1}, name("env"), name("proxy_send_local_response"), []byte{0, 0})...),
		section(3, 3, 1, 2, 3), section(5, 1, 0, 1), section(7, exports...), section(10, code...))
}

func testWasmPlugin(t *testing.T) {
	ctx := begin(t, time.Minute)
	path := filepath.Join(t.TempDir(), "teapot.wasm")
	must(t, os.WriteFile(path, teapot(), 0o644))
	applyYAML(ctx, t, fmt.Sprintf(`
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: teapot, namespace: lost}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: inference}]
  url: file://%s
`, path))
	eventually(ctx, t, "the plugin's answer at the pool", func(ctx context.Context) error { return wantAnswer(ctx, ofPool, http.StatusTeapot) })
	wantTold(ctx, t, "")
}

// cluster returns a cluster of the waypoint, as JSON.
func cluster(ctx context.Context, t *testing.T, name string) string {
	t.Helper()
	for _, c := range dumped[struct {
		Cluster struct{ Name string }
	}](ctx, t, "dynamic_active_clusters") {
		if c.parsed.Cluster.Name == name {
			return c.text
		}
	}
	t.Fatalf("the waypoint has no cluster %s", name)
	return ""
}

// chain returns a host's filter chain of the waypoint, as JSON. It is empty if there is none.
func chain(ctx context.Context, t *testing.T, name string) string {
	t.Helper()
	for _, l := range dumped[struct {
		ActiveState struct {
			Listener struct {
				FilterChains []json.RawMessage `json:"filter_chains"`
			}
		} `json:"active_state"`
	}](ctx, t, "dynamic_listeners") {
		for _, c := range l.parsed.ActiveState.Listener.FilterChains {
			var named struct{ Name string }
			must(t, json.Unmarshal(c, &named))
			if named.Name == name {
				return string(c)
			}
		}
	}
	return ""
}

// resource is an Envoy resource, as text and with the fields that are read.
type resource[T any] struct {
	text   string
	parsed T
}

// dumped lists the waypoint's resources of a kind.
func dumped[T any](ctx context.Context, t *testing.T, kind string) []resource[T] {
	t.Helper()
	configs, err := the.WaypointConfig(ctx, "lost", "inference", kind, "")
	must(t, err)
	var out []resource[T]
	for _, raw := range configs {
		r := resource[T]{text: string(raw)}
		must(t, json.Unmarshal(raw, &r.parsed))
		out = append(out, r)
	}
	return out
}

// wantIn fails if text is not in the other text.
func wantIn(text, in string) error {
	if !strings.Contains(in, text) {
		return fmt.Errorf("there is no %q in %s", text, in)
	}
	return nil
}
