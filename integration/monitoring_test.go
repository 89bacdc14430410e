package integration

import (
	"bytes"
	"cmp"
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
	"strconv"
	"strings"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// prometheusAddress is the address of the tests' Prometheus, in the mesh's own network.
const prometheusAddress = "127.0.0.1:9099"

// onlyWhenWrong are metrics that programs have only after an error, and that a healthy mesh may lack.
var onlyWhenWrong = []string{"pilot_total_xds_rejects", "inference_waypoint_refusals_total"}

// TestMonitoring runs each query of the dashboards and alerts while calls flow, in a real Prometheus that scrapes what our
// PodMonitors select. Queries name only metrics that exist, and each panel shows something, except panels about errors.
func TestMonitoring(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	stop := flow(ctx, 4)
	defer stop()
	startPrometheus(ctx, t)
	var p prometheus
	// Averages of servers need readings of some seconds.
	eventually(ctx, t, "all metrics", func(ctx context.Context) error {
		return p.has(ctx, "rate(inference_waypoint_picks_total[10s]) > 0 and on () inference_waypoint_endpoint_cached_ratio"+
			` and on () {__name__=~"envoy_http_.*ext_proc_[a-z2-7]{16}_streams_started"} and on () inference_waypoint_picked`)
	})
	for _, job := range []string{"inference-waypoint", "inference-waypoint-waypoints", "inference-waypoint-istiod"} {
		eventually(ctx, t, "all pods of PodMonitor "+job, func(ctx context.Context) error { return p.has(ctx, fmt.Sprintf("min(up{job=%q}) == 1", job)) })
	}
	names := p.names(ctx, t)
	for _, label := range p.labels(ctx, t) {
		if strings.HasPrefix(label, "exported_") {
			t.Fatalf("a metric's own label has become %s", label)
		}
	}
	for where, query := range queries(t) {
		t.Run(where, func(t *testing.T) {
			used := p.metricsOf(ctx, t, query)
			if len(used) == 0 {
				t.Errorf("%s names no metric", query)
			}
			wrongOnly := strings.HasPrefix(where, "alert") // alerts must show nothing here; promtool tests that they can
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

// TestAlerts runs promtool's checks of the rules and their unit tests.
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

// The autoscaler's metrics are those of the rules for the Prometheus adapter, whose queries give a number for each picker, also for
// one that stands by.
func TestAutoscalerHasItsMetrics(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	setPickers(ctx, t, 2, "")
	stop := flow(ctx, 4)
	defer stop()
	startPrometheus(ctx, t)
	wanted := map[string]bool{}
	for _, name := range scaledBy(t) {
		wanted[name] = true
	}
	for name, query := range adapterQueries(t) {
		if !wanted[name] {
			t.Errorf("the autoscaler does not use the metric %s", name)
		}
		delete(wanted, name)
		var names []string
		for _, p := range stayingPickers(ctx, t) {
			names = append(names, p.Name)
		}
		query = strings.NewReplacer("<<.GroupBy>>", "pod", "<<.LabelMatchers>>", fmt.Sprintf("namespace=%q,pod=~%q", system, strings.Join(names, "|")), "[2m]", "[10s]").Replace(query)
		eventually(ctx, t, "a number for each picker", func(ctx context.Context) error {
			var p prometheus
			if err := p.has(ctx, fmt.Sprintf("count(%s >= 0) == %d", query, len(names))); err != nil {
				return err
			}
			return p.has(ctx, fmt.Sprintf("max(%s) > 0", query))
		})
	}
	if len(wanted) > 0 {
		t.Errorf("the rules have no %v, which the autoscaler uses", wanted)
	}
}

// The samples that scale model servers ask for a metric that the picker has for a pool that is called, by the names that they use, and
// the API server takes the HorizontalPodAutoscaler.
func TestModelServersAreScaledByWhatIsNeeded(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	stop := flow(ctx, 4)
	defer stop()
	startPrometheus(ctx, t)
	read := func(file string, into any) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(the.Root, "samples/autoscaling", file))
		must(t, err)
		must(t, yaml.Unmarshal(text, into))
	}
	var hpa autoscalingv2.HorizontalPodAutoscaler
	read("hpa.yaml", &hpa)
	must(t, the.Client.Create(ctx, &hpa, client.DryRunAll))
	var scaled struct {
		Spec struct {
			Triggers []struct{ Metadata struct{ Query string } }
		}
	}
	read("keda.yaml", &scaled)
	var adapter struct {
		Rules struct {
			External []struct {
				SeriesQuery, MetricsQuery string
				Name                      struct{ As string }
			}
		}
	}
	read("prometheus-adapter.yaml", &adapter)
	metric, rule := hpa.Spec.Metrics[0].External.Metric, adapter.Rules.External[0]
	if rule.Name.As != metric.Name {
		t.Errorf("the rule makes %s, and the autoscaler asks for %s", rule.Name.As, metric.Name)
	}
	var labels []string
	for name, value := range metric.Selector.MatchLabels {
		labels = append(labels, fmt.Sprintf("%s=%q", name, value))
	}
	byAdapter := strings.NewReplacer("<<.Series>>", rule.SeriesQuery, "<<.LabelMatchers>>", strings.Join(labels, ",")).Replace(rule.MetricsQuery)
	for _, query := range []string{byAdapter, scaled.Spec.Triggers[0].Metadata.Query} {
		eventually(ctx, t, "a value of "+query, func(ctx context.Context) error {
			return prometheus{}.has(ctx, fmt.Sprintf("count(%s > 0 and %s < 100) == 1", query, query))
		})
	}
}

// scaledBy returns the names of the metrics that the autoscaler uses.
func scaledBy(t *testing.T) (names []string) {
	t.Helper()
	objects, err := the.Read("manifests/overlays/autoscaling")
	must(t, err)
	for _, o := range objects {
		if o.GetKind() != "HorizontalPodAutoscaler" {
			continue
		}
		metrics, _, err := unstructured.NestedSlice(o.Object, "spec", "metrics")
		must(t, err)
		for _, m := range metrics {
			name, _, err := unstructured.NestedString(m.(map[string]any), "pods", "metric", "name")
			must(t, err)
			names = append(names, name)
		}
	}
	return names
}

// adapterQueries returns the queries of the rules for the Prometheus adapter by the names of their metrics, with their series.
func adapterQueries(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(the.Root, "manifests/components/autoscaling/prometheus-adapter.yaml"))
	must(t, err)
	var values struct {
		Rules struct {
			Custom []struct {
				SeriesQuery, MetricsQuery string
				Name                      struct{ As string }
			}
		}
	}
	must(t, yaml.Unmarshal(text, &values))
	out := map[string]string{}
	for _, r := range values.Rules.Custom {
		series, _, _ := strings.Cut(r.SeriesQuery, "{")
		out[r.Name.As] = strings.ReplaceAll(r.MetricsQuery, "<<.Series>>", series)
	}
	return out
}

// TestAccessLog reads a waypoint's log line of a call: it names the picked and the serving endpoint, and the pool.
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

// namesPick reports whether a log has the line of a call that went to its picked endpoint.
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

// queries returns the queries of all dashboards and alerts, by where they are.
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

// alerts returns the queries of the alerts by name.
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

// writeRules writes the rules in Prometheus's own format.
func writeRules(t *testing.T, dir string) {
	t.Helper()
	text, err := yaml.Marshal(rules(t).Object["spec"])
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "rules.yaml"), text, 0o600))
}

// prometheus is the server that startPrometheus runs.
type prometheus struct{}

// startPrometheus starts a Prometheus that scrapes what our PodMonitors select, and waits until it answers.
func startPrometheus(ctx context.Context, t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	writeRules(t, dir)
	var jobs []map[string]any
	for _, m := range podMonitors(t) {
		jobs = append(jobs, m.job(ctx, t))
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
		_ = cmd.Wait() // the error says that it was killed
		if t.Failed() {
			t.Logf("Prometheus says:\n%s", log.String())
		}
	})
	eventually(ctx, t, "Prometheus", func(ctx context.Context) error { return prometheus{}.ask(ctx, "status/buildinfo", nil, nil) })
}

// podMonitor has the fields of a PodMonitor that ours set.
type podMonitor struct {
	Metadata struct{ Name, Namespace string }
	Spec     struct {
		NamespaceSelector   struct{ Any bool }
		Selector            metav1.LabelSelector
		PodMetricsEndpoints []monitoredPort
	}
}

type monitoredPort struct {
	Port, Path                     string
	PortNumber                     int32
	Relabelings, MetricRelabelings []relabeling
}

// relabeling has the operator's and Prometheus's spelling of each field.
type relabeling struct {
	Action, Regex string
	SourceLabels  []string
}

func podMonitors(t *testing.T) []podMonitor {
	t.Helper()
	objects, err := the.Read("manifests/overlays/monitoring")
	must(t, err)
	var out []podMonitor
	for _, o := range objects {
		if o.GetKind() != "PodMonitor" {
			continue
		}
		text, err := yaml.Marshal(o.Object)
		must(t, err)
		var m podMonitor
		must(t, yaml.Unmarshal(text, &m))
		if len(m.Spec.PodMetricsEndpoints) != 1 {
			t.Fatalf("PodMonitor %s reads %d ports, want 1", m.Metadata.Name, len(m.Spec.PodMetricsEndpoints))
		}
		out = append(out, m)
	}
	return out
}

// job returns the scrape configuration that the Prometheus operator makes of a PodMonitor: the selected pods, at a port
// that they declare, with the operator's labels.
func (m *podMonitor) job(ctx context.Context, t *testing.T) map[string]any {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(&m.Spec.Selector)
	must(t, err)
	selection := &client.ListOptions{LabelSelector: selector}
	if !m.Spec.NamespaceSelector.Any {
		selection.Namespace = m.Metadata.Namespace
	}
	var list corev1.PodList
	must(t, the.Client.List(ctx, &list, selection))
	found := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	port := m.Spec.PodMetricsEndpoints[0]
	var targets []any
	for i := range found {
		pod := &found[i]
		for _, c := range pod.Spec.Containers {
			for _, p := range c.Ports {
				if p.Name != port.Port && p.ContainerPort != port.PortNumber {
					continue
				}
				labels := map[string]string{"namespace": pod.Namespace, "pod": pod.Name, "container": c.Name}
				if port.Port != "" {
					labels["endpoint"] = port.Port
				}
				targets = append(targets, map[string]any{"targets": []string{monitoredAddress(pod, p.ContainerPort)}, "labels": labels})
			}
		}
	}
	if len(targets) == 0 || len(targets) != len(found) {
		t.Fatalf("PodMonitor %s selects %d pods, which have its port %d times", m.Metadata.Name, len(found), len(targets))
	}
	return map[string]any{
		"job_name": m.Metadata.Name, "metrics_path": cmp.Or(port.Path, "/metrics"), "static_configs": targets,
		"relabel_configs": relabelings(port.Relabelings), "metric_relabel_configs": relabelings(port.MetricRelabelings),
	}
}

// monitoredAddress is the address at which a pod's port is scraped. For Istio's agent, which this mesh lacks, it is Envoy's
// own port: the agent serves at 15020 what Envoy serves at 15000 under the same path.
func monitoredAddress(pod *corev1.Pod, port int32) string {
	if port == 15020 {
		port = 15000
	}
	return net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(int(port)))
}

func relabelings(from []relabeling) []any {
	var out []any
	for _, r := range from {
		config := map[string]any{"action": r.Action, "regex": r.Regex}
		if len(r.SourceLabels) > 0 {
			config["source_labels"] = r.SourceLabels
		}
		out = append(out, config)
	}
	return out
}

// ask makes a request of Prometheus's API and reads the data of the answer.
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

// named is a regular expression with the meaning of a query's matcher of metric names.
func named(pattern string) *regexp.Regexp { return regexp.MustCompile("^(?:" + pattern + ")$") }

// names lists the existing metrics.
func (p prometheus) names(ctx context.Context, t *testing.T) []string {
	t.Helper()
	var out []string
	must(t, p.ask(ctx, "label/__name__/values", nil, &out))
	return out
}

// labels lists the names of the existing labels.
func (p prometheus) labels(ctx context.Context, t *testing.T) []string {
	t.Helper()
	var out []string
	must(t, p.ask(ctx, "labels", nil, &out))
	return out
}

// has fails if a query returns nothing.
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

// metricsOf lists the metrics that a query names, as Prometheus parses it.
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
			if node["name"] == "__name__" { // a matcher; a plain name has one too
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
