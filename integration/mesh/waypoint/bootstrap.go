package waypoint

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
)

const (
	// RelayAddress is the address at which Envoy gets its configuration and its certificates.
	RelayAddress = "127.0.0.1:15999"

	adminPort = 15000
	// emulatedIstio is the Istio version that Envoy reports. For later versions istiod uses a filter state object that only
	// Istio's own build of Envoy has.
	emulatedIstio = "1.29.1"
)

type object = map[string]any

// bootstrap returns the bootstrap that Istio's agent would write for this pod's Envoy.
func bootstrap(p *corev1.Pod) object {
	account := cluster.AccountOf(p)
	return object{
		"node": object{
			"id":      fmt.Sprintf("waypoint~%s~%s.%s~%s.svc.cluster.local", p.Status.PodIP, p.Name, p.Namespace, p.Namespace),
			"cluster": account + "." + p.Namespace,
			"metadata": object{
				"NAMESPACE": p.Namespace, "SERVICE_ACCOUNT": account, "NAME": p.Name, "LABELS": p.Labels, "CLUSTER_ID": "Kubernetes",
				"ENABLE_HBONE": "true", "ISTIO_VERSION": emulatedIstio, "INSTANCE_IPS": p.Status.PodIP,
			},
		},
		"admin": object{"address": socket(p.Status.PodIP, adminPort)},
		"bootstrap_extensions": []object{{
			"name":         "envoy.bootstrap.internal_listener",
			"typed_config": object{"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"},
		}},
		"dynamic_resources": object{
			"ads_config": object{
				"api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
				"grpc_services": []object{{"envoy_grpc": object{"cluster_name": "xds-grpc"}}},
			},
			"cds_config": object{"ads": object{}, "resource_api_version": "V3"},
			"lds_config": object{"ads": object{}, "resource_api_version": "V3"},
		},
		"static_resources": object{
			"listeners": []object{statsListener(p)},
			"clusters": []object{
				relayCluster("xds-grpc"), relayCluster("sds-grpc"),
				{"name": statsCluster, "type": "STATIC", "connect_timeout": "0.25s", "load_assignment": object{
					"cluster_name": statsCluster, "endpoints": []object{{"lb_endpoints": []object{{
						"endpoint": object{"address": socket(p.Status.PodIP, adminPort)},
					}}}},
				}},
			},
		},
	}
}

// The values of Istio's own bootstrap that readers of a proxy's counters rely on.
const (
	statsPort    = 15090
	statsCluster = "prometheus_stats"
)

// statsListener serves the statistics page of Envoy's admin interface, and no other page.
func statsListener(p *corev1.Pod) object {
	return object{
		"name": "stats", "address": socket(p.Status.PodIP, statsPort),
		"filter_chains": []object{{"filters": []object{{
			"name": "envoy.filters.network.http_connection_manager",
			"typed_config": object{
				"@type":       "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
				"stat_prefix": "stats",
				"http_filters": []object{{
					"name":         "envoy.filters.http.router",
					"typed_config": object{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
				}},
				"route_config": object{"virtual_hosts": []object{{
					"name": "backend", "domains": []string{"*"},
					"routes": []object{{"match": object{"prefix": "/stats/prometheus"}, "route": object{"cluster": statsCluster}}},
				}}},
			},
		}}}},
	}
}

func relayCluster(name string) object {
	return object{
		"name": name, "type": "STATIC", "connect_timeout": "1s",
		"typed_extension_protocol_options": object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": object{"http2_protocol_options": object{}},
		}},
		"load_assignment": object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": []object{{
			"endpoint": object{"address": socket("127.0.0.1", 15999)},
		}}}}},
	}
}

func socket(address string, port int) object {
	return object{"socket_address": object{"address": address, "port_value": port}}
}
