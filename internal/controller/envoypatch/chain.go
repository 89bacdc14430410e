package envoypatch

import (
	"fmt"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// A change of anything in a filter chain makes Envoy replace the chain, and answers that still stream on the old chain are
// cut when its drain time ends. So a front's chain holds names only. Routes, pickers and settings, which users edit, are in
// the route configuration, which Envoy fetches separately and updates without touching calls in flight.

// noPort ends the names of our route configurations. istiod patches only route configurations whose names end in a port,
// and adds the hosts of the Services with that port. No Service can have this port, as it is above 65,535.
const noPort = 99999

// RouteName is the name by which Envoy fetches the front's routes to a virtual host of this name. Each virtual host of a
// front has its own name, so that one can replace another while calls still use the old one.
func (f Front) RouteName(virtualHost string) string {
	return fmt.Sprintf("%s|%d|%s:%d", virtualHost, f.Port, f.Host, noPort)
}

// ChainPatches make the front's chain ask a picker for each call, as the routes of a virtual host say. The chain removes the client's own
// endpoint header, asks the picker, and gives the pick to the pool's cluster, in this order. The filter's counters have the prefix in
// their names. The picker brokenOffTo, if any, gets the reports of broken-off calls; it may differ from the picker that is asked.
func ChainPatches(at Front, virtualHost, statPrefix string, brokenOffTo *Picker) ([]*Patch, error) {
	var out []*Patch
	for _, f := range []struct {
		name   string
		config message
	}{
		{guardFilter, guard()},
		{pickerFilter, extProcFilter(statPrefix)},
		{endpointsFilter, endpointsToMetadata()},
	} {
		config, err := pack(f.config)
		if err != nil {
			return nil, fmt.Errorf("filter %s: %w", f.name, err)
		}
		patch, err := at.beforeRouter(&hcmv3.HttpFilter{
			Name:       f.name,
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config},
		})
		if err != nil {
			return nil, fmt.Errorf("filter %s: %w", f.name, err)
		}
		out = append(out, patch)
	}
	manager := fetchedRoutes(at, virtualHost)
	if brokenOffTo != nil {
		log, err := brokenOffTo.brokenOff()
		if err != nil {
			return nil, err
		}
		manager.AccessLog = []*accesslogv3.AccessLog{log}
	}
	merged, err := at.mergeManager(manager)
	if err != nil {
		return nil, err
	}
	return append(out, merged), nil
}

// FetchedRoutesPatch makes the front's chain fetch its routes to a virtual host, and drops the routes that istiod makes. istiod makes routes
// of the same HTTPRoutes, but these ask no picker. An expression that does not compile, or a header value with a per cent
// sign, would make Envoy refuse the whole waypoint's configuration. The route_config and rds fields of a connection
// manager are one oneof, so a patch that sets rds clears istiod's route_config.
//
// Envoy uses a new chain when its routes have come, however late; the previous chain serves until then.
func FetchedRoutesPatch(at Front, virtualHost string) (*Patch, error) {
	return at.mergeManager(fetchedRoutes(at, virtualHost))
}

func fetchedRoutes(at Front, virtualHost string) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			RouteConfigName: at.RouteName(virtualHost),
			ConfigSource: &corev3.ConfigSource{
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
				InitialFetchTimeout:   durationpb.New(0),
				ResourceApiVersion:    corev3.ApiVersion_V3,
			},
		}},
	}
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
