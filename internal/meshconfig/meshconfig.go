// Package meshconfig translates an InferencePool into the Istio objects by which a waypoint serves it. It is pure: all
// that it reads of a cluster comes in one Inputs value, and what it finds wrong comes out as a verdict for the pool's
// status. It reads no cluster, writes nothing, and leaves Envoy's configuration to package envoypatch.
package meshconfig

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/poolstatus"
)

// Settings are the controller's own, the same for all pools.
type Settings struct {
	// HostSuffix ends every pool's host: <pool>.<namespace>.<suffix>.
	HostSuffix string
	// ClusterDomain ends the host of every Service: <service>.<namespace>.svc.<domain>.
	ClusterDomain string
	// DefaultPicker is our picker, which serves the pools that name none. It is nil where there is none.
	DefaultPicker *ServicePort
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Service types.NamespacedName
	Port    int32
}

func (s ServicePort) String() string { return fmt.Sprintf("%s:%d", s.Service, s.Port) }

// Inputs are all that the translation of one pool reads. An object that is not in its map does not exist.
type Inputs struct {
	Pool      *inferencev1.InferencePool
	Namespace *corev1.Namespace // the pool's
	Gateways  map[types.NamespacedName]*gatewayv1.Gateway
	Services  map[types.NamespacedName]*corev1.Service
}

// Output is what the cluster should hold for one pool.
type Output struct {
	EnvoyFilters   []*networkingv1alpha3.EnvoyFilter
	ServiceEntries []*networkingv1.ServiceEntry
	// Parents is what to say in the pool's status; none where no waypoint serves the pool.
	Parents []poolstatus.Parent
	// Keep says that the pool cannot be read as it stands: what was made of it before stays, so that a slip in a
	// live pool does not take its host away.
	Keep bool
}

// Object is any of the objects that a translation makes.
type Object interface {
	metav1.Object
	runtime.Object
}

// Objects lists the output's objects in the order in which they are to be applied: the EnvoyFilters first, so that a
// host is never served without its picker.
func (o Output) Objects() []Object {
	var out []Object
	for _, f := range o.EnvoyFilters {
		out = append(out, f)
	}
	for _, s := range o.ServiceEntries {
		out = append(out, s)
	}
	return out
}

// Translate says what the cluster should hold for a pool. A pool that is bound to no waypoint gets nothing.
func Translate(in Inputs, settings Settings) Output {
	waypoint, bound := WaypointOf(in.Pool, in.Namespace)
	if !bound {
		return Output{}
	}
	parent := poolstatus.Parent{Gateway: waypoint, Accepted: poolstatus.Accepted(), ResolvedRefs: poolstatus.ResolvedRefs()}
	picker, resolved := resolvePicker(in, settings)
	parent.ResolvedRefs = resolved

	p, err := readPool(in.Pool, settings)
	switch {
	case err != nil:
		parent.Accepted = notSupported("%v", err)
		return Output{Parents: []poolstatus.Parent{parent}, Keep: true}
	case picker == nil:
		parent.Accepted = poolstatus.Verdict{
			Reason:  inferencev1.InferencePoolReasonEndpointPickerRefMissing,
			Message: "the pool names no endpoint picker, and the controller has no default one",
		}
		return Output{Parents: []poolstatus.Parent{parent}}
	}

	// A host that is bound to a waypoint that is not there yet is still a host, as a Service would be: it keeps its
	// name and address, and gets its picker when the waypoint comes.
	out := Output{ServiceEntries: []*networkingv1.ServiceEntry{serviceEntry(p, waypoint, settings)}}
	parent.Accepted = acceptedBy(in, waypoint)
	if parent.Accepted.OK() {
		filter, err := envoyFilter(p, waypoint, *picker, settings)
		if err != nil {
			parent.Accepted = notSupported("%v", err)
		} else {
			out.EnvoyFilters = append(out.EnvoyFilters, filter)
		}
	}
	out.Parents = []poolstatus.Parent{parent}
	return out
}

// readPool reads the pool and checks that its host is a name that can be looked up.
func readPool(api *inferencev1.InferencePool, settings Settings) (pool.Pool, error) {
	p, err := pool.FromAPI(api)
	// A reference that is no Service's may have no port; that is the picker's verdict and no fault in the pool.
	if err != nil && !refersElsewhere(api.Spec.EndpointPickerRef) {
		return p, err
	}
	return p, checkHost(p.Host(settings.HostSuffix))
}

func notSupported(format string, args ...any) poolstatus.Verdict {
	return poolstatus.Verdict{
		Reason:  inferencev1.InferencePoolReasonNotSupportedByParent,
		Message: fmt.Sprintf(format, args...),
	}
}
