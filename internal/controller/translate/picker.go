package translate

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// picker is the endpoint picker of a pool.
type picker struct {
	at ServicePort
	// ours says that the picker is this project's. Waypoints ask it in mode Buffered, and any other picker in mode Duplex.
	ours bool
	// missing says that the Service cannot be used. The waypoint then asks no picker, and the pool's failure mode decides
	// each call.
	missing bool
}

// PickerOf names the Service of a pool's picker, which may not exist. It is false if the pool names no picker and there is
// no default, or if the pool's reference is not to a Service.
func PickerOf(api *inferencev1.InferencePool, settings Settings) (ServicePort, bool) {
	p, _ := pool.FromAPI(api) // the picker counts even if something else in the pool is wrong
	return pickerOf(p, settings)
}

func pickerOf(p pool.Pool, settings Settings) (ServicePort, bool) {
	switch {
	case p.Picker == nil && settings.DefaultPicker == nil:
		return ServicePort{}, false
	case p.Picker == nil:
		return *settings.DefaultPicker, true
	}
	return ServicePort{
		Service: types.NamespacedName{Namespace: p.Name.Namespace, Name: p.Picker.Service},
		Port:    p.Picker.Port,
	}, p.Picker.Service != ""
}

// resolvePicker finds a pool's picker and reports what is wrong with it. The picker is nil if the pool names none and
// there is no default.
func (t translator) resolvePicker(p pool.Pool) (*picker, poolstatus.Verdict) {
	at, named := pickerOf(p, t.settings)
	if !named {
		if p.Picker == nil {
			return nil, poolstatus.Verdict{}
		}
		return &picker{missing: true}, invalidRef("spec.endpointPickerRef names no port of a Service")
	}
	service := t.Service(at.Service)
	if problem := servicePortProblem(service, at); problem != "" {
		return &picker{at: at, missing: true}, invalidRef("the endpoint picker's " + problem)
	}
	out := &picker{at: at, ours: IsOwnPicker(at, service, t.settings)}
	return out, poolstatus.ResolvedRefs(out.String())
}

// IsOwnPicker reports whether a picker is this project's. The Service may be nil.
func IsOwnPicker(at ServicePort, service *corev1.Service, settings Settings) bool {
	return settings.DefaultPicker != nil && at == *settings.DefaultPicker ||
		service != nil && service.Annotations[pool.OwnPickerAnnotation] == "true"
}

// String describes, for a pool's status and EnvoyFilter, which picker the waypoint asks, and how.
func (p picker) String() string {
	switch {
	case p.missing:
		return "nobody"
	case p.ours:
		return p.at.String() + ", Inference Waypoint's own: asked once for each call, with the head of a body that may carry a prompt"
	default:
		return p.at.String() + ", by the Endpoint Picker Protocol: both bodies of a call that may carry a prompt pass through it, and it sees only the headers of any other"
	}
}

func servicePortProblem(service *corev1.Service, at ServicePort) string {
	if service == nil {
		return fmt.Sprintf("Service %s does not exist", at.Service)
	}
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return fmt.Sprintf("Service %s is of type ExternalName, which must not be used", at.Service)
	}
	if !slices.ContainsFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == at.Port }) {
		return fmt.Sprintf("Service %s has no port %d", at.Service, at.Port)
	}
	return ""
}

func invalidRef(message string) poolstatus.Verdict {
	return poolstatus.Verdict{Reason: inferencev1.InferencePoolReasonInvalidExtensionRef, Message: message}
}

// callerAddress is Envoy's format string for the IP address that a call's connection comes from: its pod's. A pod's conversations go
// to one picker by it. Istio notes the address where a waypoint ends the tunnel. Envoy's own DOWNSTREAM_REMOTE_ADDRESS is what
// callers write into X-Forwarded-For, and the direct one is that of the waypoint's internal listener.
const callerAddress = "%FILTER_STATE(envoy.filters.listener.original_dst.remote_ip:FIELD:ip)%"

// pickerSettings makes the settings with which a waypoint asks a pool's picker.
func (t translator) pickerSettings(r readPool) envoypatch.Picker {
	out := envoypatch.Picker{Protocol: envoypatch.Duplex, FailOpen: r.FailureMode == pool.FailOpen}
	if !r.picker.missing {
		out.Host, out.Port = t.serviceHost(r.picker.at.Service), uint32(r.picker.at.Port)
	}
	if r.picker.ours {
		out.Protocol = envoypatch.Buffered
		out.Metadata = t.opening(pool.NameHeader, r)
		out.Metadata[pool.HoldHeader] = pool.MostHold.String()
		if settings, _ := picksettings.Parse(t.Pool(r.Name).Annotations); settings.Split {
			out.Metadata[pool.SplitHeader] = callerAddress
		}
	}
	return out
}

// shownTo is the picker that gets copies of the answers of a pool's endpoints: our picker if the pool asks for token
// usage, else nil.
func (t translator) shownTo(r readPool) *envoypatch.Picker {
	settings, _ := picksettings.Parse(t.Pool(r.Name).Annotations) // package reconcile reports errors in events
	if !settings.Usage || !r.picker.ours || r.picker.missing {
		return nil
	}
	return &envoypatch.Picker{
		Host:     t.serviceHost(r.picker.at.Service),
		Port:     uint32(r.picker.at.Port),
		Metadata: t.opening(pool.UsageHeader, r),
	}
}

// opening is the gRPC metadata of a stream to our picker: the pool's name, under the key for the stream's purpose, and the
// pool's token. Only the default picker gets the token: an instance that a pool names itself has no use for it.
func (t translator) opening(key string, r readPool) map[string]string {
	out := map[string]string{key: r.Name.String()}
	if t.settings.DefaultPicker != nil && r.picker.at == *t.settings.DefaultPicker {
		t.addToken(out, r)
	}
	return out
}

func (t translator) addToken(to map[string]string, r readPool) {
	if t.settings.Key != nil {
		to[pool.TokenHeader] = t.settings.Key.Token(r.Name.String())
	}
}

// brokenOffReceiver is the picker that gets the reports of broken-off calls: the default picker, whatever picker the pool asks. It depends
// only on the pool's name and the controller's settings, as it is in the filter chain, which no user's edit may change.
// It is nil if there is no default picker.
func (t translator) brokenOffReceiver(r readPool) *envoypatch.Picker {
	if t.settings.DefaultPicker == nil {
		return nil
	}
	out := &envoypatch.Picker{
		Host:     t.serviceHost(t.settings.DefaultPicker.Service),
		Port:     uint32(t.settings.DefaultPicker.Port),
		Metadata: map[string]string{pool.NameHeader: r.Name.String()},
	}
	t.addToken(out.Metadata, r)
	return out
}
