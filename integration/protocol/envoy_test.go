package protocol

import (
	"fmt"
	"os"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/inference-waypoint/inference-waypoint/integration/local"
)

// The modes in which Envoy sends bodies to an ext_proc server.
const (
	none     = "NONE"
	streamed = "STREAMED"
	buffered = "BUFFERED"
	partial  = "BUFFERED_PARTIAL"
	duplex   = "FULL_DUPLEX_STREAMED"
)

var modes = []string{none, streamed, buffered, partial, duplex}

// door is a listener of Envoy with its configuration. A door that does not fail open fails closed, so that no call can be
// served without a pick.
type door struct {
	name     string
	pool     string
	picker   string
	requests string // the mode for request bodies
	answers  string // the mode for answer bodies, none by default
	failOpen bool
	checked  bool // a picker whose health is not SERVING gets no calls
	waypoint bool // it is configured as at a waypoint, for our picker or, with duplex requests, for another one
	narrow   bool // its listener buffers 32 KiB, where 1 MiB is the default
}

func doors() []door {
	out := []door{
		{name: "single", pool: "single", picker: "main", requests: partial},
		{name: "empty", pool: "empty", picker: "main", requests: partial},
		{name: "unknown", pool: "unknown", picker: "main", requests: partial},
		// The picker sees the answer's end: only then does it know that the endpoint prefilled the prompt, however soon.
		{name: "retried", pool: "retried", picker: "main", requests: partial, answers: streamed},
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
		{name: "waypoint limited", pool: "limited", picker: "main", requests: partial, waypoint: true},
		{name: "waypoint broken", pool: "broken", picker: "main", requests: partial, waypoint: true},
		{name: "waypoint narrow", pool: "general", picker: "main", requests: partial, waypoint: true, narrow: true},
		{name: "waypoint http2", pool: "http2", picker: "main", requests: partial, waypoint: true},
		{name: "waypoint " + duplex, pool: "general", picker: "main", requests: duplex, waypoint: true},
		{name: "waypoint counted open", pool: "general", picker: "counted", requests: partial, failOpen: true, waypoint: true},
		{name: "waypoint counted closed", pool: "general", picker: "counted", requests: partial, waypoint: true},
		{name: "waypoint cut open", pool: "general", picker: "cut", requests: partial, failOpen: true, waypoint: true},
		{name: "waypoint patient open", pool: "general", picker: "patient", requests: duplex, failOpen: true, waypoint: true},
		{name: "waypoint patient closed", pool: "general", picker: "patient", requests: duplex, waypoint: true},
	}
	for _, requests := range []string{partial, duplex} {
		out = append(out,
			door{name: "hasty open " + requests, pool: "general", picker: "hasty", requests: requests, failOpen: true},
			door{name: "hasty closed " + requests, pool: "general", picker: "hasty", requests: requests})
	}
	out = append(out,
		door{name: "waypoint hasty open", pool: "general", picker: "hasty", requests: partial, failOpen: true, waypoint: true},
		door{name: "waypoint hasty closed", pool: "general", picker: "hasty", requests: partial, waypoint: true})
	for picker := range sheddingPickers {
		out = append(out,
			door{name: "waypoint " + picker + " open", pool: "general", picker: picker, requests: partial, failOpen: true, waypoint: true},
			door{name: "waypoint " + picker + " closed", pool: "general", picker: picker, requests: partial, waypoint: true})
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

type object = local.Object

// configuration returns Envoy's configuration.
func (w *world) configuration() (listeners, clusters []object) {
	for _, d := range doors() {
		manager := d.manager
		if d.waypoint {
			manager = d.waypointManager
		}
		listener := local.Listener(d.name, manager())
		if d.narrow {
			listener["per_connection_buffer_limit_bytes"] = 32 << 10
		}
		listeners = append(listeners, listener)
	}
	for name, f := range w.pools {
		clusters = append(clusters,
			poolCluster(name+" by metadata", f, object{"metadata": local.Metadata("x-gateway-destination-endpoint")}),
			poolCluster(name+" by header", f, object{"header": "x-gateway-destination-endpoint"}))
	}
	for name, p := range w.pickers {
		clusters = append(clusters, pickerCluster(name, p.Addresses["extproc"], false), pickerCluster(name, p.Addresses["extproc"], true))
	}
	for name, p := range w.own {
		clusters = append(clusters, pickerCluster(name, p.address, false))
	}
	return listeners, append(clusters, w.waypointClusters()...)
}

func (d door) manager() object {
	pool := d.pool
	if the.pools[pool] == nil { // a pool unknown to the picker
		pool = "general"
	}
	follow := func(source string) object {
		return object{"cluster": pool + " by " + source, "timeout": "0s", "retry_policy": object{
			"retry_on": "connect-failure,refused-stream,reset", "num_retries": 2,
			"retry_host_predicate": []object{{
				"name":         "envoy.retry_host_predicates.previous_hosts",
				"typed_config": local.Typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", nil),
			}},
			"host_selection_retry_max_attempts": 5,
		}}
	}
	return local.Typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", object{
		"stat_prefix": "door",
		"route_config": object{"virtual_hosts": []object{{
			"name": "all", "domains": []string{"*"},
			// BUFFERED answers 413 to longer bodies; BUFFERED_PARTIAL sends this much, as at a waypoint.
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
			{"name": "router", "typed_config": local.Typed("extensions.filters.http.router.v3.Router", nil)},
		},
	})
}

func metadataAs(header, key string) object {
	return object{"header": object{"key": header, "value": "%DYNAMIC_METADATA(envoy.lb:" + key + ")%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
}

// subsetFilter turns a header into the metadata by which a proxy restricts a call.
func subsetFilter() object {
	return local.Typed("extensions.filters.http.header_to_metadata.v3.Config", object{"request_rules": []object{{
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
	if d.requests == duplex { // Envoy then requires trailers to be sent
		mode["request_trailer_mode"] = "SEND"
	}
	if d.answers == duplex {
		mode["response_trailer_mode"] = "SEND"
	}
	return local.Typed("extensions.filters.http.ext_proc.v3.ExternalProcessor", object{
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

// poolCluster is a cluster of a pool's endpoints. Envoy takes the endpoint that the source names.
func poolCluster(name string, f *fleet, source object) object {
	out := local.PoolCluster(name, f.addresses(), source)
	if strings.HasPrefix(name, "idle ") || strings.HasPrefix(name, "http2 ") {
		out["typed_extension_protocol_options"] = local.HTTP2(object{})
	}
	if strings.HasPrefix(name, "limited ") {
		out["circuit_breakers"] = waypointLimits()
	}
	return out
}

func pickerClusterName(name string, checked bool) string {
	return map[bool]string{true: "checked ", false: "picker "}[checked] + name
}

func pickerCluster(name, address string, checked bool) object {
	out := local.Cluster(pickerClusterName(name, checked), address)
	out["typed_extension_protocol_options"] = local.HTTP2(object{"max_concurrent_streams": the.streamsPerConnection})
	if checked {
		out["health_checks"] = []object{{
			"timeout": "5s", "interval": "0.1s", "no_traffic_interval": "0.1s", "unhealthy_threshold": 1, "healthy_threshold": 1,
			"grpc_health_check": object{"service_name": "envoy.service.ext_proc.v3.ExternalProcessor"},
		}}
		// Envoy calls no unhealthy endpoint, not even if all are unhealthy.
		out["common_lb_config"] = object{"healthy_panic_threshold": object{"value": 0}}
	}
	return out
}

// readStreamsPerConnection reads, from the picker's manifests, how many streams a waypoint opens on one connection to the
// picker.
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
