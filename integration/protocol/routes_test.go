package protocol

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/inference-waypoint/inference-waypoint/integration/local"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
)

// routesAwaited is longer than Envoy's default wait for missing routes, after which it serves a chain without them.
const routesAwaited = 17 * time.Second

// TestRoutesThatNeverCome replaces a working chain by one whose routes do not come. The old chain goes on serving, and no
// call is lost, until the routes come, however late.
func TestRoutesThatNeverCome(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e := startFed(ctx, t)
	e.wants(ctx, t, "before")
	e.putChain(t, e.fetching(t))
	for e.asked.Err() == nil { // until Envoy has asked for the routes
		e.wants(ctx, t, "before")
	}
	calls := 0
	for end := time.Now().Add(routesAwaited); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		e.wants(ctx, t, "before")
		calls++
	}
	close(e.answer)
	for {
		switch got := e.call(ctx, t); got {
		case "before":
			calls++
			continue
		case "after":
			t.Logf("%d calls were served before the routes came", calls)
			return
		default:
			t.Fatalf("a call got %q", got)
		}
	}
}

// fed is an Envoy whose listener comes from a file, and whose routes come from an API that answers on command.
type fed struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	dir     string
	address string          // of the listener
	asked   context.Context // done when Envoy has asked for routes
	ask     context.CancelFunc
	answer  chan struct{} // closed when the API may answer
}

var front = envoypatch.Front{Host: "pool.test", Port: 80}

const fetchedHost = "inference|models/llama"

func startFed(ctx context.Context, t *testing.T) *fed {
	t.Helper()
	e := &fed{dir: t.TempDir(), address: freeAddress(t), answer: make(chan struct{})}
	e.asked, e.ask = context.WithCancel(ctx)
	api, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, e)
	go func() { _ = server.Serve(api) }() // until Stop
	t.Cleanup(server.Stop)

	cluster := local.Cluster("api", api.Addr().String())
	cluster["typed_extension_protocol_options"] = local.HTTP2(object{})
	bootstrap := filepath.Join(e.dir, "envoy.json")
	write(t, bootstrap, object{
		"node": object{"id": "waypoint", "cluster": "waypoint"},
		"dynamic_resources": object{
			"ads_config": object{
				"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": []object{{"envoy_grpc": object{"cluster_name": "api"}}},
			},
			"lds_config": object{"resource_api_version": "V3", "path_config_source": object{"path": filepath.Join(e.dir, "listeners.json")}},
		},
		"static_resources": object{"clusters": []object{cluster}},
	})
	e.putChain(t, object{"route_config": directly("before")})
	log := filepath.Join(e.dir, "envoy.log")
	process, err := local.Start(log, filepath.Join("..", "..", ".tools", "envoy"), "--config-path", bootstrap,
		"--use-dynamic-base-id", "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(process.Stop)
	if err := process.Await(ctx, log, func() error { _, err := e.get(ctx); return err }); err != nil {
		t.Fatal(err)
	}
	return e
}

// StreamAggregatedResources answers requests for routes only, once answer is closed.
func (e *fed) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		if request.GetVersionInfo() != "" {
			continue // an acknowledgement
		}
		e.ask()
		select {
		case <-e.answer:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		routes, err := routesOf(request.GetResourceNames()[0], "after")
		if err != nil {
			return err
		}
		if err := stream.Send(&discoveryv3.DiscoveryResponse{
			VersionInfo: "1", Nonce: "1", TypeUrl: request.GetTypeUrl(), Resources: []*anypb.Any{routes},
		}); err != nil {
			return err
		}
	}
}

// directly returns routes that answer all calls with a text.
func directly(text string) object {
	return object{"virtual_hosts": []object{{"name": "all", "domains": []string{"*"}, "routes": []object{{
		"match": object{"prefix": "/"}, "direct_response": object{"status": http.StatusOK, "body": object{"inline_string": text}},
	}}}}}
}

func routesOf(name, text string) (*anypb.Any, error) {
	routes := directly(text)
	routes["name"] = name
	raw, err := json.Marshal(routes)
	if err != nil {
		return nil, err
	}
	var out routev3.RouteConfiguration
	if err := protojson.Unmarshal(raw, &out); err != nil {
		return nil, err
	}
	return anypb.New(&out)
}

// fetching is a chain's connection manager with the controller's patch.
func (e *fed) fetching(t *testing.T) object {
	t.Helper()
	patch, err := envoypatch.FetchedRoutesPatch(front, fetchedHost)
	if err != nil {
		t.Fatal(err)
	}
	manager, ok := patch.Patch.Value.AsMap()["typed_config"].(map[string]any)
	if !ok {
		t.Fatalf("the patch has no connection manager: %v", patch.Patch.Value)
	}
	return object{"rds": manager["rds"]}
}

// putChain gives Envoy a listener whose connection manager has these routes.
func (e *fed) putChain(t *testing.T, routes object) {
	t.Helper()
	manager := local.Typed("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", object{
		"stat_prefix":  "fed",
		"http_filters": []object{{"name": "router", "typed_config": local.Typed("extensions.filters.http.router.v3.Router", nil)}},
	})
	for k, v := range routes {
		manager[k] = v
	}
	listener := local.Listener("fed", manager)
	listener["address"] = local.Socket(e.address)
	listener["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener"
	next := filepath.Join(e.dir, "next.json")
	write(t, next, object{"resources": []object{listener}})
	if err := os.Rename(next, filepath.Join(e.dir, "listeners.json")); err != nil { // Envoy notices a rename
		t.Fatal(err)
	}
}

func (e *fed) get(ctx context.Context) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.address+"/", nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return string(text), err
}

func (e *fed) call(ctx context.Context, t *testing.T) string {
	t.Helper()
	got, err := e.get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (e *fed) wants(ctx context.Context, t *testing.T, want string) {
	t.Helper()
	if got := e.call(ctx, t); got != want {
		t.Fatalf("a call got %q, want %q", got, want)
	}
}

// freeAddress returns an unused address: a listener that is replaced must keep its address.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func write(t *testing.T, path string, content object) {
	t.Helper()
	raw, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}
