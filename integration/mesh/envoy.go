package mesh

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

const (
	relayAddress = "127.0.0.1:15999"
	adminPort    = 15000
	// emulatedIstio is the version that Envoy claims to be. From later ones on istiod uses a filter state object that
	// only Istio's own build of Envoy has.
	emulatedIstio = "1.29.1"
)

// waypointImage runs a stock Envoy for the pod that istiod's Deployment of a waypoint asks for.
func waypointImage(path string) Image {
	return Image{
		Path:      path,
		OwnTunnel: true,
		Ready:     &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(adminPort)}}},
		Args: func(p *corev1.Pod, dir string, _ []string) ([]string, error) {
			file := filepath.Join(dir, "bootstrap.yaml")
			content, err := yaml.Marshal(bootstrap(p))
			if err != nil {
				return nil, fmt.Errorf("encoding Envoy's bootstrap: %w", err)
			}
			if err := os.WriteFile(file, content, 0o644); err != nil {
				return nil, fmt.Errorf("writing Envoy's bootstrap: %w", err)
			}
			drain, err := drainTime(p)
			if err != nil {
				return nil, err
			}
			return []string{
				"--config-path", file, "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning",
				"--drain-time-s", strconv.Itoa(int(drain.Seconds())),
			}, nil
		},
	}
}

// proxyConfig is Istio's annotation of a pod that has settings of its proxy. A Gateway gives it to its waypoint's pods
// by spec.infrastructure.annotations.
const proxyConfig = "proxy.istio.io/config"

// drainTime is how long a waypoint goes on with the connections of a listener or filter chain that was replaced: the
// drainDuration of its proxyConfig. Istio's default is 45 s. Here it is 1 s, so that tests do not wait for what is cut.
func drainTime(p *corev1.Pod) (time.Duration, error) {
	var settings struct {
		DrainDuration string `json:"drainDuration"`
	}
	if err := yaml.Unmarshal([]byte(p.Annotations[proxyConfig]), &settings); err != nil {
		return 0, fmt.Errorf("reading the annotation %s of pod %s: %w", proxyConfig, p.Name, err)
	}
	if settings.DrainDuration == "" {
		return time.Second, nil
	}
	drain, err := time.ParseDuration(settings.DrainDuration)
	if err != nil {
		return 0, fmt.Errorf("reading the annotation %s of pod %s: %w", proxyConfig, p.Name, err)
	}
	return drain, nil
}

type object = map[string]any

// bootstrap is what Istio's agent would give Envoy for this pod: where its configuration and certificates come from.
func bootstrap(p *corev1.Pod) object {
	account := accountOf(p)
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

// What Istio's own bootstrap has for those who read a proxy's counters.
const (
	statsPort    = 15090
	statsCluster = "prometheus_stats"
)

// statsListener shows the page of counters of the proxy's administration, and nothing else of that.
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
