// Package envoypatch builds the patches of an EnvoyFilter: the HTTP filters of a host's filter chain, the cluster of a
// pool's endpoints, and the virtual host that routes to the cluster. It must know nothing of Kubernetes: callers pass
// names and settings as plain values. It is the only package that knows Envoy's configuration messages. It validates each
// message before packing it, so that a mistake fails here and not in a proxy.
package envoypatch

import (
	"fmt"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// Patch is one entry of an EnvoyFilter's configPatches.
type Patch = networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectPatch

// ReferencedServices is Istio's annotation of an EnvoyFilter that makes istiod send the clusters of further Services to the
// waypoint. It lists them as namespace/host, separated by commas.
const ReferencedServices = "envoyfilter.istio.io/referenced-services"

// Names that istiod gives to the parts of a waypoint.
const (
	waypointListener      = "main_internal"
	httpConnectionManager = "envoy.filters.network.http_connection_manager"
	routerFilter          = "envoy.filters.http.router"
)

// Front is one port of a host that the waypoint serves. istiod makes one filter chain and one set of endpoints for it.
type Front struct {
	Host string
	Port uint32
}

// IstioName is istiod's name for the front's filter chain, its cluster and its endpoints alike.
func (f Front) IstioName() string { return fmt.Sprintf("inbound-vip|%d|http|%s", f.Port, f.Host) }

// match names the front's chain. A patch that names no chain reaches every host of the waypoint. Waypoints take the
// patches of context SIDECAR_INBOUND.
func (f Front) match(filter *networkingv1alpha3.EnvoyFilter_ListenerMatch_FilterMatch) *networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectMatch {
	return &networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectMatch{
		Context: networkingv1alpha3.EnvoyFilter_SIDECAR_INBOUND,
		ObjectTypes: &networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectMatch_Listener{
			Listener: &networkingv1alpha3.EnvoyFilter_ListenerMatch{
				Name: waypointListener,
				FilterChain: &networkingv1alpha3.EnvoyFilter_ListenerMatch_FilterChainMatch{
					Name:   f.IstioName(),
					Filter: filter,
				},
			},
		},
	}
}

// beforeRouter inserts an HTTP filter into the front's chain, directly before the router. Authentication and authorization
// run earlier, so a refused call never reaches a picker.
func (f Front) beforeRouter(filter *hcmv3.HttpFilter) (*Patch, error) {
	value, err := toStruct(filter)
	if err != nil {
		return nil, err
	}
	return &Patch{
		ApplyTo: networkingv1alpha3.EnvoyFilter_HTTP_FILTER,
		Match: f.match(&networkingv1alpha3.EnvoyFilter_ListenerMatch_FilterMatch{
			Name:      httpConnectionManager,
			SubFilter: &networkingv1alpha3.EnvoyFilter_ListenerMatch_SubFilterMatch{Name: routerFilter},
		}),
		Patch: &networkingv1alpha3.EnvoyFilter_Patch{
			Operation: networkingv1alpha3.EnvoyFilter_Patch_INSERT_BEFORE,
			Value:     value,
		},
	}, nil
}

// message is an Envoy message with its generated validation.
type message interface {
	proto.Message
	ValidateAll() error
}

// pack validates a message and wraps it. Validation does not look into an Any, so each message is validated when it is
// packed.
func pack(m message) (*anypb.Any, error) {
	if err := m.ValidateAll(); err != nil {
		return nil, fmt.Errorf("validating %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	packed, err := anypb.New(m)
	if err != nil {
		return nil, fmt.Errorf("packing %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return packed, nil
}

// toStruct validates a message and turns it into the form in which an EnvoyFilter carries it, with the field names of
// Envoy's documentation.
func toStruct(m message) (*structpb.Struct, error) {
	if err := m.ValidateAll(); err != nil {
		return nil, fmt.Errorf("validating %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return partialToStruct(m)
}

// partialToStruct is toStruct without validation, for a message that istiod merges into another one.
func partialToStruct(m proto.Message) (*structpb.Struct, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	out := &structpb.Struct{}
	if err := protojson.Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("encoding %s as a Struct: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return out, nil
}
