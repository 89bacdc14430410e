package protocol

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
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// The ways in which Envoy sends bodies to an ext_proc server.
const (
	none     = "NONE"
	streamed = "STREAMED"
	buffered = "BUFFERED"
	partial  = "BUFFERED_PARTIAL"
	duplex   = "FULL_DUPLEX_STREAMED"
)

var modes = []string{none, streamed, buffered, partial, duplex}

// door is a listener of Envoy, and what it does with calls. One that does not fail open fails closed, so that no call
// can be served without a pick.
type door struct {
	name     string
	pool     string
	picker   string
	requests string // how bodies of requests are sent
	answers  string // how bodies of answers are sent, none by default
	failOpen bool
	checked  bool // a picker whose health is not SERVING is not asked
	waypoint bool // it is configured as at a waypoint, for our picker or, with duplex requests, for somebody else's
}

func doors() []door {
	out := []door{
		{name: "single", pool: "single", picker: "main", requests: partial},
		{name: "empty", pool: "empty", picker: "main", requests: partial},
		{name: "unknown", pool: "unknown", picker: "main", requests: partial},
		{name: "retried", pool: "retried", picker: "main", requests: partial},
		{name: "huge " + partial, pool: "huge", picker: "main", requests: partial},
		{name: "huge " + duplex, pool: "huge", picker: "main", requests: duplex},
		{name: "left " + partial, pool: "left", picker: "main", requests: partial},
		{name: "left " + duplex, pool: "left", picker: "main", requests: duplex, answers: duplex},
		{name: "removed " + partial, pool: "removed", picker: "main", requests: partial},
		{name: "removed " + duplex, pool: "removed", picker: "main", requests: duplex, answers: duplex},
		{name: "idle", pool: "idle", picker: "main", requests: partial},
		{name: "checked", pool: "general", picker: "main", requests: partial, checked: true},
		{name: "narrow closed", pool: "general", picker: "narrow", requests: partial},
		{name: "narrow open", pool: "general", picker: "narrow", requests: partial, failOpen: true},
		{name: "waypoint", pool: "general", picker: "main", requests: partial, waypoint: true},
		{name: "waypoint http2", pool: "http2", picker: "main", requests: partial, waypoint: true},
		{name: "waypoint " + duplex, pool: "general", picker: "main", requests: duplex, waypoint: true},
		{name: "waypoint patient open", pool: "general", picker: "patient", requests: duplex, failOpen: true, waypoint: true},
		{name: "waypoint patient closed", pool: "general", picker: "patient", requests: duplex, waypoint: true},
	}
	for _, m := range modes {
		out = append(out, door{name: m, pool: "general", picker: "main", requests: m})
	}
	for _, picker := range []string{"killed", "drained", "parted"} {
		out = append(out,
			door{name: picker + " open", pool: "general", picker: picker, requests: partial, failOpen: true},
			door{name: picker + " closed", pool: "general", picker: picker, requests: partial},
			door{name: picker + " checked", pool: "general", picker: picker, requests: partial, checked: true},
			door{name: picker + " requests duplex", pool: "general", picker: picker, requests: duplex},
			door{name: picker + " duplex", pool: "general", picker: picker, requests: duplex, answers: duplex},
		)
	}
	return out
}

// startEnvoy writes Envoy's whole configuration, starts it and learns its listeners' ports from it.
func (w *world) startEnvoy(ctx context.Context, path string) error {
	raw, err := json.Marshal(w.bootstrap())
	if err != nil {
		return fmt.Errorf("encoding Envoy's bootstrap: %w", err)
	}
	config, admin := filepath.Join(w.dir, "envoy.json"), filepath.Join(w.dir, "envoy.admin")
	if err := os.WriteFile(config, raw, 0o600); err != nil {
		return fmt.Errorf("writing Envoy's bootstrap: %w", err)
	}
	w.envoy, err = startProcess(filepath.Join(w.dir, "envoy.log"), path, "--config-path", config, "--admin-address-path", admin,
		"--use-dynamic-base-id", "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning")
	if err != nil {
		return fmt.Errorf("starting Envoy: %w", err)
	}
	for {
		err := w.learnDoors(ctx, admin)
		if err == nil {
			return nil
		}
		select {
		case <-w.envoy.done:
			log, _ := os.ReadFile(filepath.Join(w.dir, "envoy.log"))
			return fmt.Errorf("Envoy ended: %w: %s", w.envoy.err, log)
		case <-ctx.Done():
			return fmt.Errorf("Envoy is not ready: %w: %w", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// learnDoors asks Envoy, once it is ready, where it listens.
func (w *world) learnDoors(ctx context.Context, admin string) error {
	address, err := os.ReadFile(admin)
	if err != nil {
		return err
	}
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
		w.addresses[l.Name] = net.JoinHostPort("127.0.0.1", strconv.Itoa(l.Address.Socket.Port))
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

type object = map[string]any

// typed is a message of one of Envoy's types; its name is given without what all have in common.
func typed(name string, fields object) object {
	out := object{"@type": "type.googleapis.com/envoy." + name}
	for k, v := range fields {
		out[k] = v
	}
	return out
}

func socket(address string) object {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		panic(err) // an address that a listener told
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		panic(err)
	}
	return object{"socket_address": object{"address": host, "port_value": number}}
}

func (w *world) bootstrap() object {
	var listeners, clusters []object
	for _, d := range doors() {
		manager := d.manager
		if d.waypoint {
			manager = d.waypointManager
		}
		listeners = append(listeners, object{
			"name": d.name, "address": socket("127.0.0.1:0"),
			"filter_chains": []object{{"filters": []object{{
				"name": "envoy.filters.network.http_connection_manager", "typed_config": manager(),
			}}}},
		})
	}
	for name, f := range w.pools {
		clusters = append(clusters,
			poolCluster(name+" by metadata", f, object{"metadata": metadataKey("x-gateway-destination-endpoint")}),
			poolCluster(name+" by header", f, object{"header": "x-gateway-destination-endpoint"}))
	}
	for name, p := range w.pickers {
		clusters = append(clusters, pickerCluster(name, p.addresses["extproc"], false), pickerCluster(name, p.addresses["extproc"], true))
	}
	clusters = append(clusters, w.waypointClusters()...)
	return object{
		"admin":            object{"address": socket("127.0.0.1:0")},
		"static_resources": object{"listeners": listeners, "clusters": clusters},
	}
}

func (d door) manager() object {
	pool := d.pool
	if the.pools[pool] == nil { // one that the picker does not know
		pool = "general"
	}
	follow := func(source string) object {
		return object{"cluster": pool + " by " + source, "timeout": "0s", "retry_policy": object{
			"retry_on": "connect-failure,refused-stream,reset", "num_retries": 2,
			"retry_host_predicate": []object{{
				"name":         "envoy.retry_host_predicates.previous_hosts",
				"typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", nil),
			}},
			"host_selection_retry_max_attempts": 5,
		}}
	}
	return typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", object{
		"stat_prefix": "door",
		"route_config": object{"virtual_hosts": []object{{
			"name": "all", "domains": []string{"*"},
			// BUFFERED answers 413 to what is longer; BUFFERED_PARTIAL sends so much, as it does on a waypoint.
			"request_body_buffer_limit": map[bool]int{true: 8 << 20, false: 1 << 20}[d.requests == buffered],
			"routes": []object{
				{"match": object{"prefix": "/", "headers": []object{{
					"name": followHeader, "string_match": object{"exact": "header"},
				}}}, "route": follow("header")},
				{"match": object{"prefix": "/"}, "route": follow("metadata")},
			},
			"request_headers_to_add":  []object{metadataAs(metadataHeader, "x-gateway-destination-endpoint")},
			"response_headers_to_add": []object{metadataAs(servedHeader, "x-gateway-destination-endpoint-served")},
		}}},
		"http_filters": []object{
			{"name": "subset", "typed_config": subsetFilter()},
			{"name": "picker", "typed_config": d.filter()},
			{"name": "router", "typed_config": typed("extensions.filters.http.router.v3.Router", nil)},
		},
	})
}

func metadataAs(header, key string) object {
	return object{"header": object{"key": header, "value": "%DYNAMIC_METADATA(envoy.lb:" + key + ")%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
}

// subsetFilter makes of a header the metadata by which a proxy restricts a call.
func subsetFilter() object {
	return typed("extensions.filters.http.header_to_metadata.v3.Config", object{"request_rules": []object{{
		"header": subsetHeader, "remove": true,
		"on_header_present": object{
			"metadata_namespace": "envoy.lb.subset_hint", "key": "x-gateway-destination-endpoint-subset",
			"type": "PROTOBUF_VALUE", "encode": "BASE64",
		},
	}}})
}

func (d door) filter() object {
	mode := object{
		"request_header_mode": "SEND", "response_header_mode": "SEND",
		"request_body_mode": d.requests, "request_trailer_mode": "SKIP", "response_trailer_mode": "SKIP",
	}
	if d.answers != "" {
		mode["response_body_mode"] = d.answers
	}
	if d.requests == duplex { // Envoy wants the trailers then
		mode["request_trailer_mode"] = "SEND"
	}
	if d.answers == duplex {
		mode["response_trailer_mode"] = "SEND"
	}
	return typed("extensions.filters.http.ext_proc.v3.ExternalProcessor", object{
		"grpc_service": object{
			"envoy_grpc":       object{"cluster_name": pickerClusterName(d.picker, d.checked)},
			"initial_metadata": []object{{"key": "inference-waypoint-pool", "value": poolName(d.pool)}},
		},
		"failure_mode_allow": d.failOpen,
		"status_on_error":    object{"code": 503},
		"processing_mode":    mode,
		"message_timeout":    "10s",
		"metadata_options": object{
			"forwarding_namespaces": object{"untyped": []string{"envoy.lb", "envoy.lb.subset_hint"}},
			"receiving_namespaces":  object{"untyped": []string{"envoy.lb"}},
		},
	})
}

func metadataKey(key string) object {
	return object{"key": "envoy.lb", "path": []object{{"key": key}}}
}

// poolCluster is a pool's endpoints, of which Envoy takes the one that the source names.
func poolCluster(name string, f *fleet, source object) object {
	var endpoints []object
	for _, address := range f.addresses() {
		endpoints = append(endpoints, object{"endpoint": object{"address": socket(address)}})
	}
	out := cluster(name, endpoints)
	out["load_balancing_policy"] = policy("override_host", object{
		"override_host_sources": []object{source},
		"selected_host_key":     metadataKey("x-gateway-destination-endpoint-served"),
		"fallback_policy":       policy("round_robin", nil),
	})
	if strings.HasPrefix(name, "idle ") || strings.HasPrefix(name, "http2 ") {
		out["typed_extension_protocol_options"] = http2(object{})
	}
	return out
}

func policy(name string, fields object) object {
	types := map[string]string{"override_host": "override_host.v3.OverrideHost", "round_robin": "round_robin.v3.RoundRobin"}
	return object{"policies": []object{{"typed_extension_config": object{
		"name":         "envoy.load_balancing_policies." + name,
		"typed_config": typed("extensions.load_balancing_policies."+types[name], fields),
	}}}}
}

func pickerClusterName(name string, checked bool) string {
	return map[bool]string{true: "checked ", false: "picker "}[checked] + name
}

func pickerCluster(name, address string, checked bool) object {
	out := cluster(pickerClusterName(name, checked), []object{{"endpoint": object{"address": socket(address)}}})
	out["typed_extension_protocol_options"] = http2(object{"max_concurrent_streams": the.streamsPerConnection})
	if checked {
		out["health_checks"] = []object{{
			"timeout": "5s", "interval": "0.1s", "no_traffic_interval": "0.1s", "unhealthy_threshold": 1, "healthy_threshold": 1,
			"grpc_health_check": object{"service_name": "envoy.service.ext_proc.v3.ExternalProcessor"},
		}}
		// No host is asked that is not healthy, not even where none is.
		out["common_lb_config"] = object{"healthy_panic_threshold": object{"value": 0}}
	}
	return out
}

func cluster(name string, endpoints []object) object {
	limits := object{"max_connections": 1 << 20, "max_pending_requests": 1 << 20, "max_requests": 1 << 20, "max_retries": 1 << 20}
	return object{
		"name": name, "type": "STATIC", "connect_timeout": "5s",
		"circuit_breakers": object{"thresholds": []object{limits}},
		"load_assignment":  object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": endpoints}}},
	}
}

// http2 speaks HTTP/2 to a cluster. What the options do not say is left to Envoy, as istiod does.
func http2(options object) object {
	return object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed("extensions.upstreams.http.v3.HttpProtocolOptions", object{
		"explicit_http_config": object{"http2_protocol_options": options},
	})}
}

// readStreamsPerConnection reads from what is installed with the picker how many streams a waypoint opens on one
// connection to it.
func readStreamsPerConnection() (int64, error) {
	const manifest = "../../manifests/base/picker.yaml"
	file, err := os.Open(manifest)
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }()
	for documents := yaml.NewYAMLOrJSONDecoder(file, 4096); ; {
		var o unstructured.Unstructured
		if err := documents.Decode(&o); err != nil {
			return 0, fmt.Errorf("looking for a DestinationRule in %s: %w", manifest, err)
		}
		if o.GetKind() == "DestinationRule" {
			n, _, err := unstructured.NestedInt64(o.Object, "spec", "trafficPolicy", "connectionPool", "http", "maxConcurrentStreams")
			return n, err
		}
	}
}
