package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
)

// attacksOnObjects are made with objects that a tenant may write in its namespace.
var attacksOnObjects = []attack{
	{"claims the victim's host", claimVictimsHost},
	{"claims hosts of others and outside", claimOthersHosts},
	{"claims thousands of hosts", claimThousands},
	{"ServiceEntries for the victim's host", writeServiceEntries},
	{"VirtualService and DestinationRule for the victim's host", writeVirtualService},
	{"EnvoyFilter of any context", writeEnvoyFilter},
	{"changes and forges what the controller makes", alterOwned},
	{"writes in other namespaces", writeElsewhere},
	{"routes the victim's host and to its pool", writeRoutes},
	{"binds its pool to the victim's waypoint", bindToVictimsWaypoint},
	{"a Gateway whose service account is 200 KB long", swellAccess},
}

// apply writes objects as the tenant. Accepted objects are deleted after the test.
func (m *hostile) apply(ctx context.Context, t *testing.T, stream string) error {
	t.Helper()
	objects, err := manifest.Decode([]byte(stream))
	must(t, err)
	for _, o := range objects {
		if err := m.write(ctx, o); err != nil {
			return err
		}
		t.Cleanup(func() { must(t, client.IgnoreNotFound(m.Delete(context.WithoutCancel(ctx), o))) })
	}
	return nil
}

func (m *hostile) write(ctx context.Context, o *unstructured.Unstructured) error {
	return m.Apply(ctx, client.ApplyConfigurationFromUnstructured(o.DeepCopy()), client.FieldOwner("mallory"), client.ForceOwnership)
}

// wantRefusal checks that the API server refused the object, with this text as the reason.
func wantRefusal(t *testing.T, what string, err error, text string) {
	t.Helper()
	if !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) || !strings.Contains(fmt.Sprint(err), text) {
		t.Errorf("%s gave %v, want a refusal that says %q", what, err, text)
	}
}

// poolOf returns a pool of the tenant.
func poolOf(name string) *inferencev1.InferencePool {
	p := pool(name)
	p.Namespace = "mallory"
	return p
}

// wantPoolSays waits until the status of a pool of the tenant has all of the texts.
func wantPoolSays(ctx context.Context, t *testing.T, name string, texts ...string) {
	t.Helper()
	eventually(ctx, t, "the status of pool "+name, func(ctx context.Context) error {
		p := poolOf(name)
		if err := the.Client.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
		var said strings.Builder
		for _, parent := range p.Status.Parents {
			for _, c := range parent.Conditions {
				_, _ = fmt.Fprintln(&said, c.Message)
			}
		}
		for _, text := range texts {
			if !strings.Contains(said.String(), text) {
				return fmt.Errorf("it does not say %q: %.2000s", text, said.String())
			}
		}
		return nil
	})
}

// claim has a pool claim hosts, and checks that the pool gets none and that its status says why.
func (m *hostile) claim(ctx context.Context, t *testing.T, name, hosts string, told ...string) {
	t.Helper()
	must(t, patchAs(ctx, m, poolOf(name), fmt.Sprintf(`{"metadata":{"annotations":{"inference-waypoint.io/hosts":%q}}}`, hosts)))
	t.Cleanup(func() {
		must(t, patchAs(context.WithoutCancel(ctx), m, poolOf(name), `{"metadata":{"annotations":{"inference-waypoint.io/hosts":null}}}`))
	})
	wantPoolSays(ctx, t, name, told...)
	entry := &networkingv1.ServiceEntry{}
	must(t, the.Client.Get(ctx, client.ObjectKey{Namespace: "mallory", Name: name}, entry))
	if len(entry.Spec.GetHosts()) != 1 {
		t.Errorf("pool %s is called by %v", name, entry.Spec.GetHosts())
	}
}

func claimVictimsHost(ctx context.Context, t *testing.T, m *hostile) {
	for _, name := range []string{"elder", "younger"} {
		m.claim(ctx, t, name, victimHost, "not as "+victimHost+": hosts with this ending are the pools' own")
	}
}

func claimOthersHosts(ctx context.Context, t *testing.T, m *hostile) {
	const unallowed = ": the controller's flag --allow-host does not allow it to namespace mallory"
	m.claim(ctx, t, "elder", "api.openai.com,reviews.default,caller,chat.example,llama.victim.svc.cluster.local,kubernetes.default.svc",
		"not as api.openai.com"+unallowed, "not as reviews.default"+unallowed, "not as caller"+unallowed, "not as chat.example"+unallowed,
		"not as llama.victim.svc.cluster.local: it is a Service's", "not as kubernetes.default.svc: it is a Service's")
	for _, host := range []string{"*", "*.internal", "*.inference.internal", "*.victim.inference.internal"} {
		e := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": map[string]any{"name": "wide", "namespace": "mallory"},
			"spec": map[string]any{"hosts": []any{host}, "location": "MESH_INTERNAL", "resolution": "NONE", "ports": []any{map[string]any{"number": int64(80), "name": "http", "protocol": "HTTP"}}},
		}}
		wantRefusal(t, "a ServiceEntry for "+host, m.write(ctx, e), map[bool]string{true: "", false: "belong to InferencePools"}[host == "*"])
	}
}

func claimThousands(ctx context.Context, t *testing.T, m *hostile) {
	var hosts strings.Builder
	for i := 0; hosts.Len() < 200<<10; i++ {
		_, _ = fmt.Fprintf(&hosts, "h%d.example.com,", i)
	}
	m.claim(ctx, t, "elder", hosts.String(), "not as h0.example.com", "more hosts: a pool may claim 32")
	err := patchAs(ctx, m, poolOf("elder"), fmt.Sprintf(`{"metadata":{"annotations":{"more":%q}}}`, hosts.String()))
	wantRefusal(t, "400 KB of annotations", err, "may not be more than 262144 bytes")
}

func writeServiceEntries(ctx context.Context, t *testing.T, m *hostile) {
	const entry = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: NAME, namespace: mallory, labels: {istio.io/use-waypoint: gate}}
spec:
  hosts: ["HOST"]
  exportTo: ["*"]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: elder}}
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}]
`
	for name, host := range map[string]string{
		"same": victimHost, "wild": "*.victim.inference.internal", "all": "*.inference.internal",
		"capital": "LLAMA.victim.Inference.Internal", "dot": victimHost + ".", "later": "later.victim.inference.internal",
		"above": "*.internal", "cut": "*ference.internal",
	} {
		err := m.apply(ctx, t, strings.NewReplacer("NAME", name, "HOST", host).Replace(entry))
		wantRefusal(t, "a ServiceEntry for "+host, err, "belong to InferencePools")
	}
	must(t, m.apply(ctx, t, strings.NewReplacer("NAME", "own", "HOST", "own.example").Replace(entry)))
}

// wantStatusOf waits until a host answers with this status.
func wantStatusOf(ctx context.Context, t *testing.T, host string, status int) {
	t.Helper()
	eventually(ctx, t, fmt.Sprintf("status %d of %s", status, host), func(ctx context.Context) error {
		got, err := send(ctx, http.MethodGet, "http://"+host+"/v1/models", "")
		if err == nil && got.Status != status {
			err = fmt.Errorf("status %d", got.Status)
		}
		return err
	})
}

// plainOfMallory is a Service of the tenant at its own waypoint. It shows when istiod has applied changes.
const plainOfMallory = "plain.mallory.svc.cluster.local"

func writeVirtualService(ctx context.Context, t *testing.T, m *hostile) {
	must(t, m.apply(ctx, t, `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: limits, namespace: mallory}
spec:
  host: "*.victim.inference.internal"
  exportTo: ["*"]
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1, http1MaxPendingRequests: 1}, tcp: {maxConnections: 1}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: faults, namespace: mallory}
spec:
  hosts: [llama.victim.inference.internal, plain]
  exportTo: ["*"]
  http:
  - fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: plain}}]
`))
	wantStatusOf(ctx, t, plainOfMallory, http.StatusTeapot)
	wantStatusOf(ctx, t, victimHost, http.StatusOK)
}

func writeEnvoyFilter(ctx context.Context, t *testing.T, m *hostile) {
	const abort = `abort: {http_status: 418, percentage: {numerator: 100}}`
	const target = "  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: GATEWAY}]\n"
	patches := strings.ReplaceAll(httpFilter("abort", "fault.v3.HTTPFault", abort), "SIDECAR_INBOUND", "ANY")
	for name, where := range map[string]string{
		"all": "", "own": strings.ReplaceAll(target, "GATEWAY", malloryWaypoint), "theirs": strings.ReplaceAll(target, "GATEWAY", victimWaypoint),
		"selected": "  workloadSelector: {labels: {gateway.networking.k8s.io/gateway-name: " + victimWaypoint + "}}\n",
	} {
		must(t, m.apply(ctx, t, fmt.Sprintf(`
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: %s, namespace: mallory}
spec:
%s  configPatches:
%s`, name, where, patches)))
	}
	eventually(ctx, t, "the end of mallory's own calls", func(ctx context.Context) error {
		got, err := send(ctx, http.MethodGet, "http://"+plainOfMallory+"/v1/models", "")
		if err == nil && got.Status == http.StatusTeapot || err != nil && strings.Contains(err.Error(), "418") {
			return nil
		}
		return fmt.Errorf("%+v, %w", got, err)
	})
	wantStatusOf(ctx, t, victimHost, http.StatusOK)
}

func alterOwned(ctx context.Context, t *testing.T, m *hostile) {
	const makes = "the controller of Inference Waypoint makes this"
	filters, err := filtersAt(ctx, "mallory", malloryHost)
	must(t, err)
	if len(filters) != 1 {
		t.Fatalf("%d EnvoyFilters for %s, want 1", len(filters), malloryHost)
	}
	entry := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "mallory", Name: "elder"}}
	gateway := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "mallory", Name: malloryWaypoint}}
	for what, o := range map[string]client.Object{"the ServiceEntry": entry, "the EnvoyFilter": filters[0], "the Gateway": gateway} {
		wantRefusal(t, "deleting "+what, m.Delete(ctx, o), makes)
		if o == client.Object(gateway) {
			continue // a tenant may change its own Gateway
		}
		wantRefusal(t, "unmarking "+what, patchAs(ctx, m, o, `{"metadata":{"labels":{"inference-waypoint.io/owned":null}}}`), makes)
	}
	wantRefusal(t, "changing hosts", patchAs(ctx, m, entry, `{"spec":{"hosts":["llama.victim.inference.internal"]}}`), "nference")
	wantRefusal(t, "changing patches", patchAs(ctx, m, filters[0], `{"spec":{"configPatches":[]}}`), makes)
	for _, owner := range []string{"victim/llama", "mallory/elder", "inference-system/picker/inference-picker"} {
		wantRefusal(t, "forging one of "+owner, m.apply(ctx, t, fmt.Sprintf(`
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: forged, namespace: mallory, labels: {inference-waypoint.io/owned: "true"}, annotations: {inference-waypoint.io/owner: %s}}
spec: {configPatches: []}
`, owner)), makes)
	}
}

func writeElsewhere(ctx context.Context, t *testing.T, m *hostile) {
	in := func(namespace, name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: namespace, Name: name}
	}
	const label = `{"metadata":{"labels":{"inference-waypoint.io/waypoint":null}}}`
	for what, err := range map[string]error{
		"a pool of the victim's":           m.Create(ctx, &inferencev1.InferencePool{ObjectMeta: in("victim", "mine")}),
		"an edit of the victim's pool":     patchAs(ctx, m, &inferencev1.InferencePool{ObjectMeta: in("victim", "llama")}, `{"metadata":{"annotations":{"a":"b"}}}`),
		"its end":                          m.Delete(ctx, &inferencev1.InferencePool{ObjectMeta: in("victim", "llama")}),
		"the end of the victim's waypoint": m.Delete(ctx, &gatewayv1.Gateway{ObjectMeta: in("victim", victimWaypoint)}),
		"a pod of the victim's":            m.Create(ctx, &corev1.Pod{ObjectMeta: in("victim", "mine")}),
		"the victim's label":               patchAs(ctx, m, &corev1.Namespace{ObjectMeta: in("", "victim")}, label),
		"a policy at the picker":           m.Create(ctx, &securityv1.AuthorizationPolicy{ObjectMeta: in(system, "mine")}),
		"the end of who is admitted":       m.Delete(ctx, &securityv1.AuthorizationPolicy{ObjectMeta: in(system, "inference-waypoints")}),
		"a ServiceEntry of all":            m.Create(ctx, &networkingv1.ServiceEntry{ObjectMeta: in("istio-system", "mine")}),
		"a token of the victim's":          m.SubResource("token").Create(ctx, &corev1.ServiceAccount{ObjectMeta: in("victim", "caller")}, &corev1.ServiceAccount{}),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: got %v, want that it is forbidden", what, err)
		}
	}
}

func writeRoutes(ctx context.Context, t *testing.T, m *hostile) {
	const far = "{group: inference.networking.k8s.io, kind: InferencePool, name: llama, namespace: victim}"
	must(t, m.apply(ctx, t, routeYAML("mallory", "far", "elder", "  - backendRefs: ["+far+"]")))
	must(t, m.apply(ctx, t, strings.ReplaceAll(routeYAML("mallory", "host", "younger", "  - backendRefs: ["+to("younger")+"]"),
		"spec:", "spec:\n  hostnames: ["+victimHost+"]")))
	for kind, group := range map[string]string{"ServiceEntry": "networking.istio.io", "InferencePool": "inference.networking.k8s.io"} {
		must(t, m.apply(ctx, t, strings.NewReplacer("group: networking.istio.io, kind: ServiceEntry, name: llama",
			"namespace: victim, name: llama, group: "+group+", kind: "+kind).Replace(routeYAML("mallory", "at-"+strings.ToLower(kind), "llama", "  - backendRefs: ["+to("elder")+"]"))))
	}
	wantStatusOf(ctx, t, malloryHost, http.StatusInternalServerError)
	eventually(ctx, t, "a route that may not", func(ctx context.Context) error { return routeSays(ctx, "far", "RefNotPermitted") })
	wantStatusOf(ctx, t, victimHost, http.StatusOK)
}

// routeSays fails if no condition of the tenant's route has this reason.
func routeSays(ctx context.Context, name, reason string) error {
	var r gatewayv1.HTTPRoute
	if err := the.Client.Get(ctx, client.ObjectKey{Namespace: "mallory", Name: name}, &r); err != nil {
		return err
	}
	for _, parent := range r.Status.Parents {
		for _, c := range parent.Conditions {
			if c.Reason == reason {
				return nil
			}
		}
	}
	return fmt.Errorf("its status is %+v", r.Status.Parents)
}

func bindToVictimsWaypoint(ctx context.Context, t *testing.T, m *hostile) {
	must(t, m.apply(ctx, t, strings.NewReplacer("NAME", "guest", "  namespace: models",
		"  namespace: mallory\n  labels: {istio.io/use-waypoint: inference, istio.io/use-waypoint-namespace: victim}").Replace(poolYAML)))
	wantPoolSays(ctx, t, "guest", "victim")
	if n := filtersOf(ctx, t, "victim", "guest.mallory.inference.internal"); n != 0 {
		t.Errorf("the victim's waypoint has %d EnvoyFilters of it", n)
	}
}

// swellAccess names an impossible, very long service account for a waypoint, so that the controller would write it into
// the one policy that admits all waypoints. With six of them the policy would exceed the API server's limit.
func swellAccess(ctx context.Context, t *testing.T, m *hostile) {
	must(t, m.apply(ctx, t, fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: swollen, namespace: mallory, labels: {istio.io/waypoint-for: service}, annotations: {networking.istio.io/service-account: %q}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`, strings.Repeat("a", 200<<10))))
	must(t, m.apply(ctx, t, strings.NewReplacer("NAME", "swollen", "  namespace: models",
		"  namespace: mallory\n  labels: {istio.io/use-waypoint: swollen}").Replace(poolYAML)))
	eventually(ctx, t, "an EnvoyFilter at the Gateway", func(ctx context.Context) error {
		if filtersOf(ctx, t, "mallory", "swollen.mallory.inference.internal") == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	var policy securityv1.AuthorizationPolicy
	must(t, the.Client.Get(ctx, client.ObjectKey{Namespace: system, Name: "inference-waypoints"}, &policy))
	for _, principal := range policy.Spec.GetRules()[0].GetFrom()[0].GetSource().GetPrincipals() {
		if len(principal) > 400 {
			t.Errorf("a principal of %d bytes is in the policy of all", len(principal))
		}
	}
}
