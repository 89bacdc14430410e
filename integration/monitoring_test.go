package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// prometheusAddress is where the tests' Prometheus listens, in the mesh's own network.
const prometheusAddress = "127.0.0.1:9099"

// onlyWhenWrong are metrics that programs show once something is wrong, and that a mesh in order need not have.
var onlyWhenWrong = []string{"pilot_total_xds_rejects", "inference_waypoint_refusals_total"}

// TestMonitoring runs every query of the dashboards and alerts in a real Prometheus that reads the picker, the
// controller, the waypoint and istiod while calls flow: each names only metrics that exist, and every panel but those of
// what goes wrong shows something.
func TestMonitoring(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	stop := flow(ctx, 4)
	defer stop()
	startPrometheus(ctx, t)
	var p prometheus
	// Averages of servers come with the readings of some seconds.
	eventually(ctx, t, "all metrics", func(ctx context.Context) error {
		return p.has(ctx, "rate(inference_waypoint_picks_total[10s]) > 0 and on () inference_waypoint_endpoint_cached_ratio"+
			` and on () {__name__=~"envoy_http_.*ext_proc_streams_started"} and on () pilot_info`)
	})
	names := p.names(ctx, t)
	for where, query := range queries(t) {
		t.Run(where, func(t *testing.T) {
			used := p.metricsOf(ctx, t, query)
			if len(used) == 0 {
				t.Errorf("%s names no metric", query)
			}
			wrongOnly := strings.HasPrefix(where, "alert") // these are to show nothing; promtool tests that they can
			for _, name := range used {
				later := slices.Contains(onlyWhenWrong, name)
				if !later && !slices.ContainsFunc(names, func(n string) bool { return named(name).MatchString(n) }) {
					t.Errorf("there is no metric %s, which is in %s", name, query)
				}
				wrongOnly = wrongOnly || later
			}
			if !wrongOnly {
				eventually(ctx, t, "data for "+query, func(ctx context.Context) error { return p.has(ctx, query) })
			}
		})
	}
}

// TestAlerts has promtool look the rules over and run their tests.
func TestAlerts(t *testing.T) {
	ctx := begin(t, time.Minute)
	dir := t.TempDir()
	writeRules(t, dir)
	tests, err := os.ReadFile("testdata/alerts.yaml")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "alerts.yaml"), tests, 0o600))
	for _, args := range [][]string{{"check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"}, {"test", "rules", "alerts.yaml"}} {
		cmd := exec.CommandContext(ctx, filepath.Join(the.Root, ".tools", "promtool"), args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	runbook, err := os.ReadFile(filepath.Join(the.Root, "docs", "runbook.md"))
	must(t, err)
	for name := range alerts(t) {
		if !bytes.Contains(runbook, []byte("\n## "+name+"\n")) {
			t.Errorf("the runbook has no heading %s", name)
		}
	}
}

// TestAccessLog reads the line that a waypoint writes of a call: it names what was picked, who served, and the pool.
func TestAccessLog(t *testing.T) {
	ctx := begin(t, time.Minute)
	eventually(ctx, t, "a line with the pick", func(ctx context.Context) error {
		if err := ask(ctx, "Who serves this?"); err != nil {
			return err
		}
		dir := t.TempDir()
		if err := the.KeepLogs(filepath.Join(dir, "logs")); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(dir, "logs", "models.waypoint-*.log"))
		if err != nil {
			return err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if namesPick(string(text)) {
				return nil
			}
		}
		return fmt.Errorf("none in %d logs", len(files))
	})
}

// namesPick says whether a log has the line of a call that went where it was to go.
func namesPick(log string) bool {
	for line := range strings.Lines(log) {
		_, fields, ok := strings.Cut(strings.TrimSpace(line), "picked=")
		if !ok {
			continue
		}
		parts := strings.Fields(fields)
		if len(parts) != 3 {
			continue
		}
		first, _, _ := strings.Cut(parts[0], ",")
		served, isServed := strings.CutPrefix(parts[1], "served=")
		if strings.HasSuffix(first, ":8000") && isServed && strings.HasSuffix(served, first) && parts[2] == "pool=inference|models/llama" {
			return true
		}
	}
	return false
}

// queries are all of the dashboards and the alerts, by where they stand.
func queries(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	files, err := filepath.Glob(filepath.Join(the.Root, "manifests/monitoring/dashboards/*.json"))
	must(t, err)
	if len(files) != 3 {
		t.Fatalf("the dashboards are %v", files)
	}
	for _, file := range files {
		var board struct {
			Panels []struct {
				Title   string
				Targets []struct{ RefID, Expr string }
			}
		}
		text, err := os.ReadFile(file)
		must(t, err)
		must(t, json.Unmarshal(text, &board))
		for _, panel := range board.Panels {
			for _, target := range panel.Targets {
				query := strings.NewReplacer("$pool", ".*", "$__rate_interval", "10s").Replace(target.Expr)
				out[fmt.Sprintf("%s %s %s", filepath.Base(file), panel.Title, target.RefID)] = query
			}
		}
	}
	for name, query := range alerts(t) {
		out["alert "+name] = query
	}
	return out
}

// alerts are the queries of the alerts by their names.
func alerts(t *testing.T) map[string]string {
	t.Helper()
	groups, _, err := unstructured.NestedSlice(rules(t).Object, "spec", "groups")
	must(t, err)
	out := map[string]string{}
	for _, group := range groups {
		list, _, err := unstructured.NestedSlice(group.(map[string]any), "rules")
		must(t, err)
		for _, rule := range list {
			name, _, err := unstructured.NestedString(rule.(map[string]any), "alert")
			must(t, err)
			query, _, err := unstructured.NestedString(rule.(map[string]any), "expr")
			must(t, err)
			out[name] = query
		}
	}
	if len(out) == 0 {
		t.Fatal("there are no alerts")
	}
	return out
}

func rules(t *testing.T) *unstructured.Unstructured {
	t.Helper()
	objects, err := the.Read(filepath.Join(the.Root, "manifests/monitoring/rules.yaml"))
	must(t, err)
	if len(objects) != 1 {
		t.Fatalf("%d objects in rules.yaml, want 1", len(objects))
	}
	return objects[0]
}

// writeRules writes the rules as Prometheus itself reads them.
func writeRules(t *testing.T, dir string) {
	t.Helper()
	text, err := yaml.Marshal(rules(t).Object["spec"])
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "rules.yaml"), text, 0o600))
}

// prometheus is the one that startPrometheus runs.
type prometheus struct{}

// startPrometheus starts one that reads all that the mesh has, and waits until it answers.
func startPrometheus(ctx context.Context, t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	writeRules(t, dir)
	jobs := []map[string]any{
		job("picker", "/metrics", "9090", pickers(ctx, t)),
		job("controller", "/metrics", "9090", pods(ctx, t, "inference-system", client.MatchingLabels{"app.kubernetes.io/name": "inference-controller"})),
		job("waypoint", "/stats/prometheus", "15000", pods(ctx, t, "models", client.MatchingLabels{"gateway.networking.k8s.io/gateway-name": "waypoint"})),
		job("istiod", "/metrics", "15014", pods(ctx, t, "istio-system", client.MatchingLabels{"app": "istiod"})),
	}
	config, err := yaml.Marshal(map[string]any{
		"global":     map[string]any{"scrape_interval": "1s", "evaluation_interval": "1s"},
		"rule_files": []string{"rules.yaml"}, "scrape_configs": jobs,
	})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "prometheus.yaml"), config, 0o600))
	run, cancel := context.WithCancel(ctx)
	var log bytes.Buffer
	cmd := exec.CommandContext(run, filepath.Join(the.Root, ".tools", "prometheus"), "--config.file="+filepath.Join(dir, "prometheus.yaml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+prometheusAddress, "--log.level=warn")
	cmd.Stderr = &log
	must(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("Prometheus says:\n%s", log.String())
		}
	})
	eventually(ctx, t, "Prometheus", func(ctx context.Context) error { return prometheus{}.ask(ctx, "status/buildinfo", nil, nil) })
}

// job reads the pods at a port.
func job(name, path, port string, from []corev1.Pod) map[string]any {
	var targets []string
	for i := range from {
		targets = append(targets, net.JoinHostPort(from[i].Status.PodIP, port))
	}
	return map[string]any{"job_name": name, "metrics_path": path, "static_configs": []any{map[string]any{"targets": targets}}}
}

// ask makes one request of the API and reads its data.
func (prometheus) ask(ctx context.Context, what string, query url.Values, data any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+prometheusAddress+"/api/v1/"+what+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	answer := struct{ Data any }{data}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, text)
	}
	return json.Unmarshal(text, &answer)
}

// named matches the names that a query's matcher of names does.
func named(pattern string) *regexp.Regexp { return regexp.MustCompile("^(?:" + pattern + ")$") }

// names are the metrics that there are.
func (p prometheus) names(ctx context.Context, t *testing.T) []string {
	t.Helper()
	var out []string
	must(t, p.ask(ctx, "label/__name__/values", nil, &out))
	return out
}

// has fails where a query gives nothing.
func (p prometheus) has(ctx context.Context, query string) error {
	var data struct{ Result []json.RawMessage }
	if err := p.ask(ctx, "query", url.Values{"query": {query}}, &data); err != nil {
		return err
	}
	if len(data.Result) == 0 {
		return errors.New("it gives nothing")
	}
	return nil
}

// metricsOf are the metrics that a query names, as Prometheus itself parses it.
func (p prometheus) metricsOf(ctx context.Context, t *testing.T, query string) []string {
	t.Helper()
	var tree any
	must(t, p.ask(ctx, "parse_query", url.Values{"query": {query}}, &tree))
	var out []string
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case []any:
			for _, n := range node {
				walk(n)
			}
		case map[string]any:
			if node["name"] == "__name__" { // a matcher; that of a plain name is among them
				if name, _ := node["value"].(string); name != "" {
					out = append(out, name)
				}
			}
			for _, n := range node {
				walk(n)
			}
		}
	}
	walk(tree)
	return out
}
