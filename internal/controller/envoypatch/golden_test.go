package envoypatch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"istio.io/api/networking/v1alpha3"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// goldenFilters calls a function with every EnvoyFilter of package translate's golden files. They have every kind of patch
// of this package.
func goldenFilters(t *testing.T, do func(file string, filter *networkingv1alpha3.EnvoyFilter)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "translate", "testdata", "*.out.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, path := range files {
		for _, doc := range documents(t, path) {
			var filter networkingv1alpha3.EnvoyFilter
			if !strings.Contains(string(doc), "kind: EnvoyFilter\n") {
				continue
			}
			if err := yaml.Unmarshal(doc, &filter); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			do(strings.TrimSuffix(filepath.Base(path), ".out.yaml"), &filter)
		}
	}
}

func documents(t *testing.T, path string) [][]byte {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var out [][]byte
	for reader := utilyaml.NewDocumentDecoder(file); ; {
		buffer := make([]byte, 1<<20)
		n, err := reader.Read(buffer)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		out = append(out, buffer[:n])
	}
}

// TestGoldenPatchesAreEnvoys decodes every patch of every golden EnvoyFilter as the Envoy message that istiod expects,
// strictly: an unknown field, a wrong type or an invalid value fails.
func TestGoldenPatchesAreEnvoys(t *testing.T) {
	goldenFilters(t, func(file string, filter *networkingv1alpha3.EnvoyFilter) {
		for i, p := range filter.Spec.ConfigPatches {
			if err := parsePatch(p); err != nil {
				t.Errorf("%s: patch %d: %v", file, i, err)
			}
		}
	})
}

func parsePatch(p *v1alpha3.EnvoyFilter_EnvoyConfigObjectPatch) error {
	raw, err := protojson.Marshal(p.Patch.Value)
	if err != nil {
		return err
	}
	switch p.ApplyTo {
	case v1alpha3.EnvoyFilter_HTTP_FILTER:
		return parse(raw, &hcmv3.HttpFilter{})
	case v1alpha3.EnvoyFilter_CLUSTER:
		return parse(raw, &clusterv3.Cluster{})
	case v1alpha3.EnvoyFilter_VIRTUAL_HOST:
		return parse(raw, &routev3.VirtualHost{})
	case v1alpha3.EnvoyFilter_NETWORK_FILTER:
		filter, manager := &listenerv3.Filter{}, &hcmv3.HttpConnectionManager{}
		if err := parse(raw, filter); err != nil {
			return err
		}
		if err := filter.GetTypedConfig().UnmarshalTo(manager); err != nil {
			return err
		}
		// The patch is merged into a whole manager: what it brings must be valid, not the rest.
		for _, log := range manager.GetAccessLog() {
			if err := log.ValidateAll(); err != nil {
				return err
			}
		}
		return manager.GetRds().ValidateAll()
	default:
		return fmt.Errorf("unexpected applyTo %s", p.ApplyTo)
	}
}

func parse(raw []byte, into interface {
	proto.Message
	ValidateAll() error
}) error {
	if err := protojson.Unmarshal(raw, into); err != nil {
		return err
	}
	return into.ValidateAll()
}

// TestGoldenLoadsInEnvoy gives every cluster and every filter chain of the golden files to a real Envoy. Envoy checks more
// than the messages' own validation: that filters exist, expressions compile and formats are right.
func TestGoldenLoadsInEnvoy(t *testing.T) {
	var clusters, chains []any
	goldenFilters(t, func(file string, filter *networkingv1alpha3.EnvoyFilter) {
		c, f := proxyParts(t, file+"/"+filter.Name, &filter.Spec)
		clusters, chains = append(clusters, c...), append(chains, f...)
	})
	if len(clusters) == 0 || len(chains) == 0 {
		t.Fatal("the golden files hold no configuration")
	}
	for i, chain := range chains { // a chain for each port, as they must differ
		chain.(map[string]any)["filter_chain_match"] = map[string]any{"destination_port": i + 1}
	}
	if err := validate(t, clusters, chains); err != nil {
		t.Error(err)
	}
}

// validate has a real Envoy check clusters and filter chains.
func validate(t *testing.T, clusters, chains []any) error {
	t.Helper()
	raw, err := json.Marshal(bootstrap(clusters, chains))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bootstrap.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(installedEnvoy(t), "--mode", "validate", "--log-level", "warning", "--config-path", file).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func installedEnvoy(t *testing.T) string {
	t.Helper()
	envoy, err := filepath.Abs(filepath.Join("..", "..", ".tools", "envoy"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(envoy); err != nil {
		t.Skip("there is no Envoy here: make tools installs one")
	}
	return envoy
}

func bootstrap(clusters, chains []any) map[string]any {
	http2 := map[string]any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": map[string]any{
		"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
		"explicit_http_config": map[string]any{"http2_protocol_options": map[string]any{}},
	}}
	return map[string]any{
		"node": map[string]any{"id": "golden", "cluster": "golden"},
		// As Istio starts its proxies.
		"layered_runtime": map[string]any{"layers": []any{map[string]any{
			"name": "istio", "static_layer": map[string]any{"re2.max_program_size.error_level": maxProgram},
		}}},
		"bootstrap_extensions": []any{map[string]any{
			"name":         "envoy.bootstrap.internal_listener",
			"typed_config": map[string]any{"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"},
		}},
		"dynamic_resources": map[string]any{"ads_config": map[string]any{
			"api_type": "GRPC", "transport_api_version": "V3",
			"grpc_services": []any{map[string]any{"envoy_grpc": map[string]any{"cluster_name": "xds"}}},
		}},
		"static_resources": map[string]any{
			"clusters": append([]any{map[string]any{"name": "xds", "type": "STATIC", "typed_extension_protocol_options": http2}}, clusters...),
			"listeners": []any{map[string]any{
				"name":          "golden",
				"address":       map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": 0}},
				"filter_chains": chains,
			}},
		},
	}
}

// proxyParts are the clusters of an EnvoyFilter and its filter chains, put together as istiod does: the manager's
// patches are merged, and each HTTP filter goes before the router. The routes that a chain fetches are put into it, as
// there is nobody to fetch them from. Clusters of several files get names of their own.
func proxyParts(t *testing.T, where string, spec *v1alpha3.EnvoyFilter) (clusters, chains []any) {
	t.Helper()
	managers := map[string]*hcmv3.HttpConnectionManager{}
	filters := map[string][]any{}
	hosts := map[string][]any{}
	var order []string
	for _, p := range spec.ConfigPatches {
		name := p.GetMatch().GetListener().GetFilterChain().GetName()
		switch p.ApplyTo {
		case v1alpha3.EnvoyFilter_CLUSTER:
			cluster := p.Patch.Value.AsMap()
			cluster["name"] = fmt.Sprintf("%s/%s", where, cluster["name"])
			clusters = append(clusters, cluster)
			continue
		case v1alpha3.EnvoyFilter_VIRTUAL_HOST:
			fetched := p.GetMatch().GetRouteConfiguration().GetName()
			hosts[fetched] = append(hosts[fetched], p.Patch.Value.AsMap())
			continue
		case v1alpha3.EnvoyFilter_HTTP_FILTER:
			filters[name] = append(filters[name], p.Patch.Value.AsMap())
		case v1alpha3.EnvoyFilter_NETWORK_FILTER:
			if managers[name] == nil {
				managers[name] = &hcmv3.HttpConnectionManager{StatPrefix: "golden"}
			}
			proto.Merge(managers[name], managerOf(t, p.Patch.Value))
		}
		if len(order) == 0 || order[len(order)-1] != name {
			order = append(order, name)
		}
	}
	for _, name := range order {
		chains = append(chains, chainOf(t, managers[name], filters[name], hosts))
	}
	return clusters, chains
}

func managerOf(t *testing.T, value *structpb.Struct) *hcmv3.HttpConnectionManager {
	t.Helper()
	config := value.Fields["typed_config"].GetStructValue()
	delete(config.Fields, "@type")
	raw, err := protojson.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	out := &hcmv3.HttpConnectionManager{}
	if err := protojson.Unmarshal(raw, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func chainOf(t *testing.T, manager *hcmv3.HttpConnectionManager, filters []any, hosts map[string][]any) any {
	t.Helper()
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(manager)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	fetched := manager.GetRds().GetRouteConfigName()
	if len(hosts[fetched]) != 1 {
		t.Fatalf("there are %d virtual hosts for routes %q, want one", len(hosts[fetched]), fetched)
	}
	delete(config, "rds")
	config["route_config"] = map[string]any{"name": fetched, "validate_clusters": false, "virtual_hosts": hosts[fetched]}
	config["@type"] = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
	config["http_filters"] = append(filters, map[string]any{
		"name":         "envoy.filters.http.router",
		"typed_config": map[string]any{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
	})
	return map[string]any{"filters": []any{map[string]any{
		"name": "envoy.filters.network.http_connection_manager", "typed_config": config,
	}}}
}

// TestGoldenChainsAreAlike compares the connection manager of a pool's front in all goldens, with all kinds of pickers, routes
// and settings. If an edit of these changed the chain, Envoy would replace the chain and cut its calls. Only a controller
// without a default picker makes a different chain.
func TestGoldenChainsAreAlike(t *testing.T) {
	chains, files, logs := map[string]string{}, map[string]string{}, 0
	goldenFilters(t, func(file string, filter *networkingv1alpha3.EnvoyFilter) {
		for _, p := range filter.Spec.ConfigPatches {
			if p.ApplyTo != v1alpha3.EnvoyFilter_NETWORK_FILTER || strings.HasPrefix(file, "nopicker-") {
				continue
			}
			manager := managerOf(t, p.Patch.Value)
			raw, err := protojson.Marshal(manager)
			if err != nil {
				t.Fatal(err)
			}
			var text any // protojson's own spaces are drawn by lot
			if err := json.Unmarshal(raw, &text); err != nil {
				t.Fatal(err)
			}
			name, got := manager.GetRds().GetRouteConfigName(), fmt.Sprint(text)
			if want, ok := chains[name]; ok && got != want {
				t.Errorf("%s has for %s\n%s\nand %s\n%s", file, name, got, files[name], want)
			}
			chains[name], files[name] = got, file
			logs += len(manager.GetAccessLog())
		}
	})
	if logs == 0 {
		t.Error("no chain has an access log")
	}
}
