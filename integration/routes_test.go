package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// routed is the host of the routes in these tests. Its pool is base; the other backends are the pools canary and remote (in
// another namespace) and the Service plain.
const routed = "http://base.routes.inference.internal"

// setUpRoutes makes the namespace of these tests once.
func setUpRoutes(ctx context.Context, t *testing.T) {
	t.Helper()
	must(t, the.ApplyYAML(ctx, `
apiVersion: v1
kind: Namespace
metadata: {name: routes, labels: {istio.io/dataplane-mode: ambient, inference-waypoint.io/waypoint: inference}}
---
apiVersion: v1
kind: Namespace
metadata: {name: remote, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: routes}
spec: {selector: {app: plain}, ports: [{name: http, port: 80, targetPort: 8000}]}
`))
	for _, name := range []string{"base", "canary", "plain"} {
		serve(ctx, t, "routes", name, echoServer, 1)
	}
	serve(ctx, t, "remote", "remote", echoServer, 1)
	eventually(ctx, t, "a served call", func(ctx context.Context) error { return wantHeard(ctx, routed+"/", "base-") })
}

// route applies an HTTPRoute with these rules to the pool's ServiceEntry, and deletes it after the test.
func route(ctx context.Context, t *testing.T, name, rules string) {
	t.Helper()
	must(t, the.ApplyYAML(ctx, routeYAML("routes", name, "base", rules)))
	t.Cleanup(func() {
		r := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "routes", Name: name}}
		if err := the.Client.Delete(context.WithoutCancel(ctx), r); err != nil {
			t.Error(err)
		}
	})
}

// routeYAML is an HTTPRoute on the ServiceEntry of a pool of its namespace.
func routeYAML(namespace, name, pool, rules string) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: %s, namespace: %s}
spec:
  parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: %s}]
  rules:
%s`, name, namespace, pool, rules)
}

// to is a backend: a pool of the route's namespace.
func to(pool string) string {
	return "{group: inference.networking.k8s.io, kind: InferencePool, name: " + pool + "}"
}

func TestRoutes(t *testing.T) {
	ctx := begin(t, 8*time.Minute)
	setUpRoutes(ctx, t)
	for name, test := range routeTests {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t, time.Minute)
			route(ctx, t, "tested", test.rules)
			for _, check := range test.checks {
				eventually(ctx, t, check.name, check.check)
			}
		})
	}
	t.Run("weights", testWeights)
	t.Run("mirror", testMirror)
	t.Run("one pool at two waypoints", testTwoWaypoints)
	t.Run("a pool of another namespace", testReferenceGrant)
	t.Run("precedence", testPrecedence)
	t.Run("an invalid rule harms only itself", testInvalidRules)
	t.Run("istiod's own support of pools, on", testOwnSupport)
}

type routeCheck struct {
	name  string
	check func(context.Context) error
}

// reaches checks that a GET of path with these headers reaches a server.
func reaches(path, server string, headers ...string) routeCheck {
	return routeCheck{path + strings.Join(headers, " "), func(ctx context.Context) error { return wantHeard(ctx, routed+path, server, headers...) }}
}

// hears checks what a server received of a GET.
func hears(path string, check func(*heard) error) routeCheck {
	return routeCheck{path, func(ctx context.Context) error {
		h, err := send(ctx, http.MethodGet, routed+path, "", "X-Drop", "1")
		if err != nil {
			return err
		}
		return check(h)
	}}
}

var routeTests = map[string]struct {
	rules  string
	checks []routeCheck
}{
	"path, exact": {
		rules:  `  - {matches: [{path: {type: Exact, value: /one}}], backendRefs: [` + to("canary") + `]}` + "\n" + `  - {backendRefs: [` + to("base") + `]}`,
		checks: []routeCheck{reaches("/one", "canary-"), reaches("/one/more", "base-"), reaches("/", "base-")},
	},
	"path, by prefix": {
		rules:  `  - {matches: [{path: {type: PathPrefix, value: /v2}}], backendRefs: [` + to("canary") + `]}` + "\n" + `  - {backendRefs: [` + to("base") + `]}`,
		checks: []routeCheck{reaches("/v2", "canary-"), reaches("/v2/chat", "canary-"), reaches("/v2chat", "base-")},
	},
	"path, by expression": {
		rules:  `  - {matches: [{path: {type: RegularExpression, value: "/v[0-9]+/chat"}}], backendRefs: [` + to("canary") + `]}` + "\n" + `  - {backendRefs: [` + to("base") + `]}`,
		checks: []routeCheck{reaches("/v12/chat", "canary-"), reaches("/vx/chat", "base-")},
	},
	"header": {
		rules:  `  - {matches: [{headers: [{name: X-Team, value: red}]}], backendRefs: [` + to("canary") + `]}` + "\n" + `  - {backendRefs: [` + to("base") + `]}`,
		checks: []routeCheck{reaches("/", "canary-", "X-Team", "red"), reaches("/", "base-", "X-Team", "blue"), reaches("/", "base-")},
	},
	"query": {
		rules:  `  - {matches: [{queryParams: [{name: mode, value: fast}]}], backendRefs: [` + to("canary") + `]}` + "\n" + `  - {backendRefs: [` + to("base") + `]}`,
		checks: []routeCheck{reaches("/?mode=fast", "canary-"), reaches("/?mode=slow", "base-")},
	},
	"method": {
		rules: `  - {matches: [{method: GET}], backendRefs: [` + to("canary") + `]}` + "\n" + `  - {backendRefs: [` + to("base") + `]}`,
		checks: []routeCheck{reaches("/", "canary-"), {"POST", func(ctx context.Context) error {
			h, err := send(ctx, http.MethodPost, routed+"/", "{}")
			if err == nil && !strings.HasPrefix(h.Server, "base-") {
				err = fmt.Errorf("%d as %q", h.Status, h.Server)
			}
			return err
		}}},
	},
	"every authority": {
		rules: `  - {backendRefs: [` + to("canary") + `]}`,
		checks: []routeCheck{
			reaches("/", "canary-"), reaches("/", "canary-", "Host", "base.routes.inference.internal:80"),
			reaches("/", "canary-", "Host", "240.240.0.1"), reaches("/", "canary-", "Host", "something.else"),
			reaches("/", "canary-", "Host", "x"),
		},
	},
	"headers set, added and removed": {
		rules: `  - {backendRefs: [` + to("canary") + `], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: "1"}], add: [{name: X-Add, value: "2"}], remove: [X-Drop]}},` +
			`{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Back, value: "3"}], remove: [X-Internal]}}]}`,
		checks: []routeCheck{hears("/", func(h *heard) error {
			if !strings.HasPrefix(h.Server, "canary-") || h.Headers.Get("X-Set") != "1" || h.Headers.Get("X-Add") != "2" || h.Headers.Get("X-Drop") != "" {
				return fmt.Errorf("%q heard %v", h.Server, h.Headers)
			}
			if h.Answer.Get("X-Back") != "3" || h.Answer.Get("X-Internal") != "" {
				return fmt.Errorf("the answer has %v", h.Answer)
			}
			return nil
		})},
	},
	"URL rewritten": {
		rules: `  - {matches: [{path: {type: PathPrefix, value: /llama}}], backendRefs: [` + to("canary") + `], filters: [{type: URLRewrite, urlRewrite: {hostname: models.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}]}`,
		checks: []routeCheck{hears("/llama/chat?x=1", func(h *heard) error {
			if !strings.HasPrefix(h.Server, "canary-") || h.Path != "/v1/chat?x=1" || h.Host != "models.example" {
				return fmt.Errorf("%q heard %s of %s", h.Server, h.Path, h.Host)
			}
			return nil
		})},
	},
	"redirect": {
		rules: `  - {filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example, statusCode: 301}}]}`,
		checks: []routeCheck{hears("/chat", func(h *heard) error {
			if location := h.Answer.Get("Location"); h.Status != http.StatusMovedPermanently || !strings.HasPrefix(location, "http://new.example") || !strings.HasSuffix(location, "/chat") {
				return fmt.Errorf("%d to %q", h.Status, location)
			}
			return nil
		})},
	},
	"timeout": {
		rules: `  - {backendRefs: [` + to("canary") + `], timeouts: {request: 300ms}}`,
		checks: []routeCheck{reaches("/", "canary-"), hears("/?sleep=3s", func(h *heard) error {
			if h.Status != http.StatusGatewayTimeout {
				return fmt.Errorf("status %d", h.Status)
			}
			return nil
		})},
	},
	"a Service among the backends": {
		rules:  `  - {matches: [{path: {type: PathPrefix, value: /plain}}], backendRefs: [{name: plain, port: 80}]}` + "\n" + `  - {backendRefs: [` + to("base") + `]}`,
		checks: []routeCheck{reaches("/plain", "plain-"), reaches("/", "base-")},
	},
}

// testWeights splits calls 90 to 10 over two pools. Of 300 calls the canary should get 30, standard deviation 5.2.
func testWeights(t *testing.T) {
	ctx := begin(t, time.Minute)
	route(ctx, t, "weights", `  - filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Split, value: "yes"}]}}]
    backendRefs:
    - {group: inference.networking.k8s.io, kind: InferencePool, name: base, weight: 90}
    - {group: inference.networking.k8s.io, kind: InferencePool, name: canary, weight: 10}`)
	eventually(ctx, t, "the split", func(ctx context.Context) error {
		h, err := send(ctx, http.MethodGet, routed+"/", "")
		if err == nil && h.Answer.Get("X-Split") == "" {
			err = errors.New("another route is still in force")
		}
		return err
	})
	reached := map[string]int{}
	for range 300 {
		h, err := send(ctx, http.MethodPost, routed+"/v1/chat/completions", `{"model":"m","messages":[]}`)
		must(t, err)
		reached[h.Server]++
	}
	if got := reached["canary-0"]; got < 9 || got > 51 || reached["base-0"] != 300-got {
		t.Errorf("calls reached %v, want about 270 and 30", reached)
	}
}

func testMirror(t *testing.T) {
	ctx := begin(t, time.Minute)
	route(ctx, t, "mirror", `  - {backendRefs: [`+to("base")+`], filters: [{type: RequestMirror, requestMirror: {backendRef: `+to("canary")+`}}]}`+"\n"+
		`  - {matches: [{path: {value: /count}}], backendRefs: [`+to("canary")+`]}`)
	key := fmt.Sprint(time.Now().UnixNano())
	eventually(ctx, t, "mirrored calls", func(ctx context.Context) error {
		if err := wantHeard(ctx, routed+"/x?key="+key, "base-"); err != nil {
			return err
		}
		h, err := send(ctx, http.MethodGet, routed+"/count?key="+key, "")
		if err == nil && (!strings.HasPrefix(h.Server, "canary-") || h.Count < 3) {
			err = fmt.Errorf("%q has seen %d calls", h.Server, h.Count)
		}
		return err
	})
}

// testTwoWaypoints reaches a pool from a second waypoint, by a Service bound to that waypoint.
func testTwoWaypoints(t *testing.T) {
	ctx := begin(t, time.Minute)
	must(t, the.ApplyYAML(ctx, `
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: second, namespace: routes, labels: {istio.io/waypoint-for: service}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata:
  name: front
  namespace: routes
  labels: {istio.io/use-waypoint: second}
  annotations: {inference-waypoint.io/pool: base}
spec: {selector: {app: nothing}, ports: [{name: http, port: 80, targetPort: 8000}]}
`))
	// The Service selects no pod, so only the pool can serve its calls.
	eventually(ctx, t, "a call by the second waypoint", func(ctx context.Context) error { return wantHeard(ctx, "http://front.routes/", "base-") })
	must(t, wantHeard(ctx, routed+"/", "base-"))
	for _, gateway := range []string{"inference", "second"} {
		wantCondition(ctx, t, "routes", "base", gateway, "Accepted", metav1.ConditionTrue, "Accepted")
	}
	must(t, the.Client.Delete(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "routes", Name: "front"}}))
	eventually(ctx, t, "the end of the second waypoint's entry", func(ctx context.Context) error {
		return withoutParent(ctx, "routes", "base", "second")
	})
}

// testReferenceGrant routes to a pool of another namespace, which needs a ReferenceGrant.
func testReferenceGrant(t *testing.T) {
	ctx := begin(t, time.Minute)
	route(ctx, t, "far", `  - backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: remote, namespace: remote}]`)
	wantRouteCondition(ctx, t, "far", "ResolvedRefs", metav1.ConditionFalse, "RefNotPermitted")
	eventually(ctx, t, "a refused call", func(ctx context.Context) error { return wantStatus(ctx, "/", http.StatusInternalServerError) })
	must(t, the.ApplyYAML(ctx, `
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: routes, namespace: remote}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: routes}]
  to: [{group: inference.networking.k8s.io, kind: InferencePool}]
`))
	wantRouteCondition(ctx, t, "far", "ResolvedRefs", metav1.ConditionTrue, "ResolvedRefs")
	eventually(ctx, t, "a served call", func(ctx context.Context) error { return wantHeard(ctx, routed+"/", "remote-") })
}

// testPrecedence has two routes for one host: the more specific match wins, and of equal matches that of the older route.
func testPrecedence(t *testing.T) {
	ctx := begin(t, time.Minute)
	route(ctx, t, "wide", `  - {matches: [{path: {value: /a}}], backendRefs: [`+to("base")+`]}`)
	time.Sleep(1100 * time.Millisecond) // ages are told in whole seconds
	route(ctx, t, "another", `  - {matches: [{path: {value: /a}}, {path: {value: /a/b}}], backendRefs: [`+to("canary")+`]}`)
	eventually(ctx, t, "the longer prefix", func(ctx context.Context) error { return wantHeard(ctx, routed+"/a/b", "canary-") })
	must(t, wantHeard(ctx, routed+"/a/x", "base-"))
}

// testInvalidRules has invalid rules: each answers 500 or is left out, and the other rules work.
func testInvalidRules(t *testing.T) {
	ctx := begin(t, time.Minute)
	route(ctx, t, "invalid", `  - {matches: [{path: {value: /missing}}], backendRefs: [`+to("missing")+`]}
  - {matches: [{path: {value: /zero}}], backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: base, weight: 0}]}
  - {matches: [{path: {type: RegularExpression, value: "/(["}}], backendRefs: [`+to("canary")+`]}
  - {matches: [{path: {value: /fine}}], backendRefs: [`+to("canary")+`]}`)
	eventually(ctx, t, "the sound rule", func(ctx context.Context) error { return wantHeard(ctx, routed+"/fine", "canary-") })
	wantRouteCondition(ctx, t, "invalid", "ResolvedRefs", metav1.ConditionFalse, "BackendNotFound")
	must(t, wantStatus(ctx, "/missing", http.StatusInternalServerError))
	must(t, wantStatus(ctx, "/zero", http.StatusInternalServerError))
	must(t, ask(ctx, "Are other hosts still served?"))
}

// testOwnSupport turns on istiod's own support of pools. Our controller must go on to serve the routes, with picks.
func testOwnSupport(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	const flag = "ENABLE_GATEWAY_API_INFERENCE_EXTENSION"
	must(t, the.RestartIstiod(ctx, flag, "true"))
	// With this support, istiod removes other controllers' entries from pools' status, which other tests read.
	defer func() { must(t, the.RestartIstiod(ctx, flag, "false")) }()
	route(ctx, t, "own", `  - {matches: [{path: {value: /c}}], backendRefs: [`+to("canary")+`]}`+"\n"+`  - {backendRefs: [`+to("base")+`]}`)
	eventually(ctx, t, "the route", func(ctx context.Context) error { return wantHeard(ctx, routed+"/c", "canary-") })
	must(t, wantHeard(ctx, routed+"/", "base-"))
	eventually(ctx, t, "picking", func(ctx context.Context) error { return staysPut(ctx, llama) })
}

func wantStatus(ctx context.Context, path string, want int) error {
	h, err := send(ctx, http.MethodGet, routed+path, "")
	if err == nil && h.Status != want {
		err = fmt.Errorf("%s answered %d as %q, want %d", path, h.Status, h.Server, want)
	}
	return err
}

// wantRouteCondition waits until our entry in a route's status has this condition.
func wantRouteCondition(ctx context.Context, t *testing.T, name, kind string, status metav1.ConditionStatus, reason string) {
	t.Helper()
	eventually(ctx, t, "condition "+kind+" of route "+name, func(ctx context.Context) error {
		var r gatewayv1.HTTPRoute
		if err := the.Client.Get(ctx, client.ObjectKey{Namespace: "routes", Name: name}, &r); err != nil {
			return err
		}
		for _, parent := range r.Status.Parents {
			if parent.ControllerName != "inference-waypoint.io/controller" {
				continue
			}
			if c := meta.FindStatusCondition(parent.Conditions, kind); c != nil && c.Status == status && c.Reason == reason && c.ObservedGeneration == r.Generation {
				return nil
			}
		}
		return fmt.Errorf("its status is %+v", r.Status.Parents)
	})
}

// A GRPCRoute to a pool serves nobody, and its status says so: by our controller at a pool's host, by istiod at a Service.
// Its method can be called by an HTTPRoute, or by the pool's host without a route.
func TestGRPCRouteIsTold(t *testing.T) {
	ctx := begin(t, time.Minute)
	setUpRoutes(ctx, t)
	tests := map[string]struct{ parent, controller, condition string }{
		"at a pool's host": {"{group: networking.istio.io, kind: ServiceEntry, name: base}", poolController, "Accepted"},
		"at a Service":     {`{group: "", kind: Service, name: plain}`, istioController, "ResolvedRefs"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := &gatewayv1.GRPCRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "routes", Name: "inference"}}
			must(t, the.ApplyYAML(ctx, fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: inference, namespace: routes}
spec:
  parentRefs: [%s]
  rules:
  - matches: [{method: {service: inference.GRPCInferenceService}}]
    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: base}]
`, tt.parent)))
			defer func() { must(t, the.Client.Delete(context.WithoutCancel(ctx), r)) }()
			eventually(ctx, t, "what its status says", func(ctx context.Context) error {
				if err := the.Client.Get(ctx, client.ObjectKeyFromObject(r), r); err != nil {
					return err
				}
				for _, p := range r.Status.Parents {
					if string(p.ControllerName) == tt.controller && meta.IsStatusConditionFalse(p.Conditions, tt.condition) {
						return nil
					}
				}
				return fmt.Errorf("it says %+v, want %s false by %s", r.Status.Parents, tt.condition, tt.controller)
			})
		})
	}
}

// The controllers that write the status of routes.
const (
	poolController  = "inference-waypoint.io/controller"
	istioController = "istio.io/gateway-controller"
)
