package translate

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
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

	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/modules"
	"github.com/inference-waypoint/inference-waypoint/internal/poolkey"
)

var update = flag.Bool("update", false, "rewrite the golden files and remove those without an input")

const (
	inputSuffix  = ".in.yaml"
	outputSuffix = ".out.yaml"
)

// TestGolden translates each testdata/*.in.yaml, the objects of a cluster. It compares with the .out.yaml beside it the
// objects and the status of the first InferencePool, and the status of each HTTPRoute. A file whose name begins with "nopicker-"
// is translated by a controller without a default picker.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob(filepath.Join("testdata", "*"+inputSuffix))
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	crds := schemas(t)
	for _, path := range inputs {
		name := strings.TrimSuffix(filepath.Base(path), inputSuffix)
		t.Run(name, func(t *testing.T) {
			subject, in := readInputs(t, path, crds)
			settings := Settings{
				HostSuffix:    "inference.internal",
				ClusterDomain: "cluster.local",
				RootNamespace: "istio-system",
				DefaultPicker: &ServicePort{
					Service: types.NamespacedName{Namespace: "inference-system", Name: "inference-picker"},
					Port:    9002,
				},
				Key:        &poolkey.Key{},
				HostClaims: []HostClaim{{"*", "*.example.com"}, {"models", "chat.example"}, {"models", "*.default"}},
			}
			if strings.HasPrefix(name, "nopicker-") {
				settings.DefaultPicker = nil
			}
			got := render(t, subject, in, settings)
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

// readInputs reads the objects of a cluster, and names the first pool. The namespace of a pool or Service is made where
// the file has none.
func readInputs(t *testing.T, path string, crds map[string]*validate.SchemaValidator) (*inferencev1.InferencePool, *Objects) {
	t.Helper()
	in := NewObjects()
	var subject *inferencev1.InferencePool
	for _, doc := range documents(t, path) {
		k := kind(t, doc)
		checkSchema(t, doc, crds[k])
		switch k {
		case "InferencePool":
			p := put(t, doc, in.Pools)
			if subject == nil {
				subject = p
			}
		case "Namespace":
			ns := decode[corev1.Namespace](t, doc)
			in.Namespaces[ns.Name] = ns
		case "Gateway":
			put(t, doc, in.Gateways)
		case "Service":
			put(t, doc, in.Services)
		case "HTTPRoute":
			put(t, doc, in.HTTPRoutes)
		case "ReferenceGrant":
			put(t, doc, in.ReferenceGrants)
		case "ServiceEntry":
			entry := decode[networkingv1.ServiceEntry](t, doc)
			owner := entry.Annotations["inference-waypoint.io/owner"]
			if owner == "" {
				put(t, doc, in.ServiceEntries)
				continue
			}
			for _, host := range entry.Spec.GetHosts() { // what a pool is served by already
				namespace, name, _ := strings.Cut(owner, "/")
				in.Holders[host] = types.NamespacedName{Namespace: namespace, Name: name}
			}
		case "VirtualService":
			put(t, doc, in.Others.VirtualServices)
		case "DestinationRule":
			put(t, doc, in.Others.DestinationRules)
		case "EnvoyFilter":
			put(t, doc, in.Others.EnvoyFilters)
		default:
			t.Fatalf("unexpected kind %q", k)
		}
	}
	if subject == nil {
		t.Fatal("no InferencePool")
	}
	for name := range in.Pools {
		if in.Namespaces[name.Namespace] == nil {
			in.Namespaces[name.Namespace] = &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name.Namespace}}
		}
	}
	return subject, in
}

func put[T any, O interface {
	*T
	metav1.Object
}](t *testing.T, doc []byte, into map[types.NamespacedName]*T) *T {
	t.Helper()
	o := decode[T](t, doc)
	into[types.NamespacedName{Namespace: O(o).GetNamespace(), Name: O(o).GetName()}] = o
	return o
}

func decode[T any](t *testing.T, doc []byte) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict(doc, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// render prints the pool's objects in the order in which they are applied, and then its status and that of the routes.
func render(t *testing.T, subject *inferencev1.InferencePool, in *Objects, settings Settings) []byte {
	t.Helper()
	out := Translate(types.NamespacedName{Namespace: subject.Namespace, Name: subject.Name}, in, settings)
	var docs [][]byte
	for _, o := range out.Objects() {
		docs = append(docs, toYAML(t, o, "status", "metadata.creationTimestamp"))
	}
	parents, _, err := poolstatus.Merge(subject.Status.Parents, out.Parents, subject.Generation, time.Unix(0, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	docs = append(docs, toYAML(t, &inferencev1.InferencePool{
		TypeMeta:   subject.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{Namespace: subject.Namespace, Name: subject.Name},
		Status:     inferencev1.InferencePoolStatus{Parents: parents},
	}, "spec", "metadata.creationTimestamp"))
	for _, name := range sortedNames(in.HTTPRoutes) {
		docs = append(docs, routeStatus(t, in.HTTPRoutes[name], in, settings))
	}
	header := []byte("")
	if out.Keep {
		header = []byte("# What was made of the pool before stays.\n")
	}
	return append(header, bytes.Join(docs, []byte("---\n"))...)
}

func routeStatus(t *testing.T, route *gatewayv1.HTTPRoute, in *Objects, settings Settings) []byte {
	t.Helper()
	verdicts := RouteVerdicts(route, in, settings)
	parents, _, err := routes.MergeStatus(route.Status.Parents, verdicts, gatewayv1.GatewayController(poolstatus.ControllerName), route.Generation, time.Unix(0, 0).UTC())
	if err != nil {
		t.Fatal(err)
	}
	return toYAML(t, &gatewayv1.HTTPRoute{
		TypeMeta:   route.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{Namespace: route.Namespace, Name: route.Name},
		Status:     gatewayv1.HTTPRouteStatus{RouteStatus: gatewayv1.RouteStatus{Parents: parents}},
	}, "spec", "metadata.creationTimestamp")
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

// definitions are where the CRDs lie that inputs must keep to, by kind. HTTPRoute's retry is in the experimental one.
var definitions = map[string][2]string{
	"InferencePool":  {"sigs.k8s.io/gateway-api-inference-extension", "config/crd/bases/inference.networking.k8s.io_inferencepools.yaml"},
	"HTTPRoute":      {"sigs.k8s.io/gateway-api", "config/crd/experimental/gateway.networking.k8s.io_httproutes.yaml"},
	"Gateway":        {"sigs.k8s.io/gateway-api", "config/crd/standard/gateway.networking.k8s.io_gateways.yaml"},
	"ReferenceGrant": {"sigs.k8s.io/gateway-api", "config/crd/standard/gateway.networking.k8s.io_referencegrants.yaml"},
}

// schemas are the schemas of the CRDs, from the modules that the API types come from.
func schemas(t *testing.T) map[string]*validate.SchemaValidator {
	t.Helper()
	out := map[string]*validate.SchemaValidator{}
	for kind, where := range definitions {
		dir, err := modules.Dir(t.Context(), ".", where[0])
		if err != nil {
			t.Fatal(err)
		}
		out[kind] = schema(t, filepath.Join(dir, where[1]))
	}
	return out
}

func schema(t *testing.T, path string) *validate.SchemaValidator {
	t.Helper()
	raw, err := os.ReadFile(path)
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
	if crd == nil {
		return
	}
	var fields any
	if err := yaml.Unmarshal(doc, &fields); err != nil {
		t.Fatal(err)
	}
	if result := crd.Validate(fields); !result.IsValid() {
		t.Fatalf("the CRD does not admit the object: %v", result.AsError())
	}
}
