package status

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/snapshottest"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// TestText judges a cluster with a single fault, and compares the report with testdata/<name>.txt.
func TestText(t *testing.T) {
	llama := func(s *cluster.Snapshot) *inferencev1.InferencePool { return s.Pools.Items[0] }
	removePods := func(s *cluster.Snapshot, names ...string) {
		s.Pods.Items = slices.DeleteFunc(s.Pods.Items, func(p *corev1.Pod) bool { return slices.Contains(names, p.Name) })
	}
	refuse := func(kind, reason, message string) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) {
			c := meta.FindStatusCondition(llama(s).Status.Parents[0].Conditions, kind)
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, reason, message
		}
	}
	picked := func(status metav1.ConditionStatus, reason, message string) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) {
			c := meta.FindStatusCondition(llama(s).Status.Parents[0].Conditions, poolstatus.Picked)
			c.Status, c.Reason, c.Message = status, reason, message
		}
	}
	noPicked := func(s *cluster.Snapshot) {
		meta.RemoveStatusCondition(&llama(s).Status.Parents[0].Conditions, poolstatus.Picked)
	}
	failClose := func(s *cluster.Snapshot) {
		llama(s).Annotations = map[string]string{pool.FailureModeAnnotation: "FailClose"}
	}
	const refusedPicks = "the waypoint's connections to the picker are refused or break; look at AuthorizationPolicies and NetworkPolicies at the picker, and at its pods"
	forbidden := func(what string) *cluster.Problem {
		return &cluster.Problem{Cause: cluster.NotPermitted, Text: "not permitted to list " + what}
	}
	// answers are those of several pickers: what each picked for the pool, and how far it knows what the others decide.
	answers := func(all ...cluster.Answer) func(*cluster.Snapshot) {
		return func(s *cluster.Snapshot) {
			first := s.Pods.Items[slices.IndexFunc(s.Pods.Items, func(p *corev1.Pod) bool { return p.Name == "inference-picker-0" })]
			for i, a := range all {
				pod := first.DeepCopy()
				if pod.Name = fmt.Sprint("inference-picker-", i); i > 0 {
					s.Pods.Items = append(s.Pods.Items, pod)
				}
				a.Pod = types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
				if a.Err == nil {
					a.State.Picker = pod.Name
				}
				s.Answers = append(s.Answers, a)
			}
		}
	}
	silent := 0.34
	first, second := livestate.PickedBy{Picker: "inference-picker-0", Since: 60}, livestate.PickedBy{Picker: "inference-picker-1", Since: 30}
	state := func(others []livestate.Other, by ...livestate.PickedBy) cluster.Answer {
		return cluster.Answer{State: livestate.State{Others: others, Pools: []livestate.Pool{
			{Name: "models/other", PickedBy: []livestate.PickedBy{first, second}}, {Name: "models/llama", PickedBy: by},
		}}}
	}
	follows := func(picker string) []livestate.Other { return []livestate.Other{{Picker: picker, Silent: &silent}} }
	tests := map[string]struct {
		change       func(*cluster.Snapshot)
		wide, detail bool
		wantState    State
	}{
		"well":        {wantState: Picking},
		"well-wide":   {wide: true, wantState: Picking},
		"well-detail": {detail: true, wantState: Picking},
		"no-pools":    {change: func(s *cluster.Snapshot) { s.Pools.Items = nil }},
		"no-waypoint": {change: func(s *cluster.Snapshot) {
			s.Namespaces.Items[0].Labels, llama(s).Status.Parents, s.Entries.Items = nil, nil, nil
		}, wantState: NotServing},
		"no-controller": {change: func(s *cluster.Snapshot) {
			s.Deployments.Items, s.Entries.Items, llama(s).Status.Parents = nil, nil, nil
		}, wantState: NotServing},
		"status-erased":     {change: func(s *cluster.Snapshot) { llama(s).Status.Parents = nil }, wantState: Unknown},
		"controller-behind": {change: func(s *cluster.Snapshot) { llama(s).Generation = 3 }, wantState: Picking},
		"waypoint-missing": {change: func(s *cluster.Snapshot) {
			s.Gateways.Items, s.Entries.Items = nil, nil
			refuse("Accepted", "NotSupportedByParent", "Gateway models/waypoint does not exist")(s)
		}, wantState: NotServing},
		"waypoint-not-programmed": {change: func(s *cluster.Snapshot) { s.Gateways.Items[0].Status.Conditions = nil }, wantState: NotServing},
		"waypoint-without-pods":   {change: func(s *cluster.Snapshot) { removePods(s, "waypoint-0") }, wantState: NotServing},
		"picker-missing": {change: refuse("ResolvedRefs", "InvalidExtensionRef",
			"the endpoint picker's Service inference-system/inference-picker does not exist"), wantState: NotPicking},
		"ineffective-config": {change: func(s *cluster.Snapshot) {
			parent := &llama(s).Status.Parents[0]
			parent.Conditions = append(parent.Conditions, metav1.Condition{
				Type: poolstatus.IneffectiveConfig, Status: metav1.ConditionTrue, Reason: "IneffectiveConfig", ObservedGeneration: 2,
				Message: "without effect on calls to the pool: VirtualService models/faults (write an HTTPRoute whose parent is the host's object)",
			})
		}, wantState: Picking},
		"picker-not-ready": {change: func(s *cluster.Snapshot) { removePods(s, "inference-picker-0") }, wantState: NotPicking},
		"picker-not-ready-fail-close": {change: func(s *cluster.Snapshot) {
			removePods(s, "inference-picker-0")
			llama(s).Annotations = map[string]string{pool.FailureModeAnnotation: "FailClose"}
		}, wantState: NotServing},
		"no-pods":        {change: func(s *cluster.Snapshot) { removePods(s, "llama-0", "llama-1") }, wantState: NotServing},
		"pod-not-ready":  {change: func(s *cluster.Snapshot) { notReady(s, "llama-1") }, wantState: Picking},
		"pods-not-ready": {change: func(s *cluster.Snapshot) { notReady(s, "llama-0", "llama-1") }, wantState: NotServing},
		"entry-gone":     {change: func(s *cluster.Snapshot) { s.Entries.Items = nil }, wantState: NotServing},
		"replicas": {
			change: answers(state(follows("inference-picker-1"), first), state(follows("inference-picker-0"), first), cluster.Answer{Err: errors.New("it does not answer")}),
			detail: true, wantState: Picking,
		},
		"replicas-idle": {
			change: answers(state(follows("inference-picker-1")), state(follows("inference-picker-0"))), detail: true, wantState: Picking,
		},
		"replicas-apart": {
			change: answers(state([]livestate.Other{{Picker: "10.244.0.9:9004"}}, first), state([]livestate.Other{{Picker: "10.244.0.5:9004"}})),
			detail: true, wantState: Picking,
		},
		"replicas-split-apart": {
			change: func(s *cluster.Snapshot) {
				llama(s).Annotations = map[string]string{picksettings.Prefix + "split": "callers"}
				answers(state(follows("inference-picker-1"), first, second), state([]livestate.Other{{Picker: "10.244.0.5:9004"}}, first, second))(s)
			},
			detail: true, wantState: Picking,
		},
		"replicas-split": {
			change: func(s *cluster.Snapshot) {
				llama(s).Annotations = map[string]string{picksettings.Prefix + "split": "callers"}
				answers(state(follows("inference-picker-1"), first, second), state(follows("inference-picker-0"), first, second))(s)
			},
			detail: true, wantState: Picking,
		},
		"replicas-at-once": {
			change: answers(state(follows("inference-picker-1"), first, second), state(follows("inference-picker-0"), first, second)),
			detail: true, wantState: Picking,
		},
		"idle-detail": {change: picked("True", "Idle", "calls were picked, the last one more than 10 minutes ago"), detail: true, wantState: Picking},
		"not-called":  {change: picked("Unknown", "NotCalled", "no call has come by the waypoint yet"), wantState: NotCalled},
		"unpicked": {change: picked("False", "Unpicked", "a tenth of the calls or more are spread over the endpoints without a pick: "+refusedPicks),
			wantState: NotPicking},
		"unpicked-fail-close": {change: func(s *cluster.Snapshot) {
			failClose(s)
			picked("False", "Unpicked", "a tenth of the calls or more are refused: "+refusedPicks)(s)
		}, wantState: NotServing},
		"counters-unread": {change: picked("Unknown", "CountersUnread",
			"whether calls are picked is not known: no pod of the waypoint shows its counters at port 15090; a NetworkPolicy may keep the controller away"),
			wantState: Unknown},
		"picking-unknown": {change: noPicked, wantState: Unknown},
		"unwatched":       {change: func(s *cluster.Snapshot) { noPicked(s); s.Unwatched = true }, wantState: Unknown},
		// One waypoint of two has calls.
		"called-at-one": {change: func(s *cluster.Snapshot) {
			other := llama(s).Status.Parents[0].DeepCopy()
			meta.FindStatusCondition(other.Conditions, poolstatus.Picked).Reason = "NotCalled"
			llama(s).Status.Parents = append(llama(s).Status.Parents, *other)
		}, wantState: Picking},
		"wrong-annotation": {change: func(s *cluster.Snapshot) {
			llama(s).Annotations = map[string]string{pool.FailureModeAnnotation: "FailSometimes"}
		}, wantState: NotServing},
		"unread": {change: func(s *cluster.Snapshot) {
			s.Pods = cluster.List[corev1.Pod]{Problem: forbidden("pods in namespace models")}
		}, wantState: Unknown},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := snapshottest.Load(t, "testdata/system.yaml", "testdata/models.yaml")
			if tt.change != nil {
				tt.change(s)
			}
			report := Of(s)
			report.Detail = tt.detail
			if len(report.Pools) > 0 && report.Pools[0].State != tt.wantState {
				t.Errorf("state %q, want %q", report.Pools[0].State, tt.wantState)
			}
			snapshottest.Golden(t, filepath.Join("testdata", name+".txt"), report.Text(tt.wide))
		})
	}
}

func notReady(s *cluster.Snapshot, names ...string) {
	for _, p := range s.Pods.Items {
		if slices.Contains(names, p.Name) {
			p.Status.Conditions = nil
		}
	}
}

func TestPoolsAreInOrder(t *testing.T) {
	s := snapshottest.Load(t, "testdata/models.yaml")
	for _, name := range []types.NamespacedName{{Namespace: "b", Name: "a"}, {Namespace: "a", Name: "z"}, {Namespace: "a", Name: "b"}} {
		p := s.Pools.Items[0].DeepCopy()
		p.Namespace, p.Name = name.Namespace, name.Name
		s.Pools.Items = append(s.Pools.Items, p)
	}
	var got []string
	for _, p := range Of(s).Pools {
		got = append(got, p.Namespace+"/"+p.Name)
	}
	if want := []string{"a/b", "a/z", "b/a", "models/llama"}; !slices.Equal(got, want) {
		t.Errorf("in the order %v, want %v", got, want)
	}
}
