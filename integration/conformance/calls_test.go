package conformance

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"sigs.k8s.io/gateway-api-inference-extension/conformance/resources"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// dial replaces the suite's connections to a Gateway's address. It connects to the host of that Gateway's front, as the
// calling pod, by HBONE through the waypoint.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", address, err)
	}
	var gateways gatewayv1.GatewayList
	if err := the.Client.List(ctx, &gateways); err != nil {
		return nil, fmt.Errorf("listing Gateways: %w", err)
	}
	for _, g := range gateways.Items {
		for _, a := range g.Status.Addresses {
			if a.Value == host {
				front := fmt.Sprintf("%s.%s.inference.internal:80", g.Name, resources.AppBackendNamespace)
				return the.caller.HTTP.Transport.(*http.Transport).DialContext(ctx, network, front)
			}
		}
	}
	return nil, fmt.Errorf("dialling %s: no Gateway has this address", address)
}
