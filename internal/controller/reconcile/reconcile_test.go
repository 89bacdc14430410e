package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

var (
	poolName     = types.NamespacedName{Namespace: "models", Name: "llama"}
	waypointName = types.NamespacedName{Namespace: "infra", Name: "shared"}
)

func TestReconcile(t *testing.T) {
	ctx := context.Background()
	c, writes := newClient(t, somePool(), namespace(), waypoint(), pickerService())
	recorder := events.NewFakeRecorder(16)
	r := newReconciler(c, recorder, settings(), handover.Times{}, clock.RealClock{})

	reconcileOnce(t, r, reconcile.Result{})
	wantObjects(t, c, []string{"infra"}, []string{"models"})
	if got := accepted(t, c); got != "True Accepted: the waypoint serves the pool as llama.models.inference.internal" {
		t.Errorf("status %q", got)
	}
	if got := <-recorder.Events; !strings.Contains(got, "applied EnvoyFilter infra/") {
		t.Errorf("first event %q: the EnvoyFilter must come before the host that it is for", got)
	}

	*writes = 0
	reconcileOnce(t, r, reconcile.Result{})
	if *writes > 0 {
		t.Errorf("%d writes where nothing had changed", *writes)
	}

	// A mistake in the live pool is reported, and its host stays.
	edit(t, c, func(p *inferencev1.InferencePool) {
		p.Annotations = map[string]string{"inference-waypoint.io/failure-mode": "?"}
	})
	reconcileOnce(t, r, reconcile.Result{})
	wantObjects(t, c, []string{"infra"}, []string{"models"})
	if got := accepted(t, c); !strings.HasPrefix(got, "False NotSupportedByParent: ") {
		t.Errorf("status %q", got)
	}

	if err := c.Delete(ctx, &inferencev1.InferencePool{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "llama"}}); err != nil {
		t.Fatal(err)
	}
	reconcileOnce(t, r, reconcile.Result{})
	wantObjects(t, c, nil, nil)
}

func TestReconcileTakenName(t *testing.T) {
	taken := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "llama"}}
	c, _ := newClient(t, somePool(), namespace(), waypoint(), pickerService(), taken)
	reconcileOnce(t, newReconciler(c, events.NewFakeRecorder(16), settings(), handover.Times{}, clock.RealClock{}), reconcile.Result{RequeueAfter: takenRetry})
	want := "False NotSupportedByParent: ServiceEntry models/llama exists and is not ours: it lacks the label " + pool.OwnedLabel
	if got := accepted(t, c); got != want {
		t.Errorf("status %q, want %q", got, want)
	}
}

// TestRequeue has several waits meet: the shortest decides.
func TestRequeue(t *testing.T) {
	taken, soon, late := &apply.NotOursError{}, &apply.ContestedError{Wait: time.Second}, &apply.ContestedError{Wait: time.Minute}
	refused := errors.New("admission webhook denied the request")
	tests := map[string]struct {
		err     error
		wait    time.Duration
		want    time.Duration
		wantErr bool
	}{
		"no error":                         {nil, 2 * time.Second, 2 * time.Second, false},
		"a taken name":                     {taken, 0, takenRetry, false},
		"a taken name and a shorter wait":  {taken, 2 * time.Second, 2 * time.Second, false},
		"a taken name and a longer wait":   {taken, time.Hour, takenRetry, false},
		"a contest and a shorter wait":     {late, 2 * time.Second, 2 * time.Second, false},
		"two contests":                     {errors.Join(late, soon), 0, time.Second, false},
		"a taken name and a contest":       {errors.Join(taken, soon), 0, time.Second, false},
		"a taken name and a refused write": {errors.Join(taken, refused), 2 * time.Second, 0, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := requeue(tt.err, reconcile.Result{RequeueAfter: tt.wait}, nil)
			if got.RequeueAfter != tt.want || (err != nil) != tt.wantErr {
				t.Errorf("wait %s, error %v", got.RequeueAfter, err)
			}
		})
	}
}

// TestReconcileFailedWrite has the API server refuse an EnvoyFilter, as a webhook or a quota would: the pool's status and an
// event say so, and the queue tries again.
func TestReconcileFailedWrite(t *testing.T) {
	refused := interceptor.Funcs{Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
		if u, ok := o.(interface{ GetKind() string }); ok && u.GetKind() == "EnvoyFilter" {
			return errors.New("admission webhook denied the request")
		}
		return c.Apply(ctx, o, opts...)
	}}
	counted, _ := newClient(t, somePool(), namespace(), waypoint(), pickerService())
	c := interceptor.NewClient(counted.(client.WithWatch), refused)
	recorder := events.NewFakeRecorder(16)
	r := newReconciler(c, recorder, settings(), handover.Times{}, clock.RealClock{})
	if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: poolName}); err == nil {
		t.Error("no error: the queue will not try again")
	}
	if got := accepted(t, c); !strings.HasPrefix(got, "False ConfigurationNotWritten: ") || !strings.Contains(got, "webhook denied") {
		t.Errorf("status %q", got)
	}
	wantEvent(t, recorder, "Warning ConfigurationNotWritten")
}

// TestReconcileRivalIsABackend has two pools claim one host. One of them is the backend of a route at the other's host, and
// has its own picker: the waypoint asks that picker.
func TestReconcileRivalIsABackend(t *testing.T) {
	stable, canary := somePool(), somePool()
	stable.Annotations = map[string]string{"inference-waypoint.io/hosts": "chat.example"}
	canary.Name, canary.Annotations = "canary", stable.Annotations
	canary.CreationTimestamp = metav1.NewTime(time.Unix(1, 0))
	port := inferencev1.Port{Number: 9002}
	canary.Spec.EndpointPickerRef = &inferencev1.EndpointPickerRef{Name: "epp", Port: &port}
	epp := pickerService()
	epp.Namespace, epp.Name = "models", "epp"
	route := routeTo()
	route.Namespace = "models"
	route.Spec.Rules[0].BackendRefs[0].Name = "canary"
	c, _ := newClient(t, stable, canary, namespace(), waypoint(), pickerService(), epp, route)
	reconcileOnce(t, newReconciler(c, events.NewFakeRecorder(16), settings(), handover.Times{}, clock.RealClock{}), reconcile.Result{})
	var filters networkingv1alpha3.EnvoyFilterList
	if err := c.List(t.Context(), &filters); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(filters.Items)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), "outbound|9002||epp.models.svc.cluster.local") {
		t.Errorf("the backend's picker is not asked: %s", raw)
	}
}

// TestReconcileLongStatus claims hosts that are longer than a message has room for: the status is written all the same, and once.
func TestReconcileLongStatus(t *testing.T) {
	p := somePool()
	var hosts []string // each another: one that is named twice counts once
	for i := range 30 {
		hosts = append(hosts, fmt.Sprint(strings.Repeat("é_", 1_000), i))
	}
	p.Annotations = map[string]string{"inference-waypoint.io/hosts": strings.Join(hosts, ",")}
	c, writes := newClient(t, p, namespace(), waypoint(), pickerService())
	r := newReconciler(c, events.NewFakeRecorder(16), settings(), handover.Times{}, clock.RealClock{})
	reconcileOnce(t, r, reconcile.Result{})
	*writes = 0
	reconcileOnce(t, r, reconcile.Result{})
	if *writes > 0 {
		t.Errorf("%d writes where nothing had changed", *writes)
	}
	if err := c.Get(t.Context(), poolName, p); err != nil {
		t.Fatal(err)
	}
	refused := meta.FindStatusCondition(p.Status.Parents[0].Conditions, poolstatus.PartiallyRefused)
	if refused == nil || len(refused.Message) > poolstatus.MaxMessage || !utf8.ValidString(refused.Message) {
		t.Errorf("condition %v", refused)
	}
}

// TestWatches checks that an event of each kind reaches the pools that it matters to, and no others.
func TestWatches(t *testing.T) {
	elsewhere := somePool()
	elsewhere.Namespace = "other"
	foreign := somePool()
	foreign.Name = "foreign"
	port := inferencev1.Port{Number: 9002}
	foreign.Spec.EndpointPickerRef = &inferencev1.EndpointPickerRef{Name: "epp", Port: &port}
	route := routeTo()
	epp := pickerService()
	epp.Namespace, epp.Name = "models", "epp"
	others := namespace()
	others.Name = elsewhere.Namespace
	front := frontService("foreign")
	front.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}}
	c, _ := newClient(t, somePool(), elsewhere, foreign, namespace(), others, route, front, waypoint(), pickerService(), epp, grant("other"))
	pools := newReconciler(c, events.NewFakeRecorder(64), settings(), handover.Times{}, clock.RealClock{})
	statuses := &routeReconciler{client: c, events: events.NewFakeRecorder(64), settings: settings(), now: time.Now, read: &dependents{}}
	for range 2 { // the second time by what the first one made
		for _, name := range []types.NamespacedName{poolName, client.ObjectKeyFromObject(elsewhere), client.ObjectKeyFromObject(foreign)} {
			if _, err := pools.Reconcile(t.Context(), reconcile.Request{NamespacedName: name}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := statuses.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(route)}); err != nil {
			t.Fatal(err)
		}
	}

	ours := &networkingv1alpha3.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{
		Namespace: "infra", Name: "x",
		Labels:      map[string]string{pool.OwnedLabel: "true"},
		Annotations: map[string]string{pool.OwnerAnnotation: "models/gone"},
	}}
	otherGateway := waypoint()
	otherGateway.Name = "other"
	tests := map[string]struct {
		object     client.Object
		want       []string
		wantRoutes []string
	}{
		"an object of ours":              {ours, []string{"models/gone"}, nil},
		"an object of another's":         {&networkingv1alpha3.EnvoyFilter{}, nil, nil},
		"rules for a pool's host":        {othersRules("llama.models.inference.internal"), []string{"models/llama"}, nil},
		"rules for a front":              {othersRules("front"), []string{"models/foreign"}, nil},
		"rules for any host":             {othersRules("*"), []string{"models/foreign", "models/llama", "other/llama"}, nil},
		"rules for a wildcard":           {othersRules("*.models.inference.internal"), []string{"models/foreign", "models/llama"}, nil},
		"rules for any ending":           {othersRules("*internal"), []string{"models/foreign", "models/llama", "other/llama"}, nil},
		"rules for others' hosts":        {othersRules("*.example.com"), nil, nil},
		"another's filter at a waypoint": {othersFilter("infra", "gateway.networking.k8s.io", "Gateway", "shared"), []string{"models/foreign", "models/llama", "other/llama"}, nil},
		"another's filter at a front":    {othersFilter("models", "", "Service", "front"), []string{"models/foreign"}, nil},
		"another's filter at a host":     {othersFilter("models", "networking.istio.io", "ServiceEntry", "foreign"), []string{"models/foreign"}, nil},
		"another's host like a pool's":   {foreignEntry("llama.models.inference.internal"), nil, nil}, // who has it keeps it,
		"a namespace":                    {namespace(), []string{"models/foreign", "models/llama"}, nil},
		"the waypoint of a namespace":    {waypoint(), []string{"models/foreign", "models/llama", "other/llama"}, []string{"other/split"}},
		"a Gateway that nothing names":   {otherGateway, nil, nil},
		"the default picker":             {pickerService(), []string{"models/llama", "other/llama"}, []string{"other/split"}},
		"a pool's own picker":            {epp, []string{"models/foreign"}, nil},
		"a verdict on a pool":            {poolNamed(client.ObjectKeyFromObject(elsewhere)), []string{"models/llama", "other/llama"}, []string{"other/split"}},
		"a pool that a route leads to":   {somePool(), []string{"models/llama", "other/llama"}, []string{"other/split"}},
		"a route":                        {route, []string{"models/llama", "other/llama"}, []string{"other/split"}},
		"a grant for a route":            {grant("other"), []string{"models/llama", "other/llama"}, []string{"other/split"}},
		"a grant beside a route's":       {grant("nobody"), []string{"models/llama", "other/llama"}, []string{"other/split"}},
		"a Service as a front":           {frontService("foreign"), []string{"models/foreign"}, nil},
		"a Service like others":          {frontService(""), nil, nil},
	}
	ofPools, ofRoutes := watcher{pools.read, indexes(settings()), poolOf}, watcher{statuses.read, indexes(settings()), noOwner}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, side := range []struct {
				what string
				got  names
				want []string
			}{
				{"pools", ofPools.names(tt.object), tt.want},
				{"routes", ofRoutes.names(tt.object), tt.wantRoutes},
			} {
				var got []string
				for _, request := range side.got.requests() {
					got = append(got, request.String())
				}
				if diff := cmp.Diff(side.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", side.what, diff)
				}
			}
		})
	}
}

// routeTo is a route at the host of pool other/llama that leads to pool models/llama.
func routeTo() *gatewayv1.HTTPRoute {
	group, kind := gatewayv1.Group("networking.istio.io"), gatewayv1.Kind("ServiceEntry")
	poolGroup, poolKind, models := gatewayv1.Group(inferencev1.GroupName), gatewayv1.Kind("InferencePool"), gatewayv1.Namespace("models")
	return &gatewayv1.HTTPRoute{
		ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "split", Generation: 1},
		Spec: gatewayv1.HTTPRouteSpec{
			CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{{Group: &group, Kind: &kind, Name: "llama"}}},
			Rules: []gatewayv1.HTTPRouteRule{{BackendRefs: []gatewayv1.HTTPBackendRef{{BackendRef: gatewayv1.BackendRef{
				BackendObjectReference: gatewayv1.BackendObjectReference{Group: &poolGroup, Kind: &poolKind, Namespace: &models, Name: "llama"},
			}}}}},
		},
	}
}

// grant lets HTTPRoutes of a namespace lead to pools of namespace models.
func grant(from gatewayv1.Namespace) *gatewayv1beta1.ReferenceGrant {
	return &gatewayv1beta1.ReferenceGrant{
		ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "grant"},
		Spec: gatewayv1beta1.ReferenceGrantSpec{
			From: []gatewayv1beta1.ReferenceGrantFrom{{Group: gatewayv1.GroupName, Kind: "HTTPRoute", Namespace: from}},
			To:   []gatewayv1beta1.ReferenceGrantTo{{Group: inferencev1.GroupName, Kind: "InferencePool"}},
		},
	}
}

func foreignEntry(host string) *networkingv1.ServiceEntry {
	e := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "elsewhere", Name: "theirs"}}
	e.Spec.Hosts = []string{host}
	return e
}

func frontService(of string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: "models", Name: "front", Annotations: map[string]string{pool.PoolAnnotation: of},
	}}
}

func reconcileOnce(t *testing.T, r *Reconciler, want reconcile.Result) {
	t.Helper()
	got, err := r.Reconcile(context.Background(), reconcile.Request{NamespacedName: poolName})
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("result %+v, want %+v", got, want)
	}
}

// wantObjects checks in which namespaces the controller's objects are.
func wantObjects(t *testing.T, c client.Client, wantFilters, wantEntries []string) {
	t.Helper()
	var filters networkingv1alpha3.EnvoyFilterList
	var entries networkingv1.ServiceEntryList
	for _, list := range []client.ObjectList{&filters, &entries} {
		if err := c.List(context.Background(), list); err != nil {
			t.Fatal(err)
		}
	}
	var gotFilters, gotEntries []string
	for _, f := range filters.Items {
		gotFilters = append(gotFilters, f.Namespace)
	}
	for _, e := range entries.Items {
		gotEntries = append(gotEntries, e.Namespace)
	}
	if diff := cmp.Diff(wantFilters, gotFilters); diff != "" {
		t.Errorf("namespaces of EnvoyFilters (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(wantEntries, gotEntries); diff != "" {
		t.Errorf("namespaces of ServiceEntries (-want +got):\n%s", diff)
	}
}

// accepted is the condition Accepted of the pool's only parent.
func accepted(t *testing.T, c client.Client) string {
	t.Helper()
	var p inferencev1.InferencePool
	if err := c.Get(context.Background(), poolName, &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Status.Parents) != 1 {
		t.Fatalf("%d parents, want 1", len(p.Status.Parents))
	}
	condition := p.Status.Parents[0].Conditions[0]
	return string(condition.Status) + " " + condition.Reason + ": " + condition.Message
}

func edit(t *testing.T, c client.Client, change func(*inferencev1.InferencePool)) {
	t.Helper()
	var p inferencev1.InferencePool
	if err := c.Get(context.Background(), poolName, &p); err != nil {
		t.Fatal(err)
	}
	change(&p)
	if err := c.Update(context.Background(), &p); err != nil {
		t.Fatal(err)
	}
}

// undo removes all parents from the pool's status.
func undo(t *testing.T, c client.Client) {
	t.Helper()
	var p inferencev1.InferencePool
	if err := c.Get(context.Background(), poolName, &p); err != nil {
		t.Fatal(err)
	}
	p.Status = inferencev1.InferencePoolStatus{}
	if err := c.Status().Update(context.Background(), &p); err != nil {
		t.Fatal(err)
	}
}

// newClient makes an API server in memory, and counts what the controller writes to it.
func newClient(t *testing.T, objects ...client.Object) (client.Client, *int) {
	t.Helper()
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	writes := new(int)
	b := fake.NewClientBuilder().WithScheme(scheme).WithReturnManagedFields().
		WithObjects(objects...).
		WithStatusSubresource(&inferencev1.InferencePool{}, &gatewayv1.HTTPRoute{}, &gatewayv1.GRPCRoute{}).
		WithInterceptorFuncs(countWrites(writes))
	for _, i := range indexes(settings()) {
		b = b.WithIndex(i.kind, i.name, i.keys)
	}
	return b.Build(), writes
}

func countWrites(n *int) interceptor.Funcs {
	return interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			*n++
			return c.Create(ctx, o, opts...)
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			*n++
			return c.Delete(ctx, o, opts...)
		},
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			*n++
			return c.Apply(ctx, o, opts...)
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			*n++
			return c.Patch(ctx, o, p, opts...)
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			*n++
			return c.SubResource(sub).Patch(ctx, o, p, opts...)
		},
	}
}

func settings() translate.Settings {
	return translate.Settings{
		RootNamespace: "istio-system",
		HostSuffix:    "inference.internal",
		ClusterDomain: "cluster.local",
		DefaultPicker: &translate.ServicePort{Service: client.ObjectKeyFromObject(pickerService()), Port: 9002},
		HostClaims:    []translate.HostClaim{{Namespace: "*", Host: "chat.example"}},
	}
}

func somePool() *inferencev1.InferencePool {
	return &inferencev1.InferencePool{
		ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "llama", Generation: 1, CreationTimestamp: metav1.NewTime(time.Unix(0, 0))},
		Spec: inferencev1.InferencePoolSpec{
			Selector:    inferencev1.LabelSelector{MatchLabels: map[inferencev1.LabelKey]inferencev1.LabelValue{"app": "llama"}},
			TargetPorts: []inferencev1.Port{{Number: 8000}},
		},
	}
}

func namespace() *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "models", Labels: map[string]string{
		"istio.io/use-waypoint":           waypointName.Name,
		"istio.io/use-waypoint-namespace": waypointName.Namespace,
	}}}
}

func waypoint() *gatewayv1.Gateway {
	all := gatewayv1.NamespacesFromAll
	return &gatewayv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Namespace: waypointName.Namespace, Name: waypointName.Name},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: "istio-waypoint",
			Listeners: []gatewayv1.Listener{{
				Name: "mesh", Port: 15008, Protocol: "HBONE",
				AllowedRoutes: &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: &all}},
			}},
		},
	}
}

func pickerService() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "inference-system", Name: "inference-picker"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 9002}}},
	}
}
