// Package poolstatus makes the conditions of an InferencePool's status from verdicts on the pool. It must not write to a
// cluster or decide what is wrong with a pool. It is pure: it reads the status's list of parents, makes the new list, and
// reports whether the list has changed.
package poolstatus

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/parentstatus"
)

// ControllerName marks the entries that are ours. Several controllers share a pool's status.
const ControllerName inferencev1.ControllerName = "inference-waypoint.io/controller"

const (
	gatewayGroup inferencev1.Group = "gateway.networking.k8s.io"
	gatewayKind  inferencev1.Kind  = "Gateway"
)

// Our own conditions. Each exists, with status True, only while there is something to report. The pool is served anyway.
const (
	// IneffectiveConfig names users' Istio objects that are meant for calls to the pool and have no effect on them.
	IneffectiveConfig = "inference-waypoint.io/IneffectiveConfig"
	// PartiallyRefused names the hosts and Services that the user set for the pool and that do not serve it.
	PartiallyRefused = "inference-waypoint.io/PartiallyRefused"
)

// Picked says whether the pool's calls through the waypoint are picked, by the waypoint's counters. It is Unknown before
// the first call, and while the counters cannot be read. It does not affect whether the pool is served. A controller that
// does not watch waypoints writes no such condition.
const Picked = "inference-waypoint.io/Picked"

// The reasons of our own conditions and of their events, and the reason for not accepting a pool after our own failure.
const (
	ReasonIneffectiveConfig inferencev1.InferencePoolReason = "IneffectiveConfig"
	ReasonPartiallyRefused  inferencev1.InferencePoolReason = "PartiallyRefused"
	// ReasonNotWritten says that the waypoint's configuration could not be written.
	ReasonNotWritten inferencev1.InferencePoolReason = "ConfigurationNotWritten"
)

// The reasons of Picked.
const (
	ReasonPicked inferencev1.InferencePoolReason = "Picked"
	// ReasonIdle says that calls were picked, the last one some time ago.
	ReasonIdle           inferencev1.InferencePoolReason = "Idle"
	ReasonUnpicked       inferencev1.InferencePoolReason = "Unpicked"
	ReasonNotCalled      inferencev1.InferencePoolReason = "NotCalled"
	ReasonCountersUnread inferencev1.InferencePoolReason = "CountersUnread"
)

// Verdict is the content of one condition: a reason, which also decides the condition's status, and a message for people.
type Verdict struct {
	Reason  inferencev1.InferencePoolReason
	Message string
}

// Accepted says that the waypoint serves the pool.
func Accepted() Verdict {
	return Verdict{inferencev1.InferencePoolReasonAccepted, "the waypoint serves the pool"}
}

// ResolvedRefs says that the pool's endpoint picker was found, and who it is.
func ResolvedRefs(picker string) Verdict {
	return Verdict{inferencev1.InferencePoolReasonResolvedRefs, "the endpoint picker is " + picker}
}

// OK reports whether the condition is true.
func (v Verdict) OK() bool {
	switch v.Reason {
	case inferencev1.InferencePoolReasonAccepted, inferencev1.InferencePoolReasonResolvedRefs, ReasonIneffectiveConfig, ReasonPartiallyRefused,
		ReasonPicked, ReasonIdle:
		return true
	default:
		return false
	}
}

func (v Verdict) status() metav1.ConditionStatus {
	switch {
	case v.OK():
		return metav1.ConditionTrue
	case v.Reason == ReasonNotCalled || v.Reason == ReasonCountersUnread:
		return metav1.ConditionUnknown
	default:
		return metav1.ConditionFalse
	}
}

// Parent has the verdicts on a pool at one waypoint.
type Parent struct {
	Gateway      types.NamespacedName
	Accepted     Verdict
	ResolvedRefs Verdict
	// Ineffective and Refused are the messages of the conditions IneffectiveConfig and PartiallyRefused; an empty message
	// makes no condition.
	Ineffective, Refused string
	Picking              Picking
}

// Picking is the verdict for the condition Picked. The zero Picking makes no condition.
type Picking struct {
	Verdict
	// Keep leaves an existing condition Picked as it is, unless it is Unknown and there is a verdict.
	Keep bool
}

// Remarks are the conditions that exist only while there is something to report.
func (p Parent) Remarks() []Remark {
	all := []Remark{
		{IneffectiveConfig, Verdict{ReasonIneffectiveConfig, p.Ineffective}},
		{PartiallyRefused, Verdict{ReasonPartiallyRefused, p.Refused}},
	}
	return slices.DeleteFunc(all, func(r Remark) bool { return r.Message == "" })
}

// Remark is a condition of our own.
type Remark struct {
	Type inferencev1.InferencePoolConditionType
	Verdict
}

// Merge makes the new list of parents: other controllers' entries unchanged, then our entries, sorted by the Gateway's
// namespace and name. A condition keeps its time while its status stays. The bool reports whether our entries differ from
// those in current; if not, there is nothing to write. Merge fails if other controllers' entries leave no room.
func Merge(current []inferencev1.ParentStatus, ours []Parent, generation int64, now time.Time) ([]inferencev1.ParentStatus, bool, error) {
	return parentstatus.Merge(current, isOurs, func(before []inferencev1.ParentStatus) []inferencev1.ParentStatus {
		var after []inferencev1.ParentStatus
		for _, p := range ours {
			after = append(after, p.status(before, generation, now))
		}
		slices.SortFunc(after, compare)
		return after
	})
}

func isOurs(p inferencev1.ParentStatus) bool { return p.ControllerName == ControllerName }

// SaidBy reports whether a status already has the parent's conditions other than Picked, for any generation of the pool.
func (p Parent) SaidBy(current []inferencev1.ParentStatus) bool {
	told := p.entry(current)
	want := p.status(nil, 0, time.Time{})
	return told != nil && slices.EqualFunc(withoutPicked(told.Conditions), withoutPicked(want.Conditions), func(a, b metav1.Condition) bool {
		return a.Type == b.Type && a.Reason == b.Reason && a.Message == b.Message
	})
}

// Known reports whether a status has an entry of ours for the parent.
func (p Parent) Known(current []inferencev1.ParentStatus) bool { return p.entry(current) != nil }

// entry is our entry for the parent in a status; nil where there is none.
func (p Parent) entry(current []inferencev1.ParentStatus) *inferencev1.ParentStatus {
	want := p.status(nil, 0, time.Time{})
	i := slices.IndexFunc(current, func(c inferencev1.ParentStatus) bool {
		return c.ControllerName == ControllerName && compare(c, want) == 0
	})
	if i < 0 {
		return nil
	}
	return &current[i]
}

func withoutPicked(conditions []metav1.Condition) []metav1.Condition {
	return slices.DeleteFunc(slices.Clone(conditions), func(c metav1.Condition) bool { return c.Type == Picked })
}

// SaidOfPicking is the condition Picked in our entry for the parent; nil if there is none.
func (p Parent) SaidOfPicking(current []inferencev1.ParentStatus) *metav1.Condition {
	if told := p.entry(current); told != nil {
		return meta.FindStatusCondition(told.Conditions, Picked)
	}
	return nil
}

func (p Parent) status(before []inferencev1.ParentStatus, generation int64, now time.Time) inferencev1.ParentStatus {
	group := gatewayGroup
	out := inferencev1.ParentStatus{
		ControllerName: ControllerName,
		ParentRef: inferencev1.ParentReference{
			Group:     &group,
			Kind:      gatewayKind,
			Namespace: inferencev1.Namespace(p.Gateway.Namespace),
			Name:      inferencev1.ObjectName(p.Gateway.Name),
		},
	}
	var old []metav1.Condition
	if i := slices.IndexFunc(before, func(b inferencev1.ParentStatus) bool { return compare(b, out) == 0 }); i >= 0 {
		old = before[i].Conditions
	}
	out.Conditions = []metav1.Condition{
		condition(inferencev1.InferencePoolConditionAccepted, p.Accepted, old, generation, now),
		condition(inferencev1.InferencePoolConditionResolvedRefs, p.ResolvedRefs, old, generation, now),
	}
	for _, r := range p.Remarks() {
		out.Conditions = append(out.Conditions, condition(r.Type, r.Verdict, old, generation, now))
	}
	if picking := p.Picking.or(meta.FindStatusCondition(old, Picked)); picking.Reason != "" {
		out.Conditions = append(out.Conditions, condition(Picked, picking, old, generation, now))
	}
	return out
}

// or is the verdict, or the existing condition's verdict if Keep applies to it.
func (p Picking) or(told *metav1.Condition) Verdict {
	if p.Keep && told != nil && (p.Reason == "" || told.Status != metav1.ConditionUnknown) {
		return Verdict{inferencev1.InferencePoolReason(told.Reason), told.Message}
	}
	return p.Verdict
}

func condition(kind inferencev1.InferencePoolConditionType, v Verdict, old []metav1.Condition, generation int64, now time.Time) metav1.Condition {
	return parentstatus.Stamp(metav1.Condition{
		Type:    string(kind),
		Status:  v.status(),
		Reason:  string(v.Reason),
		Message: Clip(v.Message, MaxMessage),
	}, old, generation, now)
}

// MaxMessage is the length of the longest message that the API takes in a condition.
const MaxMessage = 32768

// Clip shortens a text to at most limit bytes, and cuts between characters. The API server would replace half a character,
// and the status in the cluster would then always differ from the one that we want.
func Clip(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	const more = "..."
	return strings.ToValidUTF8(text[:limit-len(more)], "") + more
}

func compare(a, b inferencev1.ParentStatus) int {
	return cmp.Or(
		cmp.Compare(a.ParentRef.Namespace, b.ParentRef.Namespace),
		cmp.Compare(a.ParentRef.Name, b.ParentRef.Name),
	)
}
