package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"

	networkingv1alpha3 "istio.io/api/networking/v1alpha3"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
)

// Object is a message of Envoy's configuration as JSON.
type Object = map[string]any

// Envoy is a proxy with named listeners.
type Envoy struct {
	*Process
	Addresses map[string]string // of the listeners, by name
	Admin     string            // address of its admin interface
}

// StartEnvoy writes Envoy's configuration into dir, starts Envoy and reads the listeners' ports from it.
func StartEnvoy(ctx context.Context, path, dir string, listeners, clusters []Object) (*Envoy, error) {
	raw, err := json.Marshal(Object{
		"admin":            Object{"address": Socket("127.0.0.1:0")},
		"static_resources": Object{"listeners": listeners, "clusters": clusters},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding Envoy's bootstrap: %w", err)
	}
	config, admin, log := filepath.Join(dir, "envoy.json"), filepath.Join(dir, "envoy.admin"), filepath.Join(dir, "envoy.log")
	if err := os.WriteFile(config, raw, 0o600); err != nil {
		return nil, fmt.Errorf("writing Envoy's bootstrap: %w", err)
	}
	process, err := Start(log, path, "--config-path", config, "--admin-address-path", admin,
		"--use-dynamic-base-id", "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning")
	if err != nil {
		return nil, fmt.Errorf("starting Envoy: %w", err)
	}
	e := &Envoy{Process: process, Addresses: map[string]string{}}
	if err := e.Await(ctx, log, func() error { return e.learn(ctx, admin) }); err != nil {
		e.Stop()
		return nil, fmt.Errorf("starting Envoy: %w", err)
	}
	return e, nil
}

// learn asks Envoy, once it is ready, for its listeners' addresses.
func (e *Envoy) learn(ctx context.Context, admin string) error {
	address, err := os.ReadFile(admin)
	if err != nil {
		return err
	}
	e.Admin = string(address)
	var ready struct{ State string }
	if err := getJSON(ctx, "http://"+string(address)+"/server_info", &ready); err != nil || ready.State != "LIVE" {
		return errors.Join(errors.New("it is not live"), err)
	}
	var said struct {
		Statuses []struct {
			Name    string `json:"name"`
			Address struct {
				Socket struct {
					Port int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := getJSON(ctx, "http://"+string(address)+"/listeners?format=json", &said); err != nil {
		return err
	}
	for _, l := range said.Statuses {
		e.Addresses[l.Name] = net.JoinHostPort("127.0.0.1", strconv.Itoa(l.Address.Socket.Port))
	}
	return nil
}

func getJSON(ctx context.Context, url string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	return json.NewDecoder(response.Body).Decode(into)
}

// Typed is a message of one of Envoy's types. The name leaves out the prefix that all types share.
func Typed(name string, fields Object) Object {
	out := Object{"@type": "type.googleapis.com/envoy." + name}
	for k, v := range fields {
		out[k] = v
	}
	return out
}

// Socket is an address; address must be host:port, as a listener reports it.
func Socket(address string) Object {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		panic(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		panic(err)
	}
	return Object{"socket_address": Object{"address": host, "port_value": number}}
}

// Listener is a listener on a free port with an HTTP connection manager.
func Listener(name string, manager Object) Object {
	return Object{
		"name": name, "address": Socket("127.0.0.1:0"),
		"filter_chains": []Object{{"filters": []Object{{
			"name": "envoy.filters.network.http_connection_manager", "typed_config": manager,
		}}}},
	}
}

// Manager is a waypoint's HTTP connection manager with the controller's patches: filters that ask a picker, and routes to
// the clusters that use the pick. The routes are in the manager, as there is no server to fetch them from. statPrefix is
// the prefix of the counters of picks. The picker learns which calls were cut.
func Manager(host envoypatch.VirtualHost, statPrefix string) (Object, error) {
	at := envoypatch.Front{Host: "pool.test", Port: 80}
	patches, err := envoypatch.ChainPatches(at, host.Name, statPrefix, &host.Picker)
	if err != nil {
		return nil, err
	}
	routes, err := envoypatch.VirtualHostPatch(at, host)
	if err != nil {
		return nil, err
	}
	var chain []any
	var logs any
	for _, p := range patches {
		switch value := p.Patch.Value.AsMap(); p.ApplyTo {
		case networkingv1alpha3.EnvoyFilter_HTTP_FILTER:
			chain = append(chain, value)
		case networkingv1alpha3.EnvoyFilter_NETWORK_FILTER:
			manager, _ := value["typed_config"].(map[string]any)
			logs = manager["access_log"]
		}
	}
	return Typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", Object{
		"stat_prefix":     "local",
		"upgrade_configs": []Object{{"upgrade_type": "websocket"}}, // as istiod has it
		"route_config": Object{
			"name": at.RouteName(host.Name), "validate_clusters": false, "virtual_hosts": []any{routes.Patch.Value.AsMap()},
		},
		"access_log":   logs,
		"http_filters": append(chain, Object{"name": "router", "typed_config": Typed("extensions.filters.http.router.v3.Router", nil)}),
	}), nil
}

// Metadata is a key of the metadata by which a picker and Envoy exchange endpoints.
func Metadata(key string) Object {
	return Object{"key": "envoy.lb", "path": []Object{{"key": key}}}
}

// PoolCluster is a cluster of a pool's endpoints. Envoy takes the endpoint that the source names, or else the next in turn.
func PoolCluster(name string, addresses []string, source Object) Object {
	out := Cluster(name, addresses...)
	out["load_balancing_policy"] = policy("override_host", Object{
		"override_host_sources": []Object{source},
		"selected_host_key":     Metadata("x-gateway-destination-endpoint-served"),
		"fallback_policy":       policy("round_robin", nil),
	})
	return out
}

func policy(name string, fields Object) Object {
	types := map[string]string{"override_host": "override_host.v3.OverrideHost", "round_robin": "round_robin.v3.RoundRobin"}
	return Object{"policies": []Object{{"typed_extension_config": Object{
		"name":         "envoy.load_balancing_policies." + name,
		"typed_config": Typed("extensions.load_balancing_policies."+types[name], fields),
	}}}}
}

// Cluster is a cluster of fixed endpoints, without limits.
func Cluster(name string, addresses ...string) Object {
	var endpoints []Object
	for _, address := range addresses {
		endpoints = append(endpoints, Object{"endpoint": Object{"address": Socket(address)}})
	}
	limits := Object{"max_connections": 1 << 20, "max_pending_requests": 1 << 20, "max_requests": 1 << 20, "max_retries": 1 << 20}
	return Object{
		"name": name, "type": "STATIC", "connect_timeout": "5s",
		"circuit_breakers": Object{"thresholds": []Object{limits}},
		"load_assignment":  Object{"cluster_name": name, "endpoints": []Object{{"lb_endpoints": endpoints}}},
	}
}

// HTTP2 are the options of a cluster with HTTP/2. Other options keep Envoy's defaults, as with istiod.
func HTTP2(options Object) Object {
	return Object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": Typed("extensions.upstreams.http.v3.HttpProtocolOptions", Object{
		"explicit_http_config": Object{"http2_protocol_options": options},
	})}
}

// PlainManager routes all calls to a cluster.
func PlainManager(cluster string) Object {
	return Typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", Object{
		"stat_prefix": "plain",
		"route_config": Object{"virtual_hosts": []Object{{
			"name": "all", "domains": []string{"*"},
			"routes": []Object{{"match": Object{"prefix": "/"}, "route": Object{"cluster": cluster, "timeout": "0s"}}},
		}}},
		"http_filters": []Object{{"name": "router", "typed_config": Typed("extensions.filters.http.router.v3.Router", nil)}},
	})
}
