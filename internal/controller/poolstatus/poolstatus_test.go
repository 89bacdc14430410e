package poolstatus

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/parentstatus"
)

var (
	before = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now    = before.Add(time.Hour)
)

func TestMerge(t *testing.T) {
	waypoint := types.NamespacedName{Namespace: "models", Name: "waypoint"}
	well := Parent{Gateway: waypoint, Accepted: Accepted(), ResolvedRefs: ResolvedRefs("epp")}
	broken := well
	broken.ResolvedRefs = Verdict{inferencev1.InferencePoolReasonInvalidExtensionRef, "no such Service"}
	lost := well
	lost.Ineffective = "without effect"
	told := entry("models", "waypoint", 1, before, before, "")
	told.Conditions = append(told.Conditions, metav1.Condition{
		Type: IneffectiveConfig, Status: metav1.ConditionTrue, Reason: "IneffectiveConfig", Message: "without effect",
		ObservedGeneration: 1, LastTransitionTime: metav1.NewTime(now),
	})
	other := foreign("ingress")

	tests := map[string]struct {
		current     []inferencev1.ParentStatus
		ours        []Parent
		generation  int64
		want        []inferencev1.ParentStatus
		wantChanged bool
	}{
		"first entry": {
			current:     []inferencev1.ParentStatus{other},
			ours:        []Parent{well},
			generation:  1,
			want:        []inferencev1.ParentStatus{other, entry("models", "waypoint", 1, now, now, "")},
			wantChanged: true,
		},
		"the same again": {
			current:    []inferencev1.ParentStatus{entry("models", "waypoint", 1, before, before, ""), other},
			ours:       []Parent{well},
			generation: 1,
			want:       []inferencev1.ParentStatus{entry("models", "waypoint", 1, before, before, ""), other},
		},
		"a new generation keeps the times": {
			current:     []inferencev1.ParentStatus{entry("models", "waypoint", 1, before, before, "")},
			ours:        []Parent{well},
			generation:  2,
			want:        []inferencev1.ParentStatus{entry("models", "waypoint", 2, before, before, "")},
			wantChanged: true,
		},
		"one condition turns false": {
			current:     []inferencev1.ParentStatus{entry("models", "waypoint", 1, before, before, "")},
			ours:        []Parent{broken},
			generation:  1,
			want:        []inferencev1.ParentStatus{entry("models", "waypoint", 1, before, now, "no such Service")},
			wantChanged: true,
		},
		"what has no effect is told": {
			current:     []inferencev1.ParentStatus{entry("models", "waypoint", 1, before, before, "")},
			ours:        []Parent{lost},
			generation:  1,
			want:        []inferencev1.ParentStatus{told},
			wantChanged: true,
		},
		"and no longer where there is no such thing": {
			current:     []inferencev1.ParentStatus{told},
			ours:        []Parent{well},
			generation:  1,
			want:        []inferencev1.ParentStatus{entry("models", "waypoint", 1, before, before, "")},
			wantChanged: true,
		},
		"another waypoint": {
			current:     []inferencev1.ParentStatus{entry("models", "old", 1, before, before, ""), other},
			ours:        []Parent{well},
			generation:  1,
			want:        []inferencev1.ParentStatus{other, entry("models", "waypoint", 1, now, now, "")},
			wantChanged: true,
		},
		"two waypoints are sorted": {
			ours:       []Parent{well, {Gateway: types.NamespacedName{Namespace: "edge", Name: "z"}, Accepted: Accepted(), ResolvedRefs: ResolvedRefs("epp")}},
			generation: 1,
			want: []inferencev1.ParentStatus{
				entry("edge", "z", 1, now, now, ""),
				entry("models", "waypoint", 1, now, now, ""),
			},
			wantChanged: true,
		},
		"none serves the pool": {
			current:     []inferencev1.ParentStatus{entry("models", "waypoint", 1, before, before, ""), other},
			want:        []inferencev1.ParentStatus{other},
			wantChanged: true,
		},
		"none served it before": {
			current: []inferencev1.ParentStatus{other},
			want:    []inferencev1.ParentStatus{other},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, changed, err := Merge(tt.current, tt.ours, tt.generation, now)
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
}

// The condition Picked can be Unknown, keeps its value if Keep is set, and does not count in SaidBy.
func TestMergePicking(t *testing.T) {
	waypoint := types.NamespacedName{Namespace: "models", Name: "waypoint"}
	with := func(p Picking) Parent {
		return Parent{Gateway: waypoint, Accepted: Accepted(), ResolvedRefs: ResolvedRefs("epp"), Picking: p}
	}
	say := func(reason inferencev1.InferencePoolReason) Picking { return Picking{Verdict: Verdict{reason, "so"}} }
	keep := func(p Picking) Picking { p.Keep = true; return p }
	for name, tt := range map[string]struct {
		told *Picking
		now  Picking
		want string
	}{
		"picked":                          {nil, say(ReasonPicked), "True Picked"},
		"idle":                            {nil, say(ReasonIdle), "True Idle"},
		"unpicked":                        {nil, say(ReasonUnpicked), "False Unpicked"},
		"not called":                      {nil, say(ReasonNotCalled), "Unknown NotCalled"},
		"counters unread":                 {nil, say(ReasonCountersUnread), "Unknown CountersUnread"},
		"nobody watches":                  {&Picking{Verdict: Verdict{ReasonPicked, "so"}}, Picking{}, ""},
		"nothing is known yet":            {nil, keep(Picking{}), ""},
		"nothing is known anew":           {&Picking{Verdict: Verdict{ReasonUnpicked, "so"}}, keep(Picking{}), "False Unpicked"},
		"what is unknown is kept, too":    {&Picking{Verdict: Verdict{ReasonNotCalled, "so"}}, keep(Picking{}), "Unknown NotCalled"},
		"what was told of calls stays":    {&Picking{Verdict: Verdict{ReasonUnpicked, "so"}}, keep(say(ReasonIdle)), "False Unpicked"},
		"what was not known is known":     {&Picking{Verdict: Verdict{ReasonCountersUnread, "so"}}, keep(say(ReasonIdle)), "True Idle"},
		"a verdict takes another's place": {&Picking{Verdict: Verdict{ReasonUnpicked, "so"}}, say(ReasonPicked), "True Picked"},
	} {
		t.Run(name, func(t *testing.T) {
			var current []inferencev1.ParentStatus
			if tt.told != nil {
				current, _, _ = Merge(nil, []Parent{with(*tt.told)}, 1, before)
			}
			got, _, err := Merge(current, []Parent{with(tt.now)}, 1, now)
			if err != nil {
				t.Fatal(err)
			}
			said := ""
			if c := with(tt.now).SaidOfPicking(got); c != nil {
				said = string(c.Status) + " " + c.Reason
			}
			if said != tt.want {
				t.Errorf("it says %q, want %q", said, tt.want)
			}
			if !with(tt.now).SaidBy(got) || tt.told != nil && !with(tt.now).SaidBy(current) {
				t.Error("what is said of picking is taken for news of serving")
			}
			if again, changed, _ := Merge(got, []Parent{with(tt.now)}, 1, now.Add(time.Hour)); changed {
				t.Errorf("the same again is a change: %v", again)
			}
		})
	}
}

func TestMergeWithoutRoom(t *testing.T) {
	var current []inferencev1.ParentStatus
	for i := range parentstatus.Max {
		current = append(current, foreign(fmt.Sprint("gateway-", i)))
	}
	ours := []Parent{{Gateway: types.NamespacedName{Namespace: "models", Name: "waypoint"}, Accepted: Accepted(), ResolvedRefs: ResolvedRefs("epp")}}
	if got, _, err := Merge(current, ours, 1, now); err == nil {
		t.Errorf("a list of %d parents was made, and the API takes %d", len(got), parentstatus.Max)
	}
}

func foreign(gateway string) inferencev1.ParentStatus {
	return inferencev1.ParentStatus{
		ControllerName: "istio.io/inference-pool-controller",
		ParentRef:      inferencev1.ParentReference{Namespace: "edge", Name: inferencev1.ObjectName(gateway)},
		Conditions: []metav1.Condition{{
			Type: "Accepted", Status: metav1.ConditionTrue, Reason: "Accepted", LastTransitionTime: metav1.NewTime(before),
		}},
	}
}

// entry is ours for a Gateway; problem is what is wrong with the pool's references, if anything.
func entry(namespace, name string, generation int64, accepted, resolved time.Time, problem string) inferencev1.ParentStatus {
	group := inferencev1.Group("gateway.networking.k8s.io")
	refs := metav1.Condition{
		Type: "ResolvedRefs", Status: metav1.ConditionTrue, Reason: "ResolvedRefs", Message: ResolvedRefs("epp").Message,
		ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(resolved),
	}
	if problem != "" {
		refs.Status, refs.Reason, refs.Message = metav1.ConditionFalse, "InvalidExtensionRef", problem
	}
	return inferencev1.ParentStatus{
		ControllerName: ControllerName,
		ParentRef: inferencev1.ParentReference{
			Group: &group, Kind: "Gateway", Namespace: inferencev1.Namespace(namespace), Name: inferencev1.ObjectName(name),
		},
		Conditions: []metav1.Condition{
			{
				Type: "Accepted", Status: metav1.ConditionTrue, Reason: "Accepted", Message: Accepted().Message,
				ObservedGeneration: generation, LastTransitionTime: metav1.NewTime(accepted),
			},
			refs,
		},
	}
}

func TestSaidBy(t *testing.T) {
	well := Parent{Gateway: types.NamespacedName{Namespace: "models", Name: "waypoint"}, Accepted: Accepted(), ResolvedRefs: ResolvedRefs("epp")}
	broken := well
	broken.ResolvedRefs = Verdict{inferencev1.InferencePoolReasonInvalidExtensionRef, "no such Service"}
	current := []inferencev1.ParentStatus{foreign("waypoint"), entry("models", "waypoint", 7, before, before, "no such Service")}
	if well.SaidBy(current) {
		t.Error("a status with a problem says that all is well")
	}
	if !broken.SaidBy(current) {
		t.Error("a status does not say the problem that it has")
	}
	if well.SaidBy([]inferencev1.ParentStatus{foreign("waypoint")}) {
		t.Error("another controller's entry speaks for us")
	}
}

func TestClip(t *testing.T) {
	tests := map[string]struct {
		text  string
		limit int
		want  string
	}{
		"short":                      {"abc", 3, "abc"},
		"long":                       {"abcdefgh", 6, "abc..."},
		"cut in a character":         {"aéééé", 7, "aé..."},
		"cut in a character of four": {"a😀😀", 8, "a😀..."},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Clip(tt.text, tt.limit); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}
