package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/prompt"
	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/server"
	"github.com/inference-waypoint/inference-waypoint/internal/modules"
)

// modelMetrics are the metrics of every model server: vLLM's, idle.
const modelMetrics = `# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="` + prompt.Model + `"} 0.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="` + prompt.Model + `"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="` + prompt.Model + `"} 0.1
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="0",running_lora_adapters="",waiting_lora_adapters=""} 1.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",engine="0",num_gpu_blocks="31250"} 1.0
`

const (
	answerPieces = 1000
	// piecePause keeps pieces apart, so that Envoy gets them one by one, as from a model that generates them.
	piecePause = time.Millisecond
)

// serveModels stands in for all model servers: all addresses of the pods' range are local to this machine.
func (b *bench) serveModels() error {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", modelPort))
	if err != nil {
		return fmt.Errorf("listening as model servers: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = w.Write([]byte(modelMetrics))
	})
	mux.HandleFunc("POST /v1/chat/completions", answerInPieces)
	b.models = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = b.models.Serve(listener) }() // ends at Close
	return nil
}

// answerInPieces streams an answer of answerPieces tokens.
func answerInPieces(w http.ResponseWriter, r *http.Request) {
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	tick := time.NewTicker(piecePause)
	defer tick.Stop()
	for i := range answerPieces {
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
		_, err := fmt.Fprintf(w, `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1795500000,"model":%q,"choices":[{"index":0,"delta":{"content":" word%d"},"finish_reason":null}]}`+"\n\n", prompt.Model, i)
		if err != nil || out.Flush() != nil {
			return
		}
	}
	_, _ = fmt.Fprint(w, "data: [DONE]\n\n")
}

// referenceDefinitions are the kinds, beside InferencePool, that this version of the reference needs.
var referenceDefinitions = []string{
	"inference.networking.x-k8s.io_inferencemodelrewrites.yaml", "inference.networking.x-k8s.io_inferenceobjectives.yaml",
}

// defineReferenceKinds defines in the API server the kinds that the reference needs.
func (b *bench) defineReferenceKinds(ctx context.Context) error {
	const tool, module = "integration/tools/reference-epp", "sigs.k8s.io/gateway-api-inference-extension"
	dir, err := modules.Dir(ctx, filepath.Join(b.root, tool), module)
	if err != nil {
		return err
	}
	for _, file := range referenceDefinitions {
		if err := b.mesh.Apply(ctx, filepath.Join(dir, "config", "crd", "bases", file)); err != nil {
			return err
		}
	}
	return nil
}

// makePools makes the driver's pools in the API server: ready pods of an image that nobody runs, at the addresses of the
// stand-in for model servers.
func (b *bench) makePools(ctx context.Context) error {
	objects := "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + namespace + "}\n"
	for _, n := range fleetSizes {
		objects += poolObject(namespace, fmt.Sprintf("pool-%d", n), fmt.Sprintf("pool-%d", n), "{name: reference, port: {number: 9002}}")
	}
	if err := b.mesh.ApplyYAML(ctx, objects); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, n := range fleetSizes {
		for i := range n {
			group.Go(func() error { return b.makePod(ctx, n, i) })
		}
	}
	return group.Wait()
}

func poolObject(namespace, name, app, picker string) string {
	object := fmt.Sprintf(`---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: %s, namespace: %s}
spec:
  selector: {matchLabels: {app: %s}}
  targetPorts: [{number: %d}]
`, name, namespace, app, modelPort)
	if picker != "" {
		object += "  endpointPickerRef: " + picker + "\n"
	}
	return object
}

func (b *bench) makePod(ctx context.Context, pool, i int) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("pool-%d-%d", pool, i), Labels: map[string]string{"app": fmt.Sprintf("pool-%d", pool)}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "model", Image: "bench/nobody-runs-this"}}},
	}
	if err := b.mesh.Client.Create(ctx, pod); err != nil {
		return fmt.Errorf("making pod %s: %w", pod.Name, err)
	}
	address := podAddress(pool, i)
	status, err := json.Marshal(map[string]any{"status": corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}})
	if err != nil {
		return fmt.Errorf("encoding the status of pod %s: %w", pod.Name, err)
	}
	if err := b.mesh.Client.Status().Patch(ctx, pod, client.RawPatch(types.MergePatchType, status)); err != nil {
		return fmt.Errorf("reporting pod %s: %w", pod.Name, err)
	}
	return nil
}

// startReference starts the reference for the pool of so many endpoints and waits until it knows all of them.
func (b *bench) startReference(ctx context.Context, endpoints int) (*contender, error) {
	c, err := b.startReferenceFor(ctx, types.NamespacedName{Namespace: namespace, Name: fmt.Sprintf("pool-%d", endpoints)})
	if err != nil {
		return nil, err
	}
	return c, b.awaitReference(ctx, c, endpoints)
}

// startReferenceFor starts the reference for a pool. The reference listens on all addresses, including all pods'.
func (b *bench) startReferenceFor(ctx context.Context, pool types.NamespacedName) (*contender, error) {
	const metrics = referencePort + 88
	p, err := server.Start(ctx, server.Command{
		Name: "reference", Path: filepath.Join(b.root, ".tools", "reference-epp"),
		Args: []string{
			"--pool-name=" + pool.Name, "--pool-namespace=" + pool.Namespace, "--secure-serving=false",
			"--grpc-port=" + strconv.Itoa(referencePort), "--grpc-health-port=" + strconv.Itoa(referencePort+1),
			"--metrics-port=" + strconv.Itoa(metrics), "--metrics-endpoint-auth=false",
			"--tracing=false", "--zap-log-level=error", "--refresh-metrics-interval=1s",
		},
		Env:     []string{"KUBECONFIG=" + b.mesh.Kubeconfig(), "NAMESPACE=" + pool.Namespace},
		Address: net.JoinHostPort("127.0.0.1", strconv.Itoa(referencePort)),
		Metrics: fmt.Sprintf("http://127.0.0.1:%d/metrics", metrics),
	}, b.logs)
	return &contender{Process: p}, err
}

// referencePort differs from the port of the mesh's own picker, which listens only on its pod's address.
const referencePort = 19002

// awaitReference waits until the reference knows all endpoints.
func (b *bench) awaitReference(ctx context.Context, c *contender, endpoints int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not within a minute"))
	defer cancel()
	return b.mesh.Await(ctx, "the reference to know its endpoints", func(ctx context.Context) error {
		if err := c.Running(); err != nil {
			return err
		}
		values, err := c.Values(ctx)
		if err != nil {
			return err
		}
		if known := values["inference_pool_ready_pods"]; int(known) != endpoints {
			return fmt.Errorf("it knows %g of %d", known, endpoints)
		}
		return nil
	})
}

// countPieces counts the pieces in a part of an answer.
func countPieces(answer []byte) int { return bytes.Count(answer, []byte("data: {")) }
