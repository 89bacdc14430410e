// Package manifests tests that the Helm chart and the kustomize overlays give the same objects. It needs helm and no mesh.
package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
)

const (
	root  = "../.."
	chart = root + "/manifests/charts/inference-waypoint"
)

// The chart with an overlay's values gives the same objects as kustomize with the overlay.
func TestChartAndOverlaysAreTheSame(t *testing.T) {
	tests := map[string]struct {
		overlay string
		values  []string
	}{
		"default":     {overlay: "overlays/default"},
		"as it is":    {overlay: "."},
		"autoscaling": {overlay: "overlays/autoscaling", values: []string{"picker.autoscaling.enabled=true"}},
		"monitoring":  {overlay: "overlays/monitoring", values: []string{"monitoring.enabled=true"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			want := byName(t, kustomize(t, tt.overlay))
			// The namespace must exist before a release: helm install --create-namespace makes it.
			delete(want, "Namespace /inference-system")
			got, err := template(tt.values...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, byName(t, got)); diff != "" {
				t.Errorf("kustomize and the chart differ (-kustomize +chart):\n%s", diff)
			}
		})
	}
}

// The packaged chart has the same files as the folder, whose folder monitoring is a link to manifests/monitoring.
func TestPackagedChartIsTheSame(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command(tool(t), "package", chart, "--destination", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the packages are %v (%v), want one", files, err)
	}
	want, err := render(chart, "--set", "monitoring.enabled=true")
	if err != nil {
		t.Fatal(err)
	}
	got, err := render(files[0], "--set", "monitoring.enabled=true")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("the folder and the package differ (-folder +package):\n%s", diff)
	}
}

// The chart's post-delete hook does the same as manifests/uninstall. It has an account of its own with the controller's
// rights.
func TestChartUninstallsAsKustomizeDoes(t *testing.T) {
	hooks, err := helm("--show-only", "templates/uninstall.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// The controller's role stands for the hook's role.
	want := byName(t, kustomize(t, "uninstall"))
	for _, o := range kustomize(t, "base") {
		if o.GetName() == "inference-controller" && strings.HasPrefix(o.GroupVersionKind().Group, "rbac.") || o.GetKind() == "ServiceAccount" && o.GetName() == "inference-controller" {
			want[key(o)] = o.Object
		}
	}
	got := byName(t, hooks)
	for _, o := range got {
		meta := o["metadata"].(map[string]any)
		annotations, _ := meta["annotations"].(map[string]any)
		if annotations["helm.sh/hook"] != "post-delete" {
			t.Errorf("%s is no hook", meta["name"])
		}
		delete(meta, "annotations")
	}
	if diff := cmp.Diff(rename(want), rename(got)); diff != "" {
		t.Errorf("kustomize and the chart differ (-kustomize +chart):\n%s", diff)
	}
}

// The uninstall Job gets the controller's flags about the picker, as it also cleans up the picker's namespace.
func TestUninstallKnowsThePicker(t *testing.T) {
	flag := regexp.MustCompile(`--default-picker=[^\s\]]+`)
	named := func(objects []*unstructured.Unstructured, kind string) (out []string) {
		for _, o := range objects {
			if o.GetKind() == kind {
				out = append(out, flag.FindAllString(fmt.Sprint(o.Object), -1)...)
			}
		}
		return out
	}
	want, got := named(kustomize(t, "base"), "Deployment"), named(kustomize(t, "uninstall"), "Job")
	if len(want) != 1 || !slices.Equal(got, want) {
		t.Errorf("manifests/uninstall is told of %q, the controller of %q", got, want)
	}
	rendered, err := render(chart, "--set", "controller.extraArgs={--default-picker=models/mine:9002}")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(rendered), "- --default-picker=models/mine:9002"); n != 2 {
		t.Errorf("the chart tells %d programs of the picker in controller.extraArgs, want the controller and the hook", n)
	}
}

// rename gives one account's name to all objects and references.
func rename(objects map[string]map[string]any) map[string]string {
	out := map[string]string{}
	for k, o := range objects {
		out[strings.ReplaceAll(k, "inference-controller", "inference-uninstall")] = strings.ReplaceAll(fmt.Sprint(o), "inference-controller", "inference-uninstall")
	}
	return out
}

// The chart's values reach the objects.
func TestChartValues(t *testing.T) {
	tests := map[string]struct {
		values []string
		want   []string // parts of the rendered objects
	}{
		"images": {
			values: []string{"image.repository=registry.example.com/team", "image.tag=v1", "image.pullPolicy=Always", "image.pullSecrets[0].name=key"},
			want:   []string{"registry.example.com/team/picker:v1", "registry.example.com/team/controller:v1", "imagePullPolicy: Always", "- name: key"},
		},
		"flags": {
			values: []string{"logLevel=debug", "picker.extraArgs={--pprof}", "controller.extraArgs={--host-suffix=ai.example}"},
			want:   []string{"--log-level=debug", "--pprof", "--host-suffix=ai.example"},
		},
		"placement": {
			values: []string{"controller.nodeSelector.pool=system", "picker.tolerations[0].key=gpu", "picker.tolerations[0].operator=Exists", "picker.resources.requests.cpu=2"},
			want:   []string{"pool: system", "key: gpu", "cpu: 2"},
		},
		"waypoints": {values: []string{"picker.waypoints={*/sa/mine}"}, want: []string{"- '*/sa/mine'"}},
		"autoscaling": {
			values: []string{"picker.autoscaling.enabled=true", "picker.replicas=3", "picker.autoscaling.maxReplicas=20", "picker.autoscaling.picksPerSecond=500"},
			want:   []string{"minReplicas: 3", "maxReplicas: 20", `averageValue: "500"`},
		},
		"replicas": {values: []string{"controller.replicas=7", "picker.replicas=3"}, want: []string{"replicas: 7", "replicas: 3"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := render(chart, set(tt.values)...)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range tt.want {
				if !strings.Contains(string(out), want) {
					t.Errorf("%q is not in what is rendered:\n%s", want, out)
				}
			}
		})
	}
}

// In another namespace, no object names the usual namespace.
func TestChartInAnotherNamespace(t *testing.T) {
	out, err := exec.Command(tool(t), "template", "test", chart, "--namespace", "elsewhere", "--set", "monitoring.enabled=true").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if i := strings.Index(string(out), "inference-system"); i >= 0 {
		t.Errorf("the usual namespace is named: …%s…", out[max(0, i-300):min(len(out), i+100)])
	}
}

// The chart refuses wrong values, and names the value.
func TestChartRefusesWrongValues(t *testing.T) {
	tests := map[string]struct {
		value string
		want  string // must be in the error
	}{
		"an unknown value":              {"pickers=3", "pickers"},
		"an unknown value further down": {"picker.replica=3", "replica"},
		"a number that is none":         {"controller.replicas=two", "/controller/replicas"},
		"a negative number":             {"picker.replicas=-1", "/picker/replicas"},
		"an unknown log level":          {"logLevel=loud", "/logLevel"},
		"a quantity that is none":       {"picker.resources.limits.memory=much", "/picker/resources/limits/memory"},
		"an argument that is no flag":   {"picker.extraArgs={verbose}", "/picker/extraArgs/0"},
		"everybody to answer":           {"picker.waypoints={*}", "/picker/waypoints/0"},
		"a switch that is none":         {"monitoring.enabled=maybe", "/monitoring/enabled"},
		"no picks":                      {"picker.autoscaling.picksPerSecond=0", "/picker/autoscaling/picksPerSecond"},
		"an interval that is none":      {"monitoring.interval=often", "/monitoring/interval"},
		"a tag that is none":            {"image.tag=a b", "/image/tag"},
		"a repository that is none":     {"image.repository=https://x/", "/image/repository"},
		"a toleration with a slip":      {"picker.tolerations[0].efect=NoSchedule", "efect"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := render(chart, "--set", tt.value)
			if err == nil {
				t.Fatal("it was taken")
			}
			if !strings.Contains(strings.ReplaceAll(err.Error(), ".", "/"), strings.ReplaceAll(tt.want, ".", "/")) {
				t.Errorf("the error does not name %s: %v", tt.want, err)
			}
		})
	}
}

// helm lint reports nothing.
func TestChartLints(t *testing.T) {
	out, err := exec.Command(tool(t), "lint", "--strict", chart).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func tool(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(root + "/.tools/helm")
	if err == nil {
		_, err = exec.LookPath(path)
	}
	if err != nil {
		t.Fatalf("the tool helm is missing: run make tools (%v)", err)
	}
	return path
}

func set(values []string) []string {
	var out []string
	for _, v := range values {
		out = append(out, "--set", v)
	}
	return out
}

func template(values ...string) ([]*unstructured.Unstructured, error) {
	return helm(append(set(values), "--no-hooks")...)
}

func helm(args ...string) ([]*unstructured.Unstructured, error) {
	out, err := render(chart, args...)
	if err != nil {
		return nil, err
	}
	return manifest.Decode(out)
}

// render runs helm template for a chart: a folder or a package.
func render(chart string, args ...string) ([]byte, error) {
	// No cluster is asked for its version: helm uses the newest that it knows.
	cmd := exec.Command(root+"/.tools/helm", append([]string{"template", "test", chart, "--namespace", "inference-system"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, errors.Join(err, errors.New(stderr.String()))
	}
	return stdout.Bytes(), nil
}

func kustomize(t *testing.T, path string) []*unstructured.Unstructured {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(root, "manifests", path))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := built.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifest.Decode(stream)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func key(o *unstructured.Unstructured) string {
	return o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
}

func byName(t *testing.T, objects []*unstructured.Unstructured) map[string]map[string]any {
	t.Helper()
	out := map[string]map[string]any{}
	var names []string
	for _, o := range objects {
		names = append(names, key(o))
		out[key(o)] = o.Object
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != len(objects) || len(objects) == 0 {
		t.Fatalf("%d objects of the names %v", len(objects), names)
	}
	return out
}
