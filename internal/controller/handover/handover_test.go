package handover

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
)

var (
	owner = types.NamespacedName{Namespace: "models", Name: "llama"}
	times = Times{Settle: 2 * time.Second, Drain: time.Minute}
)

// filterOf makes an EnvoyFilter from words: "chain", "cluster a", "routes r", each with its content after an equals sign,
// "service s" and "picker p".
func filterOf(words ...string) *networkingv1alpha3.EnvoyFilter {
	out := &networkingv1alpha3.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "f"}}
	lists := map[string][]string{}
	for _, w := range words {
		kind, rest, _ := strings.Cut(w, " ")
		name, value, _ := strings.Cut(rest, "=")
		body := &networkingapi.EnvoyFilter_Patch{Value: &structpb.Struct{Fields: map[string]*structpb.Value{
			"name": structpb.NewStringValue(name), "value": structpb.NewStringValue(value),
		}}}
		p := &patch{ApplyTo: networkingapi.EnvoyFilter_HTTP_FILTER, Patch: body}
		switch kind {
		case cluster:
			p.ApplyTo = networkingapi.EnvoyFilter_CLUSTER
		case routes:
			p.ApplyTo = networkingapi.EnvoyFilter_VIRTUAL_HOST
			p.Match = &networkingapi.EnvoyFilter_EnvoyConfigObjectMatch{ObjectTypes: &networkingapi.EnvoyFilter_EnvoyConfigObjectMatch_RouteConfiguration{
				RouteConfiguration: &networkingapi.EnvoyFilter_RouteConfigurationMatch{Name: name},
			}}
		case service, picker:
			lists[kind] = append(lists[kind], name)
			continue
		}
		out.Spec.ConfigPatches = append(out.Spec.ConfigPatches, p)
	}
	for kind, names := range lists {
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[listed[kind]] = strings.Join(names, ",")
	}
	return out
}

// wordsOf is the inverse of filterOf. The words are sorted.
func wordsOf(f *networkingv1alpha3.EnvoyFilter) []string {
	var out []string
	for _, p := range f.Spec.ConfigPatches {
		kind := map[networkingapi.EnvoyFilter_ApplyTo]string{
			networkingapi.EnvoyFilter_HTTP_FILTER: "chain", networkingapi.EnvoyFilter_CLUSTER: cluster, networkingapi.EnvoyFilter_VIRTUAL_HOST: routes,
		}[p.ApplyTo]
		fields := p.GetPatch().GetValue().GetFields()
		word := strings.TrimSpace(kind + " " + fields["name"].GetStringValue())
		if value := fields["value"].GetStringValue(); value != "" {
			word += "=" + value
		}
		out = append(out, word)
	}
	for kind := range listed {
		for _, name := range listOf(f, kind) {
			out = append(out, kind+" "+name)
		}
	}
	slices.Sort(out)
	return out
}

// step is the wanted filters at a time, and the expected plan. The plan's filters are live at the next step.
type step struct {
	after         time.Duration
	want          []string // of filter "f"; nil for none
	lost          bool     // by then somebody had deleted it
	now, leaving  []string
	again         time.Duration
	restarted     bool // the memory is lost
	calledWithout bool
}

func TestPlan(t *testing.T) {
	const second = time.Second
	plain := []string{"chain", "cluster a", "routes r=1", "service s"}
	for name, steps := range map[string][]step{
		"a new host is there at once": {
			{want: plain, now: plain},
			{after: second, want: plain, now: plain},
		},
		"a host that is called has its clusters first": {
			{want: plain, calledWithout: true, now: []string{"cluster a", "service s"}, again: 2 * second},
			{after: second, want: plain, now: []string{"cluster a", "service s"}, again: 2 * second}, // seen by now
			{after: second, want: plain, now: []string{"cluster a", "service s"}, again: second},
			{after: second, want: plain, now: plain},
		},
		"an edit of routes is written at once": {
			{want: plain, now: plain},
			{want: []string{"chain", "cluster a", "routes r=2", "service s"}, now: []string{"chain", "cluster a", "routes r=2", "service s"}},
		},
		"routes name a cluster that is ready, and it outlives them": {
			{want: plain, now: plain},
			{
				want:  []string{"chain", "cluster a", "cluster b", "routes r=2", "service s"},
				now:   []string{"chain", "cluster a", "cluster b", "routes r=1", "service s"},
				again: 2 * second,
			},
			{
				want:  []string{"chain", "cluster a", "cluster b", "routes r=2", "service s"},
				now:   []string{"chain", "cluster a", "cluster b", "routes r=1", "service s"},
				again: 2 * second,
			},
			{
				after: 2 * second,
				want:  []string{"chain", "cluster a", "cluster b", "routes r=2", "service s"},
				now:   []string{"chain", "cluster a", "cluster b", "routes r=2", "service s"},
			},
			{want: plain, now: []string{"chain", "cluster a", "cluster b", "routes r=1", "service s"}, again: time.Minute},
			{ // back before it has gone
				after: 10 * second,
				want:  []string{"chain", "cluster a", "cluster b", "routes r=3", "service s"},
				now:   []string{"chain", "cluster a", "cluster b", "routes r=3", "service s"},
			},
			{want: plain, now: []string{"chain", "cluster a", "cluster b", "routes r=1", "service s"}, again: time.Minute},
			{after: 59 * second, want: plain, now: []string{"chain", "cluster a", "cluster b", "routes r=1", "service s"}, again: second},
			{after: second, want: plain, now: plain},
		},
		"a Service's cluster as well": {
			{want: plain, now: plain},
			{want: []string{"chain", "cluster a", "picker u", "routes r=2", "service u"}, now: []string{"chain", "cluster a", "picker u", "routes r=1", "service s", "service u"}, again: 2 * second},
			{want: []string{"chain", "cluster a", "picker u", "routes r=2", "service u"}, now: []string{"chain", "cluster a", "picker u", "routes r=1", "service s", "service u"}, again: 2 * second},
			{after: 2 * second, want: []string{"chain", "cluster a", "picker u", "routes r=2", "service u"}, now: []string{"chain", "cluster a", "picker u", "routes r=2", "service s", "service u"}, again: time.Minute},
		},
		"what is not wanted any more leaves its chain at once and goes later": {
			{want: plain, now: plain},
			{leaving: []string{"cluster a", "routes r=1", "service s"}, again: time.Minute},
			{after: 30 * second, leaving: []string{"cluster a", "routes r=1", "service s"}, again: 30 * second},
			{after: 30 * second},
		},
		"what was deleted by hand comes back whole": {
			{want: plain, now: plain},
			{after: 10 * second, want: plain, now: plain},
			{lost: true, want: plain, now: plain},
		},
		"a new controller goes on": {
			{want: plain, now: plain},
			{restarted: true, want: plain, now: plain},
			{restarted: true, want: []string{"chain", "cluster b", "routes r=2"}, now: []string{"chain", "cluster a", "cluster b", "routes r=1", "service s"}, again: 2 * second},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ticks := clocktesting.NewFakePassiveClock(time.Unix(1_000_000, 0))
			f := New(times, ticks)
			var live []*networkingv1alpha3.EnvoyFilter
			for i, s := range steps {
				ticks.SetTime(ticks.Now().Add(s.after))
				if s.restarted {
					f = New(times, ticks)
				}
				if s.lost {
					live = nil
				}
				var wanted []Wanted
				if s.want != nil {
					wanted = []Wanted{{Filter: filterOf(s.want...), Called: s.calledWithout}}
				}
				plan := f.Plan(owner, wanted, live)
				live = slices.Concat(plan.Now, plan.Leaving)
				words := func(list []*networkingv1alpha3.EnvoyFilter) (out []string) {
					for _, f := range list {
						out = append(out, wordsOf(f)...)
					}
					return out
				}
				if diff := cmp.Diff(s.now, words(plan.Now)); diff != "" {
					t.Errorf("step %d: now (-want +got):\n%s", i+1, diff)
				}
				if diff := cmp.Diff(s.leaving, words(plan.Leaving)); diff != "" {
					t.Errorf("step %d: leaving (-want +got):\n%s", i+1, diff)
				}
				if plan.Again != s.again {
					t.Errorf("step %d: again after %s, want %s", i+1, plan.Again, s.again)
				}
			}
		})
	}
}

// The new waypoint of a host is ready some time after its clusters were first seen there.
func TestSettled(t *testing.T) {
	ticks := clocktesting.NewFakePassiveClock(time.Unix(1_000_000, 0))
	f := New(times, ticks)
	want := filterOf("chain", "cluster a", "routes r")
	var live []*networkingv1alpha3.EnvoyFilter
	for i, left := range []time.Duration{2 * time.Second, 2 * time.Second, time.Second, 0} {
		live = f.Plan(owner, []Wanted{{Filter: want}}, live).Now
		if got := f.Settled(owner, nameOf(want)); got != left {
			t.Errorf("look %d: settled in %s, want %s", i+1, got, left)
		}
		if i > 0 { // it is seen at the second look
			ticks.SetTime(ticks.Now().Add(time.Second))
		}
	}
}

// written are the live filters once all wanted ones are written.
func written(all []Wanted) (out []*networkingv1alpha3.EnvoyFilter) {
	for _, w := range all {
		out = append(out, w.Filter.DeepCopy())
	}
	return out
}

// A plan that equals the live filter is not kept beside the cache's copy: a thousand plans would take a hundred megabytes.
func TestNothingIsKeptOfWhatIsThere(t *testing.T) {
	ticks := clocktesting.NewFakePassiveClock(time.Unix(1_000_000, 0))
	f := New(times, ticks)
	wanted := func(words ...string) []Wanted { return []Wanted{{Filter: filterOf(words...)}} }
	kept := func() bool { return f.owners[owner][nameOf(filterOf())].last != nil }
	plain, edited := wanted("chain", "cluster a", "routes r=1"), wanted("chain", "cluster a", "routes r=2")
	for _, step := range []struct {
		what string
		want []Wanted
		live []*networkingv1alpha3.EnvoyFilter
		kept bool
	}{
		{what: "planned", want: plain, kept: true},
		{what: "there", want: plain, live: written(plain)},
		{what: "there at the next look", want: plain, live: written(plain)},
		{what: "edited, and not there yet", want: edited, live: written(plain), kept: true},
		{what: "still not there", want: edited, live: written(plain), kept: true},
		{what: "edited and there", want: edited, live: written(edited)},
		{what: "others changed it", want: edited, live: written(plain), kept: true},
	} {
		f.Plan(owner, step.want, step.live)
		if kept() != step.kept {
			t.Errorf("%s: kept %t", step.what, kept())
		}
	}
}
