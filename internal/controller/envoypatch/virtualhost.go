package envoypatch

import (
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// VirtualHost routes the calls to a front, whatever their authority.
type VirtualHost struct {
	// Name is part of the name of the route configuration.
	Name string
	// Picker is the picker that the waypoint asks. A destination with another picker overrides it.
	Picker Picker
	// Routes are tried in their order.
	Routes []Route
}

// VirtualHostPatch puts the virtual host into the route configuration that the front's chain fetches. istiod makes that
// configuration of such patches only. Envoy accepts a destination that does not exist yet.
func VirtualHostPatch(at Front, v VirtualHost) (*Patch, error) {
	host, err := v.build(at)
	if err != nil {
		return nil, fmt.Errorf("virtual host %s: %w", v.Name, err)
	}
	value, err := toStruct(host)
	if err != nil {
		return nil, fmt.Errorf("virtual host %s: %w", v.Name, err)
	}
	return &Patch{
		ApplyTo: networkingv1alpha3.EnvoyFilter_VIRTUAL_HOST,
		Match: &networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectMatch{
			// istiod treats fetched routes as outbound ones, also at a waypoint.
			Context: networkingv1alpha3.EnvoyFilter_SIDECAR_OUTBOUND,
			ObjectTypes: &networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectMatch_RouteConfiguration{
				RouteConfiguration: &networkingv1alpha3.EnvoyFilter_RouteConfigurationMatch{Name: at.RouteName(v.Name)},
			},
		},
		Patch: &networkingv1alpha3.EnvoyFilter_Patch{Operation: networkingv1alpha3.EnvoyFilter_Patch_ADD, Value: value},
	}, nil
}

func (v VirtualHost) build(at Front) (*routev3.VirtualHost, error) {
	ask, err := overridePicker(&extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Overrides{Overrides: v.Picker.ask()}})
	if err != nil {
		return nil, err
	}
	retry, err := (*Retry)(nil).build(0)
	if err != nil {
		return nil, err
	}
	out := &routev3.VirtualHost{
		Name:                 v.Name,
		Domains:              []string{"*"},
		TypedPerFilterConfig: ask,
		RetryPolicy:          retry,
		// An endpoint's own claim of who served is not trusted.
		ResponseHeadersToRemove: []string{servedKey},
	}
	if v.namesServed() {
		out.ResponseHeadersToAdd = []*corev3.HeaderValueOption{servedHeader()}
	}
	for _, r := range v.Routes {
		for _, part := range r.parts() {
			built, err := r.build(at, v.Picker, part)
			if err != nil {
				return nil, fmt.Errorf("route %s: %w", r.Name, err)
			}
			out.Routes = append(out.Routes, built)
		}
	}
	return out, nil
}

// namesServed reports whether any picker is not ours. Such a picker expects the endpoint that served, as plain ip:port.
func (v VirtualHost) namesServed() bool {
	return v.Picker.Protocol == Duplex || slices.ContainsFunc(v.Routes, func(r Route) bool {
		return slices.ContainsFunc(r.To, func(d Destination) bool { return d.Picker != nil && d.Picker.Protocol == Duplex })
	})
}
