package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// A labelled namespace gets a waypoint, which serves only the namespace's pools. Without the label both waypoint and
// configuration go, and objects of others stay.
func TestLabelledNamespaceGetsAWaypoint(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	must(t, the.ApplyYAML(ctx, `
apiVersion: v1
kind: Namespace
metadata: {name: labelled, labels: {istio.io/dataplane-mode: ambient, inference-waypoint.io/waypoint: w}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: theirs, namespace: labelled}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: labelled}
spec: {selector: {app: echo}, ports: [{name: http, port: 80, targetPort: 8000}]}
`))
	serve(ctx, t, "labelled", "echo", echoServer, 2)
	eventually(ctx, t, "a served call", func(ctx context.Context) error {
		return wantHeard(ctx, "http://echo.labelled.inference.internal/hello", "echo-")
	})
	eventually(ctx, t, "a picked call", func(ctx context.Context) error { // whatever the waypoint's name
		if err := wantHeard(ctx, "http://echo.labelled.inference.internal/hello", "echo-"); err != nil {
			return err
		}
		if picksIn(ctx, t, "labelled", "echo") == 0 {
			return errors.New("no call is picked")
		}
		return nil
	})
	wantCondition(ctx, t, "labelled", "echo", "w", "Accepted", metav1.ConditionTrue, "Accepted")
	var other corev1.Service
	must(t, the.Client.Get(ctx, client.ObjectKey{Namespace: "labelled", Name: "other"}, &other))
	var ns corev1.Namespace
	must(t, the.Client.Get(ctx, client.ObjectKey{Name: "labelled"}, &ns))
	const bound = "istio.io/use-waypoint"
	if ns.Labels[bound] != "" || other.Labels[bound] != "" {
		t.Errorf("more than the pools' hosts was bound: %v, %v", ns.Labels, other.Labels)
	}

	must(t, the.Client.Patch(ctx, &ns, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"inference-waypoint.io/waypoint":null}}}`))))
	eventually(ctx, t, "the end of what was made", func(ctx context.Context) error {
		return errors.Join(
			gone(ctx, &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "labelled", Name: "w"}}),
			gone(ctx, &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "labelled", Name: "echo"}}),
			nothingSaid(ctx, t),
		)
	})
	must(t, the.Client.Get(ctx, client.ObjectKey{Namespace: "labelled", Name: "theirs"}, &gatewayv1.Gateway{}))
}

// nothingSaid fails if the pool still has a filter at its waypoint or an entry in its status.
func nothingSaid(ctx context.Context, t *testing.T) error {
	if n := filtersOf(ctx, t, "labelled", "echo.labelled.inference.internal"); n != 0 {
		return fmt.Errorf("%d EnvoyFilters are left", n)
	}
	return withoutParent(ctx, "labelled", "echo", "w")
}

// wantHeard makes a GET and checks which server answered, by the beginning of its name.
func wantHeard(ctx context.Context, url, server string, headers ...string) error {
	h, err := send(ctx, http.MethodGet, url, "", headers...)
	if err != nil {
		return err
	}
	if h.Status != http.StatusOK || !strings.HasPrefix(h.Server, server) {
		return fmt.Errorf("%s answered %d as %q, want 200 as %s", url, h.Status, h.Server, server)
	}
	return nil
}

// A waypoint of another namespace serves a pool, and keeps nothing of the pool after its deletion.
func TestWaypointOfAnotherNamespace(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	must(t, the.ApplyYAML(ctx, `
apiVersion: v1
kind: Namespace
metadata: {name: gateways, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: tenant, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: shared, istio.io/use-waypoint-namespace: gateways}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: shared, namespace: gateways, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]
`))
	serve(ctx, t, "tenant", "echo", echoServer, 1)
	eventually(ctx, t, "a served call", func(ctx context.Context) error {
		return wantHeard(ctx, "http://echo.tenant.inference.internal/hello", "echo-")
	})
	wantCondition(ctx, t, "tenant", "echo", "shared", "Accepted", metav1.ConditionTrue, "Accepted")
	if n := filtersOf(ctx, t, "gateways", "echo.tenant.inference.internal"); n != 1 {
		t.Errorf("the waypoint's namespace has %d EnvoyFilters for the pool, want 1", n)
	}
	must(t, the.Client.Delete(ctx, &inferencev1.InferencePool{ObjectMeta: metav1.ObjectMeta{Namespace: "tenant", Name: "echo"}}))
	eventually(ctx, t, "the end of the EnvoyFilter", func(ctx context.Context) error {
		if n := filtersOf(ctx, t, "gateways", "echo.tenant.inference.internal"); n != 0 {
			return fmt.Errorf("%d are left", n)
		}
		return nil
	})
}

// A pool's own label binds it, whatever its namespace's label; `none` unbinds it. The pool's status reports a missing
// waypoint, or a Gateway that is no waypoint. Each case heals.
func TestPoolsOwnWaypoint(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	must(t, the.ApplyYAML(ctx, strings.ReplaceAll(poolYAML, "NAME", "bound")))
	defer func() { must(t, the.Client.Delete(ctx, pool("bound"))) }()
	label := func(value string) {
		t.Helper()
		must(t, the.Client.Patch(ctx, pool("bound"), client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"labels":{"istio.io/use-waypoint":%s}}}`, value))))
	}
	served := func(ctx context.Context) error { return staysPut(ctx, "http://bound.models.inference.internal") }
	eventually(ctx, t, "a served call by the namespace's waypoint", served)

	label(`"none"`)
	eventually(ctx, t, "the end of the pool's host", func(ctx context.Context) error {
		return gone(ctx, &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "bound"}})
	})
	label(`"absent"`)
	wantCondition(ctx, t, "models", "bound", "absent", "Accepted", metav1.ConditionFalse, "NotSupportedByParent")
	must(t, ask(ctx, "Are others still served?"))
	label("null")
	wantCondition(ctx, t, "models", "bound", "waypoint", "Accepted", metav1.ConditionTrue, "Accepted")
	eventually(ctx, t, "a served call again", served)
}

// Istio configures tracing for each host of a waypoint, also where no provider would get a trace: a fifth of what it sends.
func TestNoTracingWithoutProvider(t *testing.T) {
	ctx := begin(t, time.Minute)
	listeners, err := the.WaypointConfig(ctx, "models", "waypoint", "dynamic_listeners", "")
	must(t, err)
	hosts := 0
	for _, l := range listeners {
		hosts += strings.Count(string(l), `"name": "inbound-vip|`)
		if strings.Contains(string(l), "random_sampling") {
			t.Errorf("a listener has tracing: %.300s", l)
		}
	}
	if hosts == 0 {
		t.Error("the waypoint serves no host")
	}
}
