package meshconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"istio.io/api/networking/v1alpha3"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kube-openapi/pkg/validation/strfmt"
	"k8s.io/kube-openapi/pkg/validation/validate"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/inference-waypoint/inference-waypoint/internal/poolstatus"
)

var update = flag.Bool("update", false, "rewrite the golden files and remove those without an input")

const (
	inputSuffix  = ".in.yaml"
	outputSuffix = ".out.yaml"
)

// TestGolden translates each testdata/*.in.yaml, the objects of a cluster with one InferencePool among them, and
// compares the objects and the pool's status with the .out.yaml beside it. A file whose name begins with "nopicker-"
// is translated by a controller without a default picker.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob(filepath.Join("testdata", "*"+inputSuffix))
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	crd := poolSchema(t)
	for _, path := range inputs {
		name := strings.TrimSuffix(filepath.Base(path), inputSuffix)
		t.Run(name, func(t *testing.T) {
			in := readInputs(t, path, crd)
			settings := Settings{
				HostSuffix:    "inference.internal",
				ClusterDomain: "cluster.local",
				DefaultPicker: &ServicePort{
					Service: types.NamespacedName{Namespace: "inference-system", Name: "inference-picker"},
					Port:    9002,
				},
			}
			if strings.HasPrefix(name, "nopicker-") {
				settings.DefaultPicker = nil
			}
			got := render(t, in, Translate(in, settings))
			outPath := strings.TrimSuffix(path, inputSuffix) + outputSuffix
			if *update {
				if err := os.WriteFile(outPath, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(outPath)
			if err != nil {
				t.Fatalf("%v (run the test with -update)", err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", outPath, diff)
			}
		})
	}
}

// TestGoldenStale finds golden files whose input is gone.
func TestGoldenStale(t *testing.T) {
	outputs, err := filepath.Glob(filepath.Join("testdata", "*"+outputSuffix))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range outputs {
		if _, err := os.Stat(strings.TrimSuffix(path, outputSuffix) + inputSuffix); err == nil {
			continue
		}
		if !*update {
			t.Errorf("%s has no input (run the test with -update)", path)
		} else if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// TestGoldenPatchesAreEnvoys reads every patch of every golden EnvoyFilter back as the Envoy message that istiod takes
// it for, strictly: an unknown field, a wrong type or an invalid value fails.
func TestGoldenPatchesAreEnvoys(t *testing.T) {
	outputs, err := filepath.Glob(filepath.Join("testdata", "*"+outputSuffix))
	if err != nil {
		t.Fatal(err)
	}
	patches := 0
	for _, path := range outputs {
		for _, doc := range documents(t, path) {
			var filter networkingv1alpha3.EnvoyFilter
			if kind(t, doc) != "EnvoyFilter" {
				continue
			}
			if err := yaml.Unmarshal(doc, &filter); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			for i, p := range filter.Spec.ConfigPatches {
				patches++
				if err := parsePatch(p); err != nil {
					t.Errorf("%s: patch %d: %v", path, i, err)
				}
			}
		}
	}
	if patches == 0 {
		t.Error("the golden files hold no patch")
	}
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
	case v1alpha3.EnvoyFilter_NETWORK_FILTER:
		filter, manager := &listenerv3.Filter{}, &hcmv3.HttpConnectionManager{}
		if err := parse(raw, filter); err != nil {
			return err
		}
		if err := filter.GetTypedConfig().UnmarshalTo(manager); err != nil {
			return err
		}
		// The patch is merged into a whole manager: what it brings must be valid, not the rest.
		return manager.GetRouteConfig().ValidateAll()
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

// readInputs reads the objects of a cluster. The pool's namespace is made where the file has none.
func readInputs(t *testing.T, path string, crd *validate.SchemaValidator) Inputs {
	t.Helper()
	in := Inputs{
		Gateways: map[types.NamespacedName]*gatewayv1.Gateway{},
		Services: map[types.NamespacedName]*corev1.Service{},
	}
	namespaces := map[string]*corev1.Namespace{}
	for _, doc := range documents(t, path) {
		switch k := kind(t, doc); k {
		case "InferencePool":
			checkSchema(t, doc, crd)
			in.Pool = decode[inferencev1.InferencePool](t, doc)
		case "Namespace":
			ns := decode[corev1.Namespace](t, doc)
			namespaces[ns.Name] = ns
		case "Gateway":
			g := decode[gatewayv1.Gateway](t, doc)
			in.Gateways[types.NamespacedName{Namespace: g.Namespace, Name: g.Name}] = g
		case "Service":
			s := decode[corev1.Service](t, doc)
			in.Services[types.NamespacedName{Namespace: s.Namespace, Name: s.Name}] = s
		default:
			t.Fatalf("unexpected kind %q", k)
		}
	}
	if in.Pool == nil {
		t.Fatal("no InferencePool")
	}
	in.Namespace = namespaces[in.Pool.Namespace]
	if in.Namespace == nil {
		in.Namespace = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: in.Pool.Namespace}}
	}
	return in
}

func decode[T any](t *testing.T, doc []byte) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict(doc, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// render prints the objects in the order in which they are applied, and then the pool's status.
func render(t *testing.T, in Inputs, out Output) []byte {
	t.Helper()
	var docs [][]byte
	for _, o := range out.Objects() {
		docs = append(docs, toYAML(t, o, "status", "metadata.creationTimestamp"))
	}
	parents, _, err := poolstatus.Merge(in.Pool.Status.Parents, out.Parents, in.Pool.Generation, time.Unix(0, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	status := &inferencev1.InferencePool{
		TypeMeta:   in.Pool.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{Namespace: in.Pool.Namespace, Name: in.Pool.Name},
		Status:     inferencev1.InferencePoolStatus{Parents: parents},
	}
	docs = append(docs, toYAML(t, status, "spec", "metadata.creationTimestamp"))
	header := []byte("")
	if out.Keep {
		header = []byte("# What was made of the pool before stays.\n")
	}
	return append(header, bytes.Join(docs, []byte("---\n"))...)
}

// toYAML prints an object without the fields named.
func toYAML(t *testing.T, object any, without ...string) []byte {
	t.Helper()
	raw, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range without {
		at := fields
		parent, leaf, nested := strings.Cut(name, ".")
		if nested {
			at, _ = fields[parent].(map[string]any)
		} else {
			leaf = parent
		}
		delete(at, leaf)
	}
	out, err := yaml.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return out
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

func kind(t *testing.T, doc []byte) string {
	t.Helper()
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(doc, &meta); err != nil {
		t.Fatal(err)
	}
	return meta.Kind
}

// poolSchema is the schema of the InferencePool's CRD, from the module that the API types come from.
func poolSchema(t *testing.T) *validate.SchemaValidator {
	t.Helper()
	const module = "sigs.k8s.io/gateway-api-inference-extension"
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatalf("finding %s: %v", module, err)
	}
	raw, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "config", "crd", "bases", "inference.networking.k8s.io_inferencepools.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(raw, &crd); err != nil {
		t.Fatal(err)
	}
	schema, err := json.Marshal(crd.Spec.Versions[0].Schema.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	var parsed spec.Schema
	if err := json.Unmarshal(schema, &parsed); err != nil {
		t.Fatal(err)
	}
	return validate.NewSchemaValidator(&parsed, nil, "", strfmt.Default)
}

func checkSchema(t *testing.T, doc []byte, crd *validate.SchemaValidator) {
	t.Helper()
	var fields any
	if err := yaml.Unmarshal(doc, &fields); err != nil {
		t.Fatal(err)
	}
	if result := crd.Validate(fields); !result.IsValid() {
		t.Fatalf("the CRD does not admit the InferencePool: %v", result.AsError())
	}
}
