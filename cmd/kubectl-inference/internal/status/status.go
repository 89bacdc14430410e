// Package status judges how InferencePools are served, and says what is wrong and what to do next. It must not read a
// cluster: it is pure and judges a snapshot.
package status

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"istio.io/api/label"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Report has the judgements on some pools.
type Report struct {
	Pools []Pool `json:"pools"`
	// Unread names what could not be read, and so is not judged.
	Unread []Finding `json:"couldNotRead,omitempty"`

	// Detail says that the report is for a single pool, and shows all details.
	Detail bool `json:"-"`
}

// State says whether calls to a pool are served and picked.
type State string

// The states.
const (
	Picking    State = "picking"         // a picker picks the endpoint of each call, by the waypoint's counters
	NotCalled  State = "not called yet"  // all is ready, and no call has come
	NotPicking State = "serving blindly" // calls are served without a pick
	NotServing State = "not serving"
	Unknown    State = "unknown"
)

// Pool is one pool.
type Pool struct {
	Namespace   string           `json:"namespace"`
	Name        string           `json:"name"`
	State       State            `json:"state"`
	StateDetail string           `json:"stateDetail,omitempty"`
	Hosts       []string         `json:"hosts,omitempty"`
	Waypoints   []Waypoint       `json:"waypoints,omitempty"`
	Picker      *Picker          `json:"picker,omitempty"`
	FailureMode pool.FailureMode `json:"failureMode"`
	Pods        []Pod            `json:"pods,omitempty"`
	ReadyPods   int              `json:"readyPods"`
	Conditions  []Condition      `json:"conditions,omitempty"`
	Findings    []Finding        `json:"findings,omitempty"`

	// Served says that calls are served, and that no sign shows unpicked calls. All findings are then only warnings.
	Served bool `json:"-"`
}

// Waypoint is a waypoint that a pool is bound to.
type Waypoint struct {
	Name       string `json:"name"` // namespace/name
	Programmed bool   `json:"programmed"`
	Pods       int    `json:"pods"`
	ReadyPods  int    `json:"readyPods"`
}

// Picker is the picker of a pool.
type Picker struct {
	Service   string `json:"service"` // namespace/name:port
	Ours      bool   `json:"ours"`
	Pods      int    `json:"pods"`
	ReadyPods int    `json:"readyPods"`
	// Replicas are its pods, as far as they were asked.
	Replicas []Replica `json:"replicas,omitempty"`
}

// Pod is a pod of a pool.
type Pod struct {
	Name    string `json:"name"`
	Address string `json:"address,omitempty"`
	Ready   bool   `json:"ready"`
	InMesh  bool   `json:"inMesh"`
}

// Condition is a condition that the controller reports for a waypoint.
type Condition struct {
	Waypoint string `json:"waypoint"` // namespace/name
	Type     string `json:"type"`
	Status   string `json:"status"`
	Reason   string `json:"reason"`
	Message  string `json:"message"`
}

// Finding is a problem, and the command or action to try next.
type Finding struct {
	What string `json:"what"`
	Next string `json:"next,omitempty"`
}

// Of judges all pools of a snapshot.
func Of(s *cluster.Snapshot) Report {
	out := Report{Pools: []Pool{}}
	for _, p := range s.Pools.Items {
		out.Pools = append(out.Pools, judge(s, p))
	}
	slices.SortFunc(out.Pools, func(a, b Pool) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, p := range s.Problems() {
		out.Unread = append(out.Unread, Finding{p.Text, p.Next()})
	}
	return out
}

// judgement is the state of judging one pool.
type judgement struct {
	*cluster.Snapshot
	api *inferencev1.InferencePool
	out Pool
}

func judge(s *cluster.Snapshot, api *inferencev1.InferencePool) Pool {
	j := &judgement{s, api, Pool{Namespace: api.Namespace, Name: api.Name, State: Picking}}
	p, err := pool.FromAPI(api)
	j.out.FailureMode = p.FailureMode
	if err != nil {
		j.worst(NotServing)
		j.say(sentence(err.Error()), "kubectl edit inferencepool "+api.Name+" -n "+api.Namespace)
	}
	j.conditions()
	j.waypoints()
	j.entry()
	j.picker()
	j.replicas()
	j.pods(p)
	j.out.Served = j.out.State == Picking
	j.picked()
	return j.out
}

func (j *judgement) say(what, next string) {
	j.out.Findings = append(j.out.Findings, Finding{what, next})
}

// worst sets the state to s if s is worse.
func (j *judgement) worst(s State) {
	order := []State{Picking, NotCalled, NotPicking, Unknown, NotServing}
	if slices.Index(order, s) > slices.Index(order, j.out.State) {
		j.out.State = s
	}
}

// conditions reads the controller's conditions, and adds findings for conditions that are false or out of date.
func (j *judgement) conditions() {
	stale := false
	for _, parent := range j.api.Status.Parents {
		if parent.ControllerName != poolstatus.ControllerName {
			continue
		}
		waypoint := string(parent.ParentRef.Namespace) + "/" + string(parent.ParentRef.Name)
		for _, c := range parent.Conditions {
			j.out.Conditions = append(j.out.Conditions, Condition{waypoint, c.Type, string(c.Status), c.Reason, c.Message})
			stale = stale || c.ObservedGeneration < j.api.Generation
			switch {
			case c.Type == poolstatus.Picked: // picked handles it
			case c.Type == poolstatus.IneffectiveConfig:
				j.say(sentence(c.Message), "docs/routes.md says under \"What has no effect\" what to write instead")
			case c.Type == poolstatus.PartiallyRefused:
				j.say("The pool is not served everywhere: "+c.Message, "claim hosts that are free, and annotate Services that can lead to the pool")
			case c.Status != metav1.ConditionTrue:
				j.refused(parent, c)
			}
		}
	}
	if stale {
		j.say("The controller has not seen the pool's last change.", j.controllerNext())
	}
}

// picked judges whether calls are picked at the waypoints that serve the pool.
func (j *judgement) picked() {
	called, idle := false, true
	for _, parent := range j.api.Status.Parents {
		if parent.ControllerName != poolstatus.ControllerName ||
			!meta.IsStatusConditionTrue(parent.Conditions, string(inferencev1.InferencePoolConditionAccepted)) {
			continue
		}
		c := meta.FindStatusCondition(parent.Conditions, poolstatus.Picked)
		switch {
		case c == nil:
			j.worst(Unknown)
			j.unwatched(parent)
		case c.Reason == string(poolstatus.ReasonUnpicked):
			j.out.Served = false
			j.unpicked()
			j.say(sentence(fmt.Sprintf("at waypoint %s/%s %s", parent.ParentRef.Namespace, parent.ParentRef.Name, c.Message)), j.pickerNext())
		case c.Reason == string(poolstatus.ReasonNotCalled):
		case c.Status == metav1.ConditionTrue:
			called = true
			idle = idle && c.Reason == string(poolstatus.ReasonIdle)
		default:
			j.worst(Unknown)
			j.say(sentence(fmt.Sprintf("at waypoint %s/%s %s", parent.ParentRef.Namespace, parent.ParentRef.Name, c.Message)),
				"docs/troubleshooting.md says under \"Whether calls are picked\" what to look at")
		}
	}
	switch {
	case len(j.out.Conditions) == 0: // waypoints has a finding about the missing status
		j.worst(Unknown)
	case !called:
		j.worst(NotCalled)
	case idle && j.out.State == Picking:
		j.out.StateDetail = "last called more than 10 min ago"
	}
}

// unwatched adds a finding about why it is unknown whether calls are picked.
func (j *judgement) unwatched(parent inferencev1.ParentStatus) {
	if j.Unwatched {
		j.say("The controller does not read waypoints' counters: it runs with --watch-waypoints=0.", "give the controller --watch-waypoints=5s")
		return
	}
	j.say(fmt.Sprintf("Whether calls are picked at waypoint %s/%s is not known: the controller has just begun to watch it, or is of an older version.",
		parent.ParentRef.Namespace, parent.ParentRef.Name), j.controllerNext())
}

// pickerNext is where to look if waypoints do not reach an existing picker.
func (j *judgement) pickerNext() string {
	at, named := translate.PickerOf(j.api, j.Settings)
	if !named {
		return j.controllerNext()
	}
	return "kubectl get pods,networkpolicies,authorizationpolicies -n " + at.Service.Namespace
}

// refused adds a finding about a condition that is not true. Only Accepted keeps a pool from being served; without a
// picker, the failure mode decides each call.
func (j *judgement) refused(parent inferencev1.ParentStatus, c metav1.Condition) {
	next := fmt.Sprintf("kubectl edit inferencepool %s -n %s", j.api.Name, j.api.Namespace)
	switch c.Reason {
	case string(inferencev1.InferencePoolReasonNotSupportedByParent):
		next = fmt.Sprintf("kubectl get gateway %s -n %s -o yaml", parent.ParentRef.Name, parent.ParentRef.Namespace)
		if cluster.Find(j.Gateways, string(parent.ParentRef.Namespace), string(parent.ParentRef.Name)) == nil && j.Gateways.Problem == nil {
			next = fmt.Sprintf("istioctl waypoint apply --name %s -n %s", parent.ParentRef.Name, parent.ParentRef.Namespace)
		}
	case string(inferencev1.InferencePoolReasonInvalidExtensionRef):
		if j.api.Spec.EndpointPickerRef == nil { // the controller's default picker is missing
			next = "install the picker, or correct the controller's --default-picker"
		}
	case string(inferencev1.InferencePoolReasonHTTPRouteNotAccepted):
		next = "kubectl get httproutes -A -o yaml"
	}
	if c.Type == string(inferencev1.InferencePoolConditionAccepted) {
		j.worst(NotServing)
	} else {
		j.unpicked()
	}
	j.say(sentence(c.Message), next)
}

// sentence turns a condition's message into a sentence.
func sentence(message string) string {
	first, size := utf8.DecodeRuneInString(message)
	return string(unicode.ToUpper(first)) + strings.TrimSuffix(message[size:], ".") + "."
}

// unpicked sets the state for a pool without an answering picker, by its failure mode.
func (j *judgement) unpicked() {
	if j.out.FailureMode == pool.FailClose {
		j.worst(NotServing)
		return
	}
	j.worst(NotPicking)
}

func (j *judgement) waypoints() {
	names := map[types.NamespacedName]bool{}
	for _, parent := range j.api.Status.Parents {
		if parent.ControllerName == poolstatus.ControllerName {
			names[types.NamespacedName{Namespace: string(parent.ParentRef.Namespace), Name: string(parent.ParentRef.Name)}] = true
		}
	}
	bound, is := translate.WaypointOf(j.api, cluster.Find(j.Namespaces, "", j.api.Namespace))
	if is {
		names[bound] = true
	}
	switch {
	case len(names) == 0 && j.Namespaces.Problem != nil:
		j.worst(Unknown)
	case len(names) == 0:
		j.worst(NotServing)
		j.say(fmt.Sprintf("No waypoint serves the pool: namespace %s is bound to none.", j.api.Namespace),
			fmt.Sprintf("kubectl label namespace %s %s=inference", j.api.Namespace, pool.WaypointLabel))
	case len(j.out.Conditions) == 0 && j.ownEntry() != nil: // whether calls are picked is not known either
		j.say("The controller serves the pool, but its entry is gone from the pool's status. istiod removes the entry if it runs with "+
			"ENABLE_GATEWAY_API_INFERENCE_EXTENSION=true.", "kubectl get events -n "+j.api.Namespace)
	case len(j.out.Conditions) == 0:
		j.worst(NotServing)
		j.say("The controller has written no status of the pool.", j.controllerNext())
	}
	for _, name := range slices.SortedFunc(maps.Keys(names), func(a, b types.NamespacedName) int { return cmp.Compare(a.String(), b.String()) }) {
		j.waypoint(name)
	}
}

func (j *judgement) waypoint(name types.NamespacedName) {
	out := Waypoint{Name: name.String()}
	gateway := cluster.Find(j.Gateways, name.Namespace, name.Name)
	for _, p := range j.Pods.Items {
		if p.Namespace == name.Namespace && p.Labels[label.IoK8sNetworkingGatewayGatewayName.Name] == name.Name && p.DeletionTimestamp == nil {
			out.Pods++
			if pool.Serving(p) {
				out.ReadyPods++
			}
		}
	}
	if gateway != nil {
		out.Programmed = meta.IsStatusConditionTrue(gateway.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed))
	}
	j.out.Waypoints = append(j.out.Waypoints, out)
	switch {
	case gateway == nil && j.Gateways.Problem != nil:
		j.worst(Unknown)
	case gateway == nil: // the conditions report this, if the controller runs
		j.worst(NotServing)
	case !out.Programmed:
		j.worst(NotServing)
		j.say(fmt.Sprintf("Waypoint %s is not programmed: %s.", name, reasonOf(gateway)), fmt.Sprintf("kubectl describe gateway %s -n %s", name.Name, name.Namespace))
	case out.ReadyPods == 0 && j.Pods.Problem == nil:
		j.worst(NotServing)
		j.say(fmt.Sprintf("No pod of waypoint %s is ready.", name),
			fmt.Sprintf("kubectl get pods -n %s -l %s=%s", name.Namespace, label.IoK8sNetworkingGatewayGatewayName.Name, name.Name))
	}
}

func reasonOf(g *gatewayv1.Gateway) string {
	c := meta.FindStatusCondition(g.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed))
	if c == nil || c.Message == "" || c.Reason == string(gatewayv1.GatewayReasonPending) {
		return "istiod has not handled it yet"
	}
	return strings.TrimSuffix(c.Message, ".")
}

// entry reads the pool's hosts from its ServiceEntry.
func (j *judgement) entry() {
	if e := j.ownEntry(); e != nil {
		j.out.Hosts = e.Spec.GetHosts()
		return
	}
	if j.accepted() && j.Entries.Problem == nil {
		j.worst(NotServing)
		j.say("The pool's ServiceEntry is gone.", j.controllerNext())
	}
}

func (j *judgement) ownEntry() *networkingv1.ServiceEntry {
	for _, e := range j.Entries.Items {
		if owner, ours := apply.Owner(e); ours && owner.Namespace == j.api.Namespace && owner.Name == j.api.Name {
			return e
		}
	}
	return nil
}

func (j *judgement) accepted() bool {
	return slices.ContainsFunc(j.out.Conditions, func(c Condition) bool {
		return c.Type == string(inferencev1.InferencePoolConditionAccepted) && c.Status == string(metav1.ConditionTrue)
	})
}

// controllerNext is what to do if the controller does not work.
func (j *judgement) controllerNext() string {
	d := cluster.Named(j.Deployments, cluster.Controller)
	switch {
	case j.Deployments.Problem != nil:
		return "kubectl inference doctor"
	case d == nil:
		return fmt.Sprintf("install Inference Waypoint: there is no controller in namespace %s", j.SystemNamespace)
	default:
		return fmt.Sprintf("kubectl logs -n %s deployment/%s", d.Namespace, d.Name)
	}
}

func (j *judgement) picker() {
	at, named := translate.PickerOf(j.api, j.Settings)
	if !named {
		return // the conditions report this
	}
	service := cluster.Find(j.Services, at.Service.Namespace, at.Service.Name)
	out := &Picker{Service: at.String(), Ours: translate.IsOwnPicker(at, service, j.Settings)}
	j.out.Picker = out
	if service == nil || j.Services.Problem != nil || j.Pods.Problem != nil {
		return
	}
	for _, p := range j.PodsOf(service) {
		out.Pods++
		if pool.Serving(p) {
			out.ReadyPods++
		}
	}
	if out.ReadyPods == 0 && len(service.Spec.Selector) > 0 {
		j.unpicked()
		then := "calls are spread over all endpoints"
		if j.out.FailureMode == pool.FailClose {
			then = "calls are refused"
		}
		j.say(fmt.Sprintf("No picker is ready, and meanwhile %s.", then),
			fmt.Sprintf("kubectl get pods -n %s -l %s", service.Namespace, selectorText(service.Spec.Selector)))
	}
}

func (j *judgement) pods(p pool.Pool) {
	for _, pod := range j.Pods.Items {
		if pod.Namespace != j.api.Namespace || !p.Selects(pod.Labels) || pod.DeletionTimestamp != nil {
			continue
		}
		ready := pool.Serving(pod)
		j.out.Pods = append(j.out.Pods, Pod{pod.Name, pod.Status.PodIP, ready, InMesh(pod)})
		if ready {
			j.out.ReadyPods++
		}
	}
	slices.SortFunc(j.out.Pods, func(a, b Pod) int { return cmp.Compare(a.Name, b.Name) })
	show := fmt.Sprintf("kubectl get pods -n %s -l %s", j.api.Namespace, selectorText(p.Selector))
	switch {
	case j.Pods.Problem != nil:
		j.worst(Unknown)
	case len(j.out.Pods) == 0:
		j.worst(NotServing)
		j.say(fmt.Sprintf("No pod in namespace %s has the labels %s.", j.api.Namespace, selectorText(p.Selector)), "kubectl get pods -n "+j.api.Namespace+" --show-labels")
	case j.out.ReadyPods == 0:
		j.worst(NotServing)
		j.say(fmt.Sprintf("None of its %d pods is ready.", len(j.out.Pods)), show)
	case j.out.ReadyPods < len(j.out.Pods):
		j.say(fmt.Sprintf("%d of its %d pods are not ready.", len(j.out.Pods)-j.out.ReadyPods, len(j.out.Pods)), show)
	}
}

// redirection is Istio's annotation on a pod that is in the ambient mesh.
const redirection = "ambient.istio.io/redirection"

// InMesh reports whether calls to a pod go through ztunnel.
func InMesh(p *corev1.Pod) bool { return p.Annotations[redirection] == "enabled" }

func selectorText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}
