package relay

import (
	"fmt"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	typePrefix   = "type.googleapis.com/"
	listenerType = typePrefix + "envoy.config.listener.v3.Listener"
	clusterType  = typePrefix + "envoy.config.cluster.v3.Cluster"
	hcmType      = typePrefix + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)

// tunnelListener accepts HBONE from the mesh, by istiod's configuration on every address. In one network namespace each pod
// has that port on its own address, so the waypoint must bind its own address too.
const tunnelListener = "connect_terminate"

// lacking reports whether a stock Envoy has no filter of this type.
func lacking(typeURL string) bool {
	name := strings.TrimPrefix(typeURL, typePrefix)
	return strings.HasSuffix(name, ".TypedStruct") || name == "stats.PluginConfig" || strings.Contains(name, "istio")
}

// adapt changes a response in place.
func (r *Relay) adapt(node *corev3.Node, response *discoveryv3.DiscoveryResponse) error {
	for _, resource := range response.GetResources() {
		var err error
		switch resource.GetTypeUrl() {
		case listenerType:
			err = r.adaptListener(node, resource)
		case clusterType:
			err = r.adaptCluster(node, resource)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Relay) adaptCluster(node *corev3.Node, resource *anypb.Any) error {
	return edit(resource, &clusterv3.Cluster{}, func(c *clusterv3.Cluster) error {
		for _, f := range c.GetFilters() {
			r.drop(node.GetId(), "cluster", f.GetName())
		}
		c.Filters = nil
		return nil
	})
}

func (r *Relay) adaptListener(node *corev3.Node, resource *anypb.Any) error {
	return edit(resource, &listenerv3.Listener{}, func(l *listenerv3.Listener) error {
		if l.GetName() == tunnelListener {
			l.GetAddress().GetSocketAddress().Address = addressOf(node)
		}
		l.ListenerFilters = slices.DeleteFunc(l.ListenerFilters, func(f *listenerv3.ListenerFilter) bool {
			return r.takeOut(node, "listener "+l.GetName(), f.GetName(), f.GetTypedConfig())
		})
		chains := l.GetFilterChains()
		if l.GetDefaultFilterChain() != nil {
			chains = append(slices.Clone(chains), l.GetDefaultFilterChain())
		}
		for _, chain := range chains {
			if err := r.adaptChain(node, l.GetName(), chain); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *Relay) adaptChain(node *corev3.Node, listener string, chain *listenerv3.FilterChain) error {
	where := "listener " + listener
	chain.Filters = slices.DeleteFunc(chain.Filters, func(f *listenerv3.Filter) bool {
		return r.takeOut(node, where, f.GetName(), f.GetTypedConfig())
	})
	for _, f := range chain.Filters {
		if f.GetTypedConfig().GetTypeUrl() != hcmType {
			continue
		}
		err := edit(f.GetTypedConfig(), &hcmv3.HttpConnectionManager{}, func(m *hcmv3.HttpConnectionManager) error {
			m.HttpFilters = slices.DeleteFunc(m.HttpFilters, func(f *hcmv3.HttpFilter) bool {
				return r.takeOut(node, where, f.GetName(), f.GetTypedConfig())
			})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// takeOut reports whether a filter must be removed, and counts it.
func (r *Relay) takeOut(node *corev3.Node, where, name string, config *anypb.Any) bool {
	if !lacking(config.GetTypeUrl()) {
		return false
	}
	r.drop(node.GetId(), where, name)
	return true
}

// addressOf reads a node's own address from its id: waypoint~<address>~<pod>.<namespace>~<domain>.
func addressOf(node *corev3.Node) string {
	parts := strings.Split(node.GetId(), "~")
	if len(parts) < 2 {
		return ""
	}
	return parts[1]
}

// edit unpacks a message, changes it and packs it again.
func edit[M proto.Message](packed *anypb.Any, message M, change func(M) error) error {
	if err := packed.UnmarshalTo(message); err != nil {
		return fmt.Errorf("unpacking %s: %w", packed.GetTypeUrl(), err)
	}
	if err := change(message); err != nil {
		return err
	}
	if err := packed.MarshalFrom(message); err != nil {
		return fmt.Errorf("packing %s: %w", packed.GetTypeUrl(), err)
	}
	return nil
}
