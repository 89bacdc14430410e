package command

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

// run runs a command line without a cluster.
func run(ctx context.Context, t *testing.T, stdin string, args ...string) (out, stderr string, code int) {
	t.Helper()
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	var o, e bytes.Buffer
	code = Run(ctx, args, genericiooptions.IOStreams{In: strings.NewReader(stdin), Out: &o, ErrOut: &e})
	return o.String(), e.String(), code
}

const poolFile = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: llama, namespace: models}
spec: {selector: {matchLabels: {app: llama}}, targetPorts: [{number: 8000}]}
`

func TestRun(t *testing.T) {
	tests := map[string]struct {
		stdin    string
		args     []string
		wantCode int
		want     []string // of both streams together
	}{
		"help":                    {args: []string{"--help"}, want: []string{"kubectl inference [command]", "doctor", "explain", "render", "status", "top", "completion", "--kubeconfig"}},
		"help of a command":       {args: []string{"explain", "--help"}, want: []string{"kubectl inference explain -f FILE POOL", "Examples:", "--picker-url"}},
		"completion":              {args: []string{"completion", "bash"}, want: []string{"__complete"}},
		"completion of formats":   {args: []string{"__complete", "status", "-o", ""}, want: []string{"table\nwide\njson\nyaml\n"}},
		"an unknown command":      {args: []string{"fix"}, wantCode: 1, want: []string{`kubectl inference: unknown command "fix"`}},
		"an unknown format":       {args: []string{"status", "-o", "xml"}, wantCode: 1, want: []string{"want one of table, wide, json, yaml"}},
		"explain without a file":  {args: []string{"explain", "llama"}, wantCode: 1, want: []string{`required flag(s) "filename"`}},
		"explain nothing":         {args: []string{"explain", "-f", "-", "llama"}, wantCode: 1, want: []string{"the request: it is empty"}},
		"an address that is none": {stdin: "{}", args: []string{"explain", "-f", "-", "llama", "--picker-url", "localhost:9090"}, wantCode: 1, want: []string{"--picker-url", "http://127.0.0.1:9091"}},
		"a picker that is gone":   {args: []string{"top", "llama", "--once", "--picker-url", "http://127.0.0.1:1"}, wantCode: 1, want: []string{"does not answer", "connection refused"}},
		"an interval too short":   {args: []string{"top", "llama", "--interval", "1ms"}, wantCode: 1, want: []string{"want 200ms or more"}},
		"a name and all":          {args: []string{"status", "llama", "-A"}, wantCode: 1, want: []string{"cannot be used with"}},
		"no API server":           {args: []string{"status", "-s", "https://127.0.0.1:1"}, wantCode: 1, want: []string{"the API server does not answer", "next: "}},
		"doctor, no API server":   {args: []string{"doctor", "-s", "https://127.0.0.1:1", "-o", "json"}, wantCode: 2, want: []string{`"result": "unknown"`}},
		"render as a table":       {stdin: poolFile, args: []string{"render", "-f", "-", "-o", "table"}, wantCode: 1, want: []string{"want yaml or json"}},
		"render":                  {stdin: poolFile, args: []string{"render", "-f", "-"}, want: []string{"kind: EnvoyFilter", "kind: ServiceEntry", "- llama.models.inference.internal"}},
		"render a refused pool":   {stdin: poolFile, args: []string{"render", "-f", "-", "--default-picker="}, wantCode: 1, want: []string{"not served: pool models/llama", "no endpoint picker"}},
		"render with a bad flag":  {stdin: poolFile, args: []string{"render", "-f", "-", "--default-picker=a/b:9002x"}, wantCode: 1, want: []string{"is not namespace/service:port"}},
		"render without a pool":   {stdin: "", args: []string{"render", "-f", "-"}, wantCode: 1, want: []string{"no InferencePool"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, stderr, code := run(t.Context(), t, tt.stdin, tt.args...)
			if code != tt.wantCode {
				t.Errorf("exit code %d, want %d", code, tt.wantCode)
			}
			for _, want := range tt.want {
				if !strings.Contains(out+stderr, want) {
					t.Errorf("it does not say %q:\n%s%s", want, out, stderr)
				}
			}
		})
	}
}

// TestAPIServersThatRefuse checks the texts for an API server that has no kinds, or accepts no credentials.
func TestAPIServersThatRefuse(t *testing.T) {
	tests := map[string]struct {
		status int
		body   string
		want   string
	}{
		"who we are":  {http.StatusUnauthorized, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Unauthorized","code":401}`, "does not accept the credentials"},
		"everything":  {http.StatusNotFound, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`, "cannot list inferencepools"},
		"to say why":  {http.StatusInternalServerError, `no JSON`, "cannot list inferencepools"},
		"to be known": {http.StatusOK, `<html>a login page</html>`, "cannot list inferencepools"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(tt.body))
			}))
			defer server.Close()
			out, stderr, code := run(t.Context(), t, "", "status", "-s", server.URL)
			if code != 1 || !strings.Contains(stderr, tt.want) || out != "" || strings.Count(stderr, "\n") > 2 {
				t.Errorf("exit code %d, and it says:\n%s%s", code, out, stderr)
			}
		})
	}
}

// pickerAt answers as a picker does.
func pickerAt(t *testing.T, answer func(look int) (int, any)) string {
	t.Helper()
	looks := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/debug/pools" || r.URL.Query().Get("pool") != "default/llama" {
			t.Errorf("asked for %s %s", r.Method, r.URL)
		}
		looks++
		status, body := answer(looks)
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func liveState(name string) livestate.State {
	return livestate.State{Pools: []livestate.Pool{{Name: "default/llama", Endpoints: []livestate.Endpoint{{Name: name, Ready: true}}}}}
}

func TestTopOnce(t *testing.T) {
	at := pickerAt(t, func(int) (int, any) { return http.StatusOK, liveState("llama-0") })
	// The output is not a terminal, so --once is the default.
	out, stderr, code := run(t.Context(), t, "", "top", "llama", "--picker-url", at)
	if code != 0 || !strings.Contains(out, "llama-0") || strings.Contains(out, "\x1b") {
		t.Errorf("exit code %d, and it says:\n%s%s", code, out, stderr)
	}
	out, _, _ = run(t.Context(), t, "", "top", "llama", "--picker-url", at, "-o", "json")
	var state livestate.State
	if err := json.Unmarshal([]byte(out), &state); err != nil || state.Pools[0].Endpoints[0].Name != "llama-0" {
		t.Errorf("as JSON: %v, %s", err, out)
	}
}

// In a terminal the pool is shown again and again, and a look that fails does not end it.
func TestTopWatches(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	at := pickerAt(t, func(look int) (int, any) {
		switch look {
		case 1:
			return http.StatusOK, liveState("first")
		case 2:
			return http.StatusServiceUnavailable, map[string]string{"error": "out for lunch"}
		case 3:
			return http.StatusOK, liveState("third")
		default:
			cancel()
			return http.StatusOK, liveState("fourth")
		}
	})
	var out bytes.Buffer
	shared := &options{IOStreams: genericiooptions.IOStreams{Out: &out}, flags: genericclioptions.NewConfigFlags(false)}
	o := &topOptions{options: shared, interval: time.Millisecond, pickerURL: at}
	picker, _, err := o.picker(ctx, at, "default", "llama")
	if err != nil {
		t.Fatal(err)
	}
	if err := o.watch(ctx, "default", "llama", lookAt(picker, "default", "llama")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{clearAll, "first", "out for lunch", "third", below} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not show %q: %q", want, out.String())
		}
	}
	if strings.Count(out.String(), home) < 3 {
		t.Error("it does not begin anew for each look")
	}
}

// The example in the help works.
func TestRenderQuickstart(t *testing.T) {
	root := filepath.Join("..", "..", "..", "..")
	if _, err := os.Stat(filepath.Join(root, "samples", "quickstart", "pool.yaml")); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := run(t.Context(), t, "", "render", "-f", filepath.Join(root, "samples", "quickstart", "pool.yaml"), "--waypoint", "infra/shared", "-o", "json")
	if code != 0 || !strings.Contains(out, `"name": "shared"`) {
		t.Errorf("exit code %d, and it says:\n%s%s", code, out, stderr)
	}
}
