package routes

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/parentstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
)

// Verdict is the result for a route at one of its parents.
type Verdict struct {
	Parent gatewayv1.ParentReference
	// Refused says why the route has no effect at the parent; zero if it has one.
	Refused Problem
	// Unresolved and Dropped are those of Compiled.
	Unresolved []Problem
	Dropped    []string
	// Notes are texts for people.
	Notes []string
	// unread says that the route's references were not resolved.
	unread bool
}

// NotServed is the verdict on a GRPCRoute at a pool's front. An HTTPRoute can do the same, as a gRPC call is a POST to the
// path /service/method.
func NotServed(parent gatewayv1.ParentReference) Verdict {
	return Verdict{Parent: parent, unread: true, Refused: Problem{
		Reason: gatewayv1.RouteReasonUnsupportedValue,
		Message: "a GRPCRoute has no effect at an InferencePool's host, where HTTPRoutes apply to gRPC calls too: " +
			"use an HTTPRoute that matches the path /<service>/<method>",
	}}
}

// MergeStatus makes the new list of parents of a route's status: other controllers' entries unchanged, then those of the
// controller, in the order of the route's references. A condition keeps its time while its status stays. The bool reports
// whether the controller's entries differ from those in current; if not, there is nothing to write. It fails if other
// controllers' entries leave no room.
func MergeStatus(current []gatewayv1.RouteParentStatus, ours []Verdict, controller gatewayv1.GatewayController, generation int64, now time.Time) ([]gatewayv1.RouteParentStatus, bool, error) {
	isOurs := func(p gatewayv1.RouteParentStatus) bool { return p.ControllerName == controller }
	return parentstatus.Merge(current, isOurs, func(before []gatewayv1.RouteParentStatus) []gatewayv1.RouteParentStatus {
		var after []gatewayv1.RouteParentStatus
		for _, v := range ours {
			after = append(after, v.status(before, controller, generation, now))
		}
		return after
	})
}

func (v Verdict) status(before []gatewayv1.RouteParentStatus, controller gatewayv1.GatewayController, generation int64, now time.Time) gatewayv1.RouteParentStatus {
	out := gatewayv1.RouteParentStatus{ParentRef: v.Parent, ControllerName: controller}
	var old []metav1.Condition
	if i := slices.IndexFunc(before, func(b gatewayv1.RouteParentStatus) bool {
		return equality.Semantic.DeepEqual(b.ParentRef, v.Parent)
	}); i >= 0 {
		old = before[i].Conditions
	}
	for _, c := range v.Conditions() {
		out.Conditions = append(out.Conditions, parentstatus.Stamp(c, old, generation, now))
	}
	return out
}

// Conditions makes the conditions of the verdict, without times.
func (v Verdict) Conditions() []metav1.Condition {
	accepted := condition(gatewayv1.RouteConditionAccepted, true, gatewayv1.RouteReasonAccepted, "the waypoint serves the route")
	switch {
	case v.Refused != Problem{}:
		accepted = condition(gatewayv1.RouteConditionAccepted, false, v.Refused.Reason, v.Refused.Message)
	case len(v.Notes) > 0:
		accepted.Message += "; " + strings.Join(v.Notes, "; ")
	}
	resolved := condition(gatewayv1.RouteConditionResolvedRefs, true, gatewayv1.RouteReasonResolvedRefs, "all references are resolved")
	if len(v.Unresolved) > 0 {
		var messages []string
		for _, p := range v.Unresolved {
			messages = append(messages, p.Message)
		}
		resolved = condition(gatewayv1.RouteConditionResolvedRefs, false, v.Unresolved[0].Reason, strings.Join(messages, "; "))
	}
	if v.unread {
		return []metav1.Condition{accepted}
	}
	out := []metav1.Condition{accepted, resolved}
	if len(v.Dropped) > 0 && accepted.Status == metav1.ConditionTrue {
		out = append(out, condition(gatewayv1.RouteConditionPartiallyInvalid, true, gatewayv1.RouteReasonUnsupportedValue, strings.Join(v.Dropped, "; ")))
	}
	slices.SortFunc(out, func(a, b metav1.Condition) int { return cmp.Compare(a.Type, b.Type) })
	return out
}

func condition(kind gatewayv1.RouteConditionType, status bool, reason gatewayv1.RouteConditionReason, message string) metav1.Condition {
	out := metav1.Condition{Type: string(kind), Status: metav1.ConditionFalse, Reason: string(reason), Message: poolstatus.Clip(message, poolstatus.MaxMessage)}
	if status {
		out.Status = metav1.ConditionTrue
	}
	return out
}
