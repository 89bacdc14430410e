package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/status"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// maxNamed bounds how many names one message has.
const maxNamed = 3

// product checks controller and picker.
func (e *examination) product() {
	s := e.Snapshot
	if s.Deployments.Problem != nil {
		e.unread("controller", "the controller", s.Deployments.Problem)
	} else if d := cluster.Named(s.Deployments, cluster.Controller); d == nil {
		e.add("controller", Failed, "kubectl apply -k manifests/", "Inference Waypoint is not installed: namespace %s has no controller", s.SystemNamespace)
		return
	} else if d.Status.ReadyReplicas == 0 {
		e.add("controller", Failed, fmt.Sprintf("kubectl logs -n %s deployment/%s", d.Namespace, d.Name), "no pod of the controller (%s/%s) is ready", d.Namespace, d.Name)
	} else {
		e.add("controller", OK, "", "the controller runs (%s/%s)", d.Namespace, d.Name)
	}
	e.pickers()
}

func (e *examination) pickers() {
	if s := e.Snapshot; len(s.Answers) == 0 {
		problem := cmp.Or(s.Services.Problem, s.Pods.Problem)
		switch {
		case problem != nil:
			e.unread("picker", "the picker", problem)
		case s.Settings.DefaultPicker != nil:
			at := s.Settings.DefaultPicker.Service
			e.add("picker", Failed, fmt.Sprintf("kubectl describe service %s -n %s", at.Name, at.Namespace),
				"no pod of the picker (Service %s) is ready: calls are not picked", at)
		}
	}
	for _, p := range e.Snapshot.Answers {
		if p.Err != nil {
			e.add("picker", Unknown, fmt.Sprintf("kubectl port-forward -n %s %s 9090, and open http://localhost:9090/metrics", p.Pod.Namespace, p.Pod.Name), "%v", p.Err)
			continue
		}
		e.add("picker", OK, "", "the picker runs and answers (pod %s)", p.Pod)
	}
	e.followers()
}

// followers checks that the pickers follow each other. The replicas of a picker know of each other by the names of their pods.
func (e *examination) followers() {
	var names []string
	apart := false
	for _, a := range e.Snapshot.Answers {
		if len(a.State.Others) > 0 {
			names = append(names, a.State.Picker)
		}
		for _, o := range a.State.Others {
			if o.Silent == nil {
				apart = true
				e.add("picker-followers", Warning, status.WhereApart,
					"picker %s does not follow %s: it would take pools over without what that one knows", a.State.Picker, o.Picker)
			}
		}
	}
	if len(names) > 0 && !apart {
		slices.Sort(names)
		e.add("picker-followers", OK, "", "%s follow the other pickers", strings.Join(names, " and "))
	}
}

// pools checks every namespace with pools, then every pool.
func (e *examination) pools() {
	s := e.Snapshot
	if s.Pools.Problem != nil {
		if s.Pools.Problem.Cause != cluster.NotInstalled { // an earlier check says that
			e.unread("pools", "pools", s.Pools.Problem)
		}
		return
	}
	if len(s.Pools.Items) == 0 {
		e.add("pools", OK, "", "there are no InferencePools")
		return
	}
	e.namespaces()
	if s.Pods.Problem != nil {
		e.unread("pods", "pods", s.Pods.Problem)
	}
	report := status.Of(s)
	for i := range report.Pools {
		p := &report.Pools[i]
		e.pool(p)
		if s.Entries.Problem == nil {
			e.host(p)
		}
		if s.Filters.Problem == nil {
			e.filters(p)
		}
		e.inMesh(p)
		e.readings(p)
	}
	for _, problem := range []*cluster.Problem{s.Entries.Problem, s.Filters.Problem} {
		if problem != nil && problem.Cause != cluster.NotInstalled {
			e.unread("mesh-objects", "the controller's objects", problem)
		}
	}
}

// namespaces checks that namespaces with pools are in the ambient mesh, and that Istio injects no sidecars there.
func (e *examination) namespaces() {
	s := e.Snapshot
	if s.Namespaces.Problem != nil {
		e.unread("namespaces", "namespaces", s.Namespaces.Problem)
	}
	for _, ns := range s.Namespaces.Items {
		mode := ns.Labels["istio.io/dataplane-mode"]
		label := fmt.Sprintf("kubectl label namespace %s istio.io/dataplane-mode=ambient", ns.Name)
		switch {
		case ns.Labels["istio-injection"] == "enabled" && mode != "ambient":
			e.add("namespace", Failed, fmt.Sprintf("%s istio-injection- && kubectl rollout restart deployment -n %s", label, ns.Name),
				"namespace %s has sidecars and no ambient mode: calls from sidecars bypass waypoints and are not picked", ns.Name)
		case mode != "ambient" && !e.ambientPods(ns.Name):
			e.add("namespace", Failed, label, "namespace %s is not in the ambient mesh", ns.Name)
		default:
			e.add("namespace", OK, "", "namespace %s is in the ambient mesh", ns.Name)
		}
	}
}

// ambientPods reports whether all pods of pools in a namespace are in the mesh by labels of their own.
func (e *examination) ambientPods(namespace string) bool {
	any := false
	for _, api := range e.Snapshot.Pools.Items {
		for _, pod := range e.podsOf(api) {
			if api.Namespace == namespace && !status.InMesh(pod) {
				return false
			}
			any = true
		}
	}
	return any
}

func (e *examination) podsOf(api *inferencev1.InferencePool) []*corev1.Pod {
	p, _ := pool.FromAPI(api) // another check reports errors
	return slices.DeleteFunc(slices.Clone(e.Snapshot.Pods.Items), func(pod *corev1.Pod) bool {
		return pod.Namespace != api.Namespace || !p.Selects(pod.Labels)
	})
}

// pool makes a check of each finding of package status: the controller's verdict, the waypoint, the picker, the pods.
func (e *examination) pool(p *status.Pool) {
	name := p.Namespace + "/" + p.Name
	if len(p.Findings) == 0 && (p.State == status.Picking || p.State == status.NotCalled) {
		e.add("pool", OK, "", "pool %s: %s%s, %d of %d pods ready", name, p.StateText(), p.By(), p.ReadyPods, len(p.Pods))
		return
	}
	if len(p.Findings) == 0 {
		e.add("pool", Unknown, "kubectl inference status "+p.Name+" -n "+p.Namespace, "pool %s: %s", name, p.State)
	}
	result := Failed
	if p.Served {
		result = Warning
	}
	for _, f := range p.Findings {
		e.add("pool", result, f.Next, "pool %s: %s", name, strings.TrimSuffix(f.What, "."))
	}
}

// Istio's conditions in the status of its objects.
const (
	waypointBound   = "istio.io/WaypointBound"
	waypointRefused = "istio.io/WaypointAccepted"
)

// host checks that istiod has given the pool's ServiceEntry an address and has bound it to its waypoint.
func (e *examination) host(p *status.Pool) {
	entry := e.entryOf(p)
	if entry == nil || len(p.Waypoints) == 0 {
		return // the check of the pool reports this
	}
	name := entry.Namespace + "/" + entry.Name
	next := fmt.Sprintf("kubectl get serviceentry %s -n %s -o yaml", entry.Name, entry.Namespace)
	for _, c := range entry.Status.GetConditions() {
		if (c.GetType() == waypointBound || c.GetType() == waypointRefused) && c.GetStatus() != "True" {
			e.add("host", Failed, next, "istiod does not bind ServiceEntry %s to its waypoint: %s", name, c.GetMessage())
			return
		}
	}
	if len(entry.Status.GetAddresses()) == 0 {
		e.add("host", Failed, next, "istiod has given ServiceEntry %s no address, so the pool cannot be called", name)
		return
	}
	e.add("host", OK, "", "host %s has an address and is bound to its waypoint", strings.Join(entry.Spec.GetHosts(), ", "))
}

func (e *examination) entryOf(p *status.Pool) *networkingv1.ServiceEntry {
	for _, o := range e.Snapshot.Entries.Items {
		if owner, ours := apply.Owner(o); ours && owner == (types.NamespacedName{Namespace: p.Namespace, Name: p.Name}) {
			return o
		}
	}
	return nil
}

// filters checks that an EnvoyFilter exists for every waypoint that accepted the pool. No object's status says whether
// Envoy accepts the EnvoyFilter: see rejects.
func (e *examination) filters(p *status.Pool) {
	at := map[string]bool{}
	for _, f := range e.Snapshot.Filters.Items {
		if owner, ours := apply.Owner(f); ours && owner == (types.NamespacedName{Namespace: p.Namespace, Name: p.Name}) {
			for _, target := range f.Spec.GetTargetRefs() {
				at[f.Namespace+"/"+target.GetName()] = true
			}
		}
	}
	for _, c := range p.Conditions {
		if c.Type != string(inferencev1.InferencePoolConditionAccepted) || c.Status != "True" {
			continue
		}
		if !at[c.Waypoint] {
			e.add("envoyfilter", Failed, fmt.Sprintf("kubectl logs -n %s deployment/%s", e.Snapshot.SystemNamespace, cluster.Controller),
				"pool %s/%s has no EnvoyFilter at waypoint %s", p.Namespace, p.Name, c.Waypoint)
			continue
		}
		e.add("envoyfilter", OK, "", "pool %s/%s has its EnvoyFilter at waypoint %s", p.Namespace, p.Name, c.Waypoint)
	}
}

// inMesh warns of pods outside the mesh, which calls reach without mTLS.
func (e *examination) inMesh(p *status.Pool) {
	var outside []string
	for _, pod := range p.Pods {
		if pod.Ready && !pod.InMesh {
			outside = append(outside, pod.Name)
		}
	}
	if len(outside) > 0 {
		e.add("pods-in-mesh", Warning, fmt.Sprintf("kubectl label namespace %s istio.io/dataplane-mode=ambient", p.Namespace),
			"%d of %d pods of pool %s/%s are outside the mesh, and calls reach them without mTLS: %s", len(outside), len(p.Pods), p.Namespace, p.Name, some(outside))
		return
	}
	if p.ReadyPods > 0 {
		e.add("pods-in-mesh", OK, "", "the pods of pool %s/%s are in the mesh", p.Namespace, p.Name)
	}
}

// readingsTooOld is the age, in seconds, of a picker's last reading of a model server's metrics from which the picker
// counts as unable to read them. It normally reads several times a second.
const readingsTooOld = 10

// readings checks in the pickers' state that they can read the metrics of the pool's model servers.
func (e *examination) readings(p *status.Pool) {
	name := p.Namespace + "/" + p.Name
	if p.Picker == nil || !p.Picker.Ours || p.ReadyPods == 0 {
		return
	}
	unread, read := map[string]bool{}, 0
	var reason error
	for _, picker := range e.Snapshot.Answers {
		if err := cmp.Or(errorText(picker.Err), errorText(picker.StateErr)); err != "" {
			reason = fmt.Errorf("%s", err)
			continue
		}
		for _, known := range picker.State.Pools {
			if known.Name != name {
				continue
			}
			for _, endpoint := range known.Endpoints {
				if !endpoint.Ready {
					continue
				}
				read++
				if endpoint.Reading == nil || endpoint.Reading.Age > readingsTooOld {
					unread[cmp.Or(endpoint.Name, endpoint.Address)] = true
				}
			}
		}
	}
	switch {
	case len(unread) > 0:
		e.add("metrics", Failed, "make sure that each target port of the pool serves /metrics, and that no NetworkPolicy or AuthorizationPolicy keeps the picker away",
			"pool %s: the picker cannot read the metrics of %d endpoints: %s", name, len(unread), some(slices.Sorted(maps.Keys(unread))))
	case read > 0:
		e.add("metrics", OK, "", "pool %s: the picker reads the metrics of all endpoints", name)
	case reason != nil:
		e.add("metrics", Unknown, "", "pool %s: whether metrics can be read is not known: %v", name, reason)
	case len(e.Snapshot.Answers) > 0:
		e.add("metrics", Failed, fmt.Sprintf("kubectl logs -n %s deployment/inference-picker", e.Snapshot.SystemNamespace), "pool %s: the picker knows none of its endpoints", name)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func some(names []string) string {
	if len(names) <= maxNamed {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), len(names)-maxNamed)
}
