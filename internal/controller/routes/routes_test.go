package routes

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/parentstatus"
)

func TestMergeOrder(t *testing.T) {
	value := func(kind gatewayv1.PathMatchType, path string) gatewayv1.HTTPRouteMatch {
		return gatewayv1.HTTPRouteMatch{Path: &gatewayv1.HTTPPathMatch{Type: &kind, Value: &path}}
	}
	with := func(m gatewayv1.HTTPRouteMatch, headers, query int, method string) gatewayv1.HTTPRouteMatch {
		for i := range headers {
			m.Headers = append(m.Headers, gatewayv1.HTTPHeaderMatch{Name: gatewayv1.HTTPHeaderName(rune('a' + i)), Value: "1"})
		}
		for i := range query {
			m.QueryParams = append(m.QueryParams, gatewayv1.HTTPQueryParamMatch{Name: gatewayv1.HTTPHeaderName(rune('a' + i)), Value: "1"})
		}
		if method != "" {
			m.Method = (*gatewayv1.HTTPMethod)(&method)
		}
		return m
	}
	exact, prefix, regex := gatewayv1.PathMatchExact, gatewayv1.PathMatchPathPrefix, gatewayv1.PathMatchRegularExpression
	tests := map[string]struct {
		routes       []*gatewayv1.HTTPRoute
		want         []string
		wantShadowed []string // names of routes
	}{
		"kinds and lengths of paths": {
			routes: []*gatewayv1.HTTPRoute{route("r", 0, value(prefix, "/"), value(prefix, "/aa/"), value(regex, "/.*"), value(prefix, "/aaa"), value(exact, "/a"))},
			want:   []string{"ns/r/4/0", "ns/r/2/0", "ns/r/3/0", "ns/r/1/0", "ns/r/0/0", "no-route"},
		},
		"method, headers, query": {
			routes: []*gatewayv1.HTTPRoute{route("r", 0,
				with(value(prefix, "/"), 0, 9, ""), with(value(prefix, "/"), 1, 0, ""), with(value(prefix, "/"), 1, 1, ""), with(value(prefix, "/"), 2, 0, ""), with(value(prefix, "/"), 0, 0, "GET"))},
			want: []string{"ns/r/4/0", "ns/r/3/0", "ns/r/2/0", "ns/r/1/0", "ns/r/0/0", "no-route"},
		},
		"the older route": {
			routes:       []*gatewayv1.HTTPRoute{route("a", 2, value(prefix, "/x")), route("b", 1, value(prefix, "/x/"))},
			want:         []string{"ns/b/0/0", "no-route"},
			wantShadowed: []string{"a"},
		},
		"the first by name": {
			routes:       []*gatewayv1.HTTPRoute{route("b", 1, value(prefix, "/x")), route("a", 1, value(prefix, "/x"))},
			want:         []string{"ns/a/0/0", "no-route"},
			wantShadowed: []string{"b"},
		},
		"the first rule": {
			routes:       []*gatewayv1.HTTPRoute{route("a", 1, with(value(prefix, "/x"), 2, 0, ""), with(value(prefix, "/x"), 2, 0, ""))},
			want:         []string{"ns/a/0/0", "no-route"},
			wantShadowed: []string{"a"},
		},
		"other headers are another match": {
			routes: []*gatewayv1.HTTPRoute{route("a", 1, with(value(prefix, "/x"), 1, 0, "")), route("b", 2, with(value(prefix, "/x"), 0, 1, ""))},
			want:   []string{"ns/a/0/0", "ns/b/0/0", "no-route"},
		},
		"nothing usable": {routes: []*gatewayv1.HTTPRoute{route("a", 1, value(regex, "("))}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var compiled []Compiled
			for _, r := range tt.routes {
				compiled = append(compiled, Compile(r, found))
			}
			list, shadowed := Merge(compiled)
			var got, gotShadowed []string
			for _, r := range list {
				got = append(got, r.Name)
			}
			for name := range shadowed {
				gotShadowed = append(gotShadowed, name.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("routes (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.wantShadowed, gotShadowed); diff != "" {
				t.Errorf("shadowed (-want +got):\n%s", diff)
			}
		})
	}
}

// route has a rule for each match.
func route(name string, created int64, matches ...gatewayv1.HTTPRouteMatch) *gatewayv1.HTTPRoute {
	out := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(created, 0)),
	}}
	for _, m := range matches {
		out.Spec.Rules = append(out.Spec.Rules, gatewayv1.HTTPRouteRule{
			Matches:     []gatewayv1.HTTPRouteMatch{m},
			BackendRefs: []gatewayv1.HTTPBackendRef{{}},
		})
	}
	return out
}

func found(string, gatewayv1.BackendObjectReference) (envoypatch.Destination, *Problem) {
	return envoypatch.Destination{Cluster: "c"}, nil
}

func TestCompileFaults(t *testing.T) {
	tests := map[string]struct {
		change func(*gatewayv1.HTTPRouteRule)
		want   string // in Dropped
		status uint32 // of the only route; 0 where it goes to its backend
	}{
		"none": {func(*gatewayv1.HTTPRouteRule) {}, "", 0},
		"duration": {func(r *gatewayv1.HTTPRouteRule) {
			r.Timeouts = &gatewayv1.HTTPRouteTimeouts{Request: ptr(gatewayv1.Duration("soon"))}
		}, `timeouts.request "soon" is not a duration`, 500},
		"backoff": {func(r *gatewayv1.HTTPRouteRule) {
			r.Retry = &gatewayv1.HTTPRouteRetry{Backoff: ptr(gatewayv1.Duration("x"))}
		}, `retry.backoff "x"`, 500},
		"filter of a kind without its settings": {func(r *gatewayv1.HTTPRouteRule) {
			r.Filters = []gatewayv1.HTTPRouteFilter{{Type: gatewayv1.HTTPRouteFilterURLRewrite}}
		}, "filter URLRewrite is not supported", 500},
		"CORS": {func(r *gatewayv1.HTTPRouteRule) {
			r.Filters = []gatewayv1.HTTPRouteFilter{{Type: gatewayv1.HTTPRouteFilterCORS}}
		}, "filter CORS is not supported", 500},
		"sessions": {func(r *gatewayv1.HTTPRouteRule) { r.SessionPersistence = &gatewayv1.SessionPersistence{} }, "sessionPersistence", 0},
		"weights":  {func(r *gatewayv1.HTTPRouteRule) { r.BackendRefs[0].Weight = ptr(int32(0)) }, "sum to 0", 500},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := route("r", 0, gatewayv1.HTTPRouteMatch{})
			tt.change(&r.Spec.Rules[0])
			c := Compile(r, found)
			dropped := strings.Join(c.Dropped, "; ")
			if tt.want == "" && dropped != "" || !strings.Contains(dropped, tt.want) {
				t.Errorf("dropped %q, want %q", dropped, tt.want)
			}
			if got := c.pieces[0].Status; got != tt.status {
				t.Errorf("status %d, want %d", got, tt.status)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func TestGranted(t *testing.T) {
	to := Object{Kind: "Service", Name: types.NamespacedName{Namespace: "b", Name: "s"}}
	grant := func(change func(*gatewayv1.ReferenceGrant)) []*gatewayv1.ReferenceGrant {
		g := &gatewayv1.ReferenceGrant{
			ObjectMeta: metav1.ObjectMeta{Namespace: "b"},
			Spec: gatewayv1.ReferenceGrantSpec{
				From: []gatewayv1.ReferenceGrantFrom{{Group: gatewayv1.GroupName, Kind: "HTTPRoute", Namespace: "a"}},
				To:   []gatewayv1.ReferenceGrantTo{{Kind: "Service"}},
			},
		}
		change(g)
		return []*gatewayv1.ReferenceGrant{g}
	}
	tests := map[string]struct {
		from   string
		grants []*gatewayv1.ReferenceGrant
		want   bool
	}{
		"the same namespace": {from: "b", want: true},
		"none":               {from: "a"},
		"all of a kind":      {"a", grant(func(*gatewayv1.ReferenceGrant) {}), true},
		"by name":            {"a", grant(func(g *gatewayv1.ReferenceGrant) { g.Spec.To[0].Name = ptr(gatewayv1.ObjectName("s")) }), true},
		"another name":       {"a", grant(func(g *gatewayv1.ReferenceGrant) { g.Spec.To[0].Name = ptr(gatewayv1.ObjectName("t")) }), false},
		"another kind":       {"a", grant(func(g *gatewayv1.ReferenceGrant) { g.Spec.To[0].Kind = "Secret" }), false},
		"another group":      {"a", grant(func(g *gatewayv1.ReferenceGrant) { g.Spec.To[0].Group = "x" }), false},
		"from another":       {"c", grant(func(*gatewayv1.ReferenceGrant) {}), false},
		"from another kind":  {"a", grant(func(g *gatewayv1.ReferenceGrant) { g.Spec.From[0].Kind = "TLSRoute" }), false},
		"in another place":   {"a", grant(func(g *gatewayv1.ReferenceGrant) { g.Namespace = "c" }), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Granted(tt.from, to, func(string) []*gatewayv1.ReferenceGrant { return tt.grants }); got != tt.want {
				t.Errorf("granted %t, want %t", got, tt.want)
			}
		})
	}
}

func TestMergeStatus(t *testing.T) {
	const controller = "ours"
	before := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := before.Add(time.Hour)
	ref := gatewayv1.ParentReference{Name: "llama"}
	other := gatewayv1.RouteParentStatus{ControllerName: "istio", ParentRef: ref}
	well := Verdict{Parent: ref}
	entries := func(v Verdict, at time.Time, generation int64) gatewayv1.RouteParentStatus {
		return v.status(nil, controller, generation, at)
	}
	refused := Verdict{Parent: ref, Refused: Problem{gatewayv1.RouteReasonNoMatchingParent, "no"}}
	turned := entries(refused, before, 1)
	turned.Conditions[0].LastTransitionTime = metav1.NewTime(now)
	tests := map[string]struct {
		current     []gatewayv1.RouteParentStatus
		ours        []Verdict
		generation  int64
		want        []gatewayv1.RouteParentStatus
		wantChanged bool
	}{
		"first":             {[]gatewayv1.RouteParentStatus{other}, []Verdict{well}, 1, []gatewayv1.RouteParentStatus{other, entries(well, now, 1)}, true},
		"the same":          {[]gatewayv1.RouteParentStatus{entries(well, before, 1), other}, []Verdict{well}, 1, []gatewayv1.RouteParentStatus{entries(well, before, 1), other}, false},
		"a new generation":  {[]gatewayv1.RouteParentStatus{entries(well, before, 1)}, []Verdict{well}, 2, []gatewayv1.RouteParentStatus{entries(well, before, 2)}, true},
		"a condition turns": {[]gatewayv1.RouteParentStatus{entries(well, before, 1)}, []Verdict{refused}, 1, []gatewayv1.RouteParentStatus{turned}, true},
		"no longer ours":    {[]gatewayv1.RouteParentStatus{entries(well, before, 1)}, nil, 1, []gatewayv1.RouteParentStatus{}, true},
		"never ours":        {[]gatewayv1.RouteParentStatus{other}, nil, 1, []gatewayv1.RouteParentStatus{other}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, changed, err := MergeStatus(tt.current, tt.ours, controller, tt.generation, now)
			if err != nil {
				t.Fatal(err)
			}
			if changed != tt.wantChanged {
				t.Errorf("changed %t, want %t", changed, tt.wantChanged)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("parents (-want +got):\n%s", diff)
			}
		})
	}
	full := make([]gatewayv1.RouteParentStatus, parentstatus.Max)
	if _, _, err := MergeStatus(full, []Verdict{well}, controller, 1, now); err == nil {
		t.Error("a list longer than the API takes was made")
	}
}
