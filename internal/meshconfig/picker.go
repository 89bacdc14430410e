package meshconfig

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/poolstatus"
)

// picker is who chooses for a pool.
type picker struct {
	at ServicePort
	// ours is asked the cheap way and serves many pools; any other picker is asked as the protocol says.
	ours bool
	// missing says that the Service cannot be used. The waypoint then asks nobody, and each call ends as the pool's
	// failure mode says.
	missing bool
}

// PickerOf names the Service of the picker that a pool asks for, which need not exist. It is false where the pool names
// none and there is no default, or where what it names is no Service.
func PickerOf(p *inferencev1.InferencePool, settings Settings) (ServicePort, bool) {
	ref := p.Spec.EndpointPickerRef
	switch {
	case ref == nil && settings.DefaultPicker == nil:
		return ServicePort{}, false
	case ref == nil:
		return *settings.DefaultPicker, true
	case refersElsewhere(ref) || ref.Port == nil:
		return ServicePort{}, false
	}
	return ServicePort{
		Service: types.NamespacedName{Namespace: p.Namespace, Name: string(ref.Name)},
		Port:    int32(ref.Port.Number),
	}, true
}

// refersElsewhere reports whether a reference names something other than a Service.
func refersElsewhere(ref *inferencev1.EndpointPickerRef) bool {
	return ref != nil && (ref.Kind != "" && ref.Kind != "Service" || ref.Group != nil && *ref.Group != "")
}

// resolvePicker finds a pool's picker and says what is wrong with it. It is nil where the pool asks for none and there
// is no default.
func resolvePicker(in Inputs, settings Settings) (*picker, poolstatus.Verdict) {
	at, named := PickerOf(in.Pool, settings)
	if !named {
		if in.Pool.Spec.EndpointPickerRef == nil {
			return nil, poolstatus.ResolvedRefs()
		}
		return &picker{missing: true}, invalidRef("spec.endpointPickerRef names no port of a Service")
	}
	out := &picker{at: at, ours: settings.DefaultPicker != nil && at == *settings.DefaultPicker}
	if problem := servicePortProblem(in.Services[at.Service], at); problem != "" {
		out.missing = true
		return out, invalidRef(problem)
	}
	return out, poolstatus.ResolvedRefs()
}

func servicePortProblem(service *corev1.Service, at ServicePort) string {
	if service == nil {
		return fmt.Sprintf("the endpoint picker's Service %s does not exist", at.Service)
	}
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return fmt.Sprintf("the endpoint picker's Service %s is of type ExternalName, which must not be used", at.Service)
	}
	if !slices.ContainsFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == at.Port }) {
		return fmt.Sprintf("the endpoint picker's Service %s has no port %d", at.Service, at.Port)
	}
	return ""
}

func invalidRef(message string) poolstatus.Verdict {
	return poolstatus.Verdict{Reason: inferencev1.InferencePoolReasonInvalidExtensionRef, Message: message}
}

// host is the picker's name in the mesh.
func (p picker) host(settings Settings) string {
	return fmt.Sprintf("%s.%s.svc.%s", p.at.Service.Name, p.at.Service.Namespace, settings.ClusterDomain)
}
