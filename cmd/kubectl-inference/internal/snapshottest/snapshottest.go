// Package snapshottest loads snapshots from files and compares texts with golden files, for tests.
package snapshottest

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// Settings are the controller's defaults.
func Settings() translate.Settings {
	return translate.Settings{HostSuffix: "inference.internal", ClusterDomain: "cluster.local", DefaultPicker: &translate.ServicePort{
		Service: types.NamespacedName{Namespace: "inference-system", Name: "inference-picker"}, Port: 9002,
	}}
}

// Load reads the objects of YAML files.
func Load(t *testing.T, paths ...string) *cluster.Snapshot {
	t.Helper()
	s := &cluster.Snapshot{SystemNamespace: "inference-system", Settings: Settings()}
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		decoder := utilyaml.NewYAMLToJSONDecoder(bytes.NewReader(content))
		for {
			var doc map[string]any
			if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			add(t, s, doc)
		}
	}
	return s
}

func add(t *testing.T, s *cluster.Snapshot, doc map[string]any) {
	t.Helper()
	switch kind := doc["kind"]; kind {
	case "InferencePool":
		put[inferencev1.InferencePool](t, doc, &s.Pools)
	case "Namespace":
		put[corev1.Namespace](t, doc, &s.Namespaces)
	case "Gateway":
		put[gatewayv1.Gateway](t, doc, &s.Gateways)
	case "ServiceEntry":
		put[networkingv1.ServiceEntry](t, doc, &s.Entries)
	case "EnvoyFilter":
		put[networkingv1alpha3.EnvoyFilter](t, doc, &s.Filters)
	case "Service":
		put[corev1.Service](t, doc, &s.Services)
	case "Pod":
		put[corev1.Pod](t, doc, &s.Pods)
	case "Deployment":
		put[appsv1.Deployment](t, doc, &s.Deployments)
	default:
		t.Fatalf("unexpected kind %v", kind)
	}
}

func put[T any](t *testing.T, doc map[string]any, into *cluster.List[T]) {
	t.Helper()
	text, err := yaml.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	out := new(T)
	if err := yaml.UnmarshalStrict(text, out); err != nil {
		t.Fatalf("%v: %v", doc["kind"], err)
	}
	into.Items = append(into.Items, out)
}

// Golden compares a text with a file, which the flag -update rewrites.
func Golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run the test with -update)", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}
