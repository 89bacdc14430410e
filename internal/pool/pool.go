// Package pool holds an InferencePool as controller and picker both need it: its name, endpoints and failure mode.
// It holds only values made from the API types: it must not talk to a cluster or import a sibling package.
package pool

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
)

const (
	// NameHeader is the gRPC metadata key in which a waypoint names the pool ("namespace/name") when it opens
	// a stream to the picker. It is the contract between the controller and the picker.
	NameHeader = "inference-waypoint-pool"

	// SplitHeader is the gRPC metadata key that names the caller, when the pool is split. It decides then which of our pickers gets
	// the stream, in the place of the pool's name.
	SplitHeader = "inference-waypoint-caller"

	// HoldHeader is the gRPC metadata key by which a waypoint says that it waits for a pick, if the picker asks it to, and for how long a
	// call may wait: a time such as "10m0s". It is MostHold, or less where the call's route bounds the call.
	HoldHeader = "inference-waypoint-holds"

	// TokenHeader is the gRPC metadata key of the token by which a waypoint proves that it serves the pool.
	TokenHeader = "inference-waypoint-token"

	// UsageHeader names the pool, instead of NameHeader, on a stream that needs no pick. Such a stream carries the answer
	// to a call, so that the picker counts the tokens in the answer's usage.
	UsageHeader = "inference-waypoint-usage"

	// CallKey is the key, in the metadata of PickNamespace, of the number that the picker gives to a call.
	// The waypoint sends this number back when it reports a call as broken off.
	CallKey = "inference-waypoint-call"

	// PickNamespace is the metadata namespace of a pick in the Endpoint Picker Protocol 1.0.0.
	PickNamespace = "envoy.lb"
)

// CallerAttribute is the attribute of a call that has the caller's identity as the waypoint has proven it by mTLS: a SPIFFE ID. The
// waypoint's HBONE listener stores it.
const CallerAttribute = "filter_state['io.istio.peer_principal']"

// MostHold is how long a waypoint waits for the pick of a call that the picker holds: longer than any setting lets a call wait.
const MostHold = 10 * time.Minute

// FailureMode says whether a call is served or refused when the endpoint picker does not answer.
type FailureMode string

const (
	// FailOpen lets the waypoint choose any endpoint of the pool.
	FailOpen FailureMode = "FailOpen"
	// FailClose refuses the call.
	FailClose FailureMode = "FailClose"
)

// PickerRef names the Service of an endpoint picker, in the pool's own namespace. It is zero where the pool's reference
// is not to a Service, so that a waypoint has no picker to ask.
type PickerRef struct {
	Service string
	Port    int32
}

// Pool is one InferencePool.
type Pool struct {
	Name types.NamespacedName
	// Selector matches the labels of the pool's pods. An empty one matches no pod.
	Selector map[string]string
	// TargetPorts are in the order of the spec, without repeats: each port of each pod is one endpoint.
	TargetPorts []int32
	// H2C says that the endpoints speak cleartext HTTP/2.
	H2C bool
	// Picker is nil where the pool names no endpoint picker, so that our picker serves the pool.
	Picker      *PickerRef
	FailureMode FailureMode
}

// FromAPI reads an InferencePool. It fails only for an object that the CRD does not admit, or for a wrong failure mode.
func FromAPI(p *inferencev1.InferencePool) (Pool, error) {
	out := Pool{
		Name:        types.NamespacedName{Namespace: p.Namespace, Name: p.Name},
		Selector:    make(map[string]string, len(p.Spec.Selector.MatchLabels)),
		H2C:         p.Spec.AppProtocol == inferencev1.AppProtocolH2C,
		FailureMode: FailOpen,
	}
	for k, v := range p.Spec.Selector.MatchLabels {
		out.Selector[string(k)] = string(v)
	}
	for _, port := range p.Spec.TargetPorts {
		if !slices.Contains(out.TargetPorts, int32(port.Number)) {
			out.TargetPorts = append(out.TargetPorts, int32(port.Number))
		}
	}
	if len(out.TargetPorts) == 0 {
		return out, fmt.Errorf("pool %s: spec.targetPorts is empty", out.Name)
	}
	ref := p.Spec.EndpointPickerRef
	if ref == nil {
		return out, out.readFailureMode(p.Annotations[FailureModeAnnotation])
	}
	out.FailureMode = FailureMode(ref.FailureMode)
	if out.FailureMode == "" {
		out.FailureMode = FailClose
	}
	out.Picker = &PickerRef{}
	if !isService(ref) {
		return out, nil
	}
	if ref.Port == nil {
		return out, fmt.Errorf("pool %s: spec.endpointPickerRef.port is missing", out.Name)
	}
	*out.Picker = PickerRef{Service: string(ref.Name), Port: int32(ref.Port.Number)}
	return out, nil
}

func isService(ref *inferencev1.EndpointPickerRef) bool {
	return (ref.Kind == "" || ref.Kind == "Service") && (ref.Group == nil || *ref.Group == "")
}

func (p *Pool) readFailureMode(value string) error {
	switch FailureMode(value) {
	case "":
	case FailOpen, FailClose:
		p.FailureMode = FailureMode(value)
	default:
		return fmt.Errorf("pool %s: annotation %s is %q: want FailOpen or FailClose", p.Name, FailureModeAnnotation, value)
	}
	return nil
}

// Selects reports whether a pod with these labels belongs to the pool.
func (p Pool) Selects(labels map[string]string) bool {
	for k, v := range p.Selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return len(p.Selector) > 0
}

// Endpoint is one port of one pod, which a picker can pick.
type Endpoint struct {
	Address netip.AddrPort
	// Pod is the pod's name, for people; it is empty for endpoints that are not pods.
	Pod string
	// Process identifies the server process among earlier and later ones at the same address: the pod's UID, and the
	// number of its containers' restarts. It is empty where the pod is not known.
	Process string
}

// processOf makes an Endpoint's Process from its pod.
func processOf(pod *corev1.Pod) string {
	restarts := 0
	for _, c := range pod.Status.ContainerStatuses {
		restarts += int(c.RestartCount)
	}
	return string(pod.UID) + "/" + strconv.Itoa(restarts)
}

// Endpoints lists the endpoints of the pods that the pool selects and that can take a call now, in the order of their
// addresses. It leaves out pods of other namespaces.
func (p Pool) Endpoints(pods []*corev1.Pod) []Endpoint {
	var out []Endpoint
	for _, pod := range pods {
		if pod.Namespace != p.Name.Namespace || !p.Selects(pod.Labels) || !Serving(pod) {
			continue
		}
		addr, err := netip.ParseAddr(pod.Status.PodIP)
		if err != nil {
			continue // no address yet
		}
		for _, port := range p.TargetPorts {
			out = append(out, Endpoint{Address: netip.AddrPortFrom(addr, uint16(port)), Pod: pod.Name, Process: processOf(pod)})
		}
	}
	// Pods on the host network may share an address: the list has one endpoint for each address, always the same.
	slices.SortFunc(out, func(a, b Endpoint) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Process, b.Process))
	})
	return slices.CompactFunc(out, func(a, b Endpoint) bool { return a.Address == b.Address })
}

// Serving reports whether a pod can take a new call: it is ready and is not being deleted.
func Serving(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// The greatest lengths that DNS allows, in characters, for a label of a host and for a whole host.
const (
	maxLabel = 63
	maxHost  = 253
)

// Host is the pool's own host name in the mesh: <pool>.<namespace>.<suffix>. If the pool's name is too long for DNS, the
// first label has the head of the name and a hash of it. A pool's name may have 253 characters, and a DNS label 63.
func (p Pool) Host(suffix string) string {
	host := strings.Join([]string{p.Name.Name, p.Name.Namespace, suffix}, ".")
	if len(host) <= maxHost && !slices.ContainsFunc(strings.Split(p.Name.Name, "."), func(l string) bool { return len(l) > maxLabel }) {
		return host
	}
	sum := sha256.Sum256([]byte(p.Name.Name))
	hash := "-" + hex.EncodeToString(sum[:5])
	head := strings.ReplaceAll(p.Name.Name, ".", "-")
	head = strings.TrimRight(head[:min(len(head), maxLabel-len(hash))], "-")
	return strings.Join([]string{head + hash, p.Name.Namespace, suffix}, ".")
}

// CounterName identifies a pool in the names of a waypoint's counters: CounterNameLength letters a to z and digits 2 to 7,
// which no metrics system rewrites. It is a hash of 80 bits, so that nobody can choose a pool's name to collide with
// another pool's.
func CounterName(name types.NamespacedName) string {
	sum := sha256.Sum256([]byte(name.String()))
	return counterNames.EncodeToString(sum[:CounterNameLength*5/8])
}

// CounterNameLength is the length of a CounterName in characters, each of which holds five bits.
const CounterNameLength = 16

var counterNames = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567")

// Equal reports whether two pools are equal in all fields.
func (p Pool) Equal(o Pool) bool {
	samePicker := p.Picker == nil && o.Picker == nil || p.Picker != nil && o.Picker != nil && *p.Picker == *o.Picker
	return samePicker && p.Name == o.Name && p.H2C == o.H2C && p.FailureMode == o.FailureMode &&
		maps.Equal(p.Selector, o.Selector) && slices.Equal(p.TargetPorts, o.TargetPorts)
}
