package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3" //nolint:depguard // the test plays the proxy
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// program is a running picker.
type program struct {
	addresses map[string]string
	stop      context.CancelFunc
	ended     chan error    // its end, once
	logEnd    chan struct{} // closed after its last line

	mu  sync.Mutex
	log []string
}

// start runs the picker on free ports and waits until it listens.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	p := &program{addresses: map[string]string{}, stop: stop, ended: make(chan error, 1), logEnd: make(chan struct{})}
	logs, stderr := io.Pipe()
	args = append([]string{"--extproc-address=127.0.0.1:0", "--health-address=127.0.0.1:0", "--metrics-address=127.0.0.1:0",
		"--debug-address=127.0.0.1:0", "--drain-delay=0s"}, args...)
	go func() {
		p.ended <- run(ctx, args, stderr)
		_ = stderr.Close() // a pipe's end closes without fail
	}()
	listening := make(chan struct{})
	go p.read(logs, listening)
	t.Cleanup(func() {
		stop()
		<-p.logEnd
	})
	select {
	case <-listening:
	case err := <-p.ended:
		t.Fatalf("the picker ended: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("the picker does not listen after 10 s")
	}
	return p
}

// read keeps the log and learns the addresses from it.
func (p *program) read(logs io.Reader, listening chan<- struct{}) {
	defer close(p.logEnd)
	for lines := bufio.NewScanner(logs); lines.Scan(); {
		var entry struct{ Msg, For, Address string }
		_ = json.Unmarshal(lines.Bytes(), &entry) // what is no JSON has no fields
		p.mu.Lock()
		p.log = append(p.log, lines.Text())
		if entry.Msg == "listening" {
			p.addresses[entry.For] = entry.Address
			if len(p.addresses) == 4 {
				close(listening)
			}
		}
		p.mu.Unlock()
	}
}

// logged says whether a line of the log has the text.
func (p *program) logged(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.log, func(line string) bool { return strings.Contains(line, text) })
}

func (p *program) dial(t *testing.T, server string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(p.addresses[server], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// health asks for a service's health: SERVING, NOT_SERVING, or the error.
func (p *program) health(t *testing.T, server, service string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r, err := healthv1.NewHealthClient(p.dial(t, server)).Check(ctx, &healthv1.HealthCheckRequest{Service: service})
	if err != nil {
		return err.Error()
	}
	return r.GetStatus().String()
}

// open begins a stream and has a GET picked; the stream stays open.
func (p *program) open(t *testing.T, name string) (extprocv3.ExternalProcessor_ProcessClient, *extprocv3.ProcessingResponse) {
	t.Helper()
	stream, r, err := p.try(t, name)
	if err != nil {
		t.Fatal(err)
	}
	return stream, r
}

func (p *program) try(t *testing.T, name string) (extprocv3.ExternalProcessor_ProcessClient, *extprocv3.ProcessingResponse, error) {
	t.Helper()
	ctx := metadata.AppendToOutgoingContext(t.Context(), pool.NameHeader, name)
	stream, err := extprocv3.NewExternalProcessorClient(p.dial(t, "extproc")).Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	headers := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{
		RequestHeaders: &extprocv3.HttpHeaders{EndOfStream: true},
	}}
	if err := stream.Send(headers); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	return stream, r, err
}

// pick is the first endpoint picked for a GET, or the refusal's status.
func (p *program) pick(t *testing.T, name string) string {
	t.Helper()
	stream, r := p.open(t, name)
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if i := r.GetImmediateResponse(); i != nil {
		return i.GetStatus().GetCode().String()
	}
	return string(r.GetRequestHeaders().GetResponse().GetHeaderMutation().GetSetHeaders()[0].GetHeader().GetRawValue())
}

func (p *program) get(t *testing.T, path string) string {
	t.Helper()
	r, err := http.Get("http://" + p.addresses["metrics"] + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	if r.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", path, r.Status)
	}
	return string(body)
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func writePools(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestRunStatic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pools.yaml")
	writePools(t, path, "pools:\n- name: models/llama\n  endpoints: ['10.0.0.1:8000']\n")
	p := start(t, "--static", path)

	// 1. It is ready under all names, on both servers.
	eventually(t, "readiness", func() bool { return p.health(t, "health", readinessService) == "SERVING" })
	for _, service := range []string{"", livenessService, readinessService, "envoy.service.ext_proc.v3.ExternalProcessor"} {
		for _, server := range []string{"health", "extproc"} {
			if got := p.health(t, server, service); got != "SERVING" {
				t.Errorf("health of %q on %s is %s", service, server, got)
			}
		}
	}
	// 2. It picks, and refuses calls to unknown pools.
	if got := p.pick(t, "models/llama"); got != "10.0.0.1:8000" {
		t.Errorf("picked %s, want 10.0.0.1:8000", got)
	}
	if got := p.pick(t, "models/none"); got != "ServiceUnavailable" {
		t.Errorf("an unknown pool gives %s, want ServiceUnavailable", got)
	}
	if got := p.get(t, "/metrics"); !strings.Contains(got, `inference_waypoint_picks_total{outcome="load",pool="models/llama"} 1`) {
		t.Error("/metrics does not tell of the pick")
	}
	if got := p.get(t, "/healthz"); got != "ok\n" {
		t.Errorf("/healthz says %q", got)
	}
	// 3. A change takes effect while it runs; a wrong one does not.
	writePools(t, path, "pools:\n- name: models/llama\n  endpoints: ['10.0.0.2:8000']\n")
	eventually(t, "the new endpoint", func() bool { return p.pick(t, "models/llama") == "10.0.0.2:8000" })
	writePools(t, path, "pools: 7\n")
	eventually(t, "a word on the wrong file", func() bool { return p.logged("last good content stays") })
	if got := p.pick(t, "models/llama"); got != "10.0.0.2:8000" {
		t.Errorf("after a wrong file picked %s, want 10.0.0.2:8000", got)
	}
	// 4. It ends without an error.
	p.stop()
	if err := <-p.ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

// At a drain, health checks change first, calls in flight go on, and the picker ends with the last of them.
func TestRunDrains(t *testing.T) {
	p := start(t, "--static", "../../samples/static/pools.yaml", "--drain-timeout=1m")
	eventually(t, "readiness", func() bool { return p.health(t, "health", readinessService) == "SERVING" })
	stream, _ := p.open(t, "models/llama")
	p.stop()
	eventually(t, "NOT_SERVING", func() bool { return p.health(t, "health", readinessService) == "NOT_SERVING" })
	if got := p.health(t, "health", livenessService); got != "SERVING" {
		t.Errorf("a draining picker's liveness is %s", got)
	}
	answer := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}}}
	if err := stream.Send(answer); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Errorf("a call in flight was cut off: %v", err)
	}
	select {
	case err := <-p.ended:
		t.Fatalf("ended with a call in flight: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := <-p.ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

// The stream of a call that outlasts the drain ends with OK, so that no proxy cuts its answer off.
func TestRunDrainIsBoundedAndHarmsNoCall(t *testing.T) {
	p := start(t, "--static", "../../samples/static/pools.yaml", "--drain-timeout=100ms")
	stream, _ := p.open(t, "models/llama")
	p.stop()
	if r, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream of a call in flight ends with %v, %v, want OK", r, err)
	}
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a call in flight holds the end up")
	}
}

// A stream that never brings a request does not delay the end either.
func TestRunDrainEndsSilentStreams(t *testing.T) {
	p := start(t, "--static", "../../samples/static/pools.yaml", "--drain-timeout=0s")
	stream, err := extprocv3.NewExternalProcessorClient(p.dial(t, "extproc")).Process(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream", func() bool {
		return strings.Contains(p.get(t, "/metrics"), `inference_waypoint_streams_in_flight{pool=""} 1`)
	})
	p.stop()
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ends with %v, want it cut off as unavailable", err)
	}
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a silent stream holds the end up")
	}
}

func TestRunLimitsStreams(t *testing.T) {
	p := start(t, "--static", "../../samples/static/pools.yaml", "--max-streams=1", "--drain-timeout=0s")
	p.open(t, "models/llama")
	if _, _, err := p.try(t, "models/llama"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a second call ends with %v, want ResourceExhausted", err)
	}
}

func TestRunServesProfilesIfAskedTo(t *testing.T) {
	p := start(t, "--static", "../../samples/static/pools.yaml", "--pprof")
	if got := p.get(t, "/debug/pprof/goroutine?debug=1"); !strings.Contains(got, "goroutine profile") {
		t.Errorf("the profile is %.100q", got)
	}
}

// While its cluster cannot be reached, the picker is alive and not ready, and stops without an error.
func TestRunIsNotReadyBeforeTheCluster(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	content := `{apiVersion: v1, kind: Config, current-context: c,
contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]}`
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "--kubeconfig", kubeconfig)
	if got := p.health(t, "health", livenessService); got != "SERVING" {
		t.Errorf("liveness is %s", got)
	}
	if got := p.health(t, "health", readinessService); got != "NOT_SERVING" {
		t.Errorf("readiness is %s", got)
	}
	p.stop()
	if err := <-p.ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestRunFails(t *testing.T) {
	taken := start(t, "--static", "../../samples/static/pools.yaml")
	tests := map[string]struct {
		args []string
		want []string
	}{
		"all bad flags at once": {
			[]string{"x", "--static=a", "--kubeconfig=b", "--extproc-address=c:d:e", "--drain-delay=-1s", "--drain-timeout=-1s",
				"--max-message-bytes=0", "--max-streams=-1", "--max-held-bytes=-1", "--max-index-bytes=-1", "--service=picker", "--tls-cert-file=f", "--log-level=loud"},
			[]string{`"x"`, "--kubeconfig", "--extproc-address", "--drain-delay", "--drain-timeout",
				"--max-message-bytes", "--max-streams", "--max-held-bytes", "--max-index-bytes", "--service", "--tls-key-file", `"loud"`},
		},
		"authorities without a certificate": {[]string{"--tls-client-ca-file=f"}, []string{"--tls-client-ca-file needs --tls-cert-file"}},
		"missing certificate": {
			[]string{"--static=../../samples/static/pools.yaml", "--tls-cert-file=/nonexistent/cert", "--tls-key-file=/nonexistent/key"},
			[]string{"reading TLS certificates", "/nonexistent/cert", "/nonexistent/key"},
		},
		"unknown flag":    {[]string{"--weights=1"}, []string{"--weights"}},
		"missing file":    {[]string{"--static=/nonexistent/pools.yaml"}, []string{"/nonexistent/pools.yaml"}},
		"missing cluster": {[]string{"--kubeconfig=/nonexistent/kubeconfig"}, []string{"/nonexistent/kubeconfig", "--static"}},
		"address in use": {
			[]string{"--static=../../samples/static/pools.yaml", "--extproc-address=127.0.0.1:0", "--health-address=" + taken.addresses["health"]},
			[]string{"listening for health", "in use"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), tt.args, io.Discard)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not tell of %s: %v", want, err)
				}
			}
		})
	}
}

// Go's memory limit is a part of the container's memory, unless GOMEMLIMIT is set.
func TestMemoryLimitLeavesRoom(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetMemoryLimit(before) })
	const container = 8 << 30
	log := slog.New(slog.DiscardHandler)
	if got := limitMemory(memlimit.Limit(container), log); got < container*84/100 || got > container*86/100 || got != debug.SetMemoryLimit(-1) {
		t.Errorf("the limit is %d of %d bytes, and Go has %d", got, container, debug.SetMemoryLimit(-1))
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	debug.SetMemoryLimit(1 << 30) // as the runtime does
	if got := limitMemory(memlimit.Limit(container), log); got != 1<<30 {
		t.Errorf("GOMEMLIMIT is overruled: the limit is %d", got)
	}
}

func TestRunHelp(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), []string{"--help"}, &out); err != nil {
		t.Errorf("--help is an error: %v", err)
	}
	if !strings.Contains(out.String(), "--static file") {
		t.Errorf("the usage lacks --static: %s", out.String())
	}
}
