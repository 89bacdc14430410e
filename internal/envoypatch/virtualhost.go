package envoypatch

import (
	"fmt"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// VirtualHost is how calls to a front are routed, whatever the authority that they name.
type VirtualHost struct {
	// Name is for people.
	Name string
	// Picker is the one that the front's filters ask. A destination with another one overrides it.
	Picker Picker
	// Routes are tried in their order.
	Routes []Route
}

// VirtualHostPatches put a virtual host in the place of all of istiod's for a front. istiod makes of the same HTTPRoutes
// what it can: routes to where no picker chooses and, of an expression that does not compile or a header's value with a
// per cent sign, configuration for which Envoy refuses the whole waypoint's. A merge adds to what is there and cannot
// remove. But the routes of a connection manager are one of several kinds, and setting another kind clears the one
// before: so the first patch sets a kind that nobody uses, and the second sets ours.
func VirtualHostPatches(at Front, v VirtualHost) ([]*Patch, error) {
	host := &routev3.VirtualHost{Name: v.Name, Domains: []string{"*"}}
	for _, r := range v.Routes {
		for _, part := range r.parts() {
			built, err := r.build(at, v.Picker, part)
			if err != nil {
				return nil, fmt.Errorf("virtual host %s: route %s: %w", v.Name, r.Name, err)
			}
			host.Routes = append(host.Routes, built)
		}
	}
	config := &routev3.RouteConfiguration{
		Name:         at.IstioName(),
		VirtualHosts: []*routev3.VirtualHost{host},
		// A destination that does not exist yet must not make Envoy refuse the rest.
		ValidateClusters: wrapperspb.Bool(false),
	}
	if err := config.ValidateAll(); err != nil {
		return nil, fmt.Errorf("virtual host %s: %w", v.Name, err)
	}
	var out []*Patch
	for _, manager := range []*hcmv3.HttpConnectionManager{
		{RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: "cleared"}}},
		{RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: config}},
	} {
		patch, err := at.mergeManager(manager)
		if err != nil {
			return nil, fmt.Errorf("virtual host %s: %w", v.Name, err)
		}
		out = append(out, patch)
	}
	return out, nil
}

// mergeManager merges into the connection manager of the front's chain.
func (f Front) mergeManager(manager *hcmv3.HttpConnectionManager) (*Patch, error) {
	packed, err := anypb.New(manager)
	if err != nil {
		return nil, err
	}
	value, err := partialToStruct(&listenerv3.Filter{
		Name:       httpConnectionManager,
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed},
	})
	if err != nil {
		return nil, err
	}
	return &Patch{
		ApplyTo: networkingv1alpha3.EnvoyFilter_NETWORK_FILTER,
		Match:   f.match(&networkingv1alpha3.EnvoyFilter_ListenerMatch_FilterMatch{Name: httpConnectionManager}),
		Patch:   &networkingv1alpha3.EnvoyFilter_Patch{Operation: networkingv1alpha3.EnvoyFilter_Patch_MERGE, Value: value},
	}, nil
}
