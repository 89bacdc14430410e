package integration

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
)

// The API server and istiod's webhook accept each object of each golden file. They refuse an object that istiod must
// refuse, so the check can fail.
func TestGoldensAreAdmitted(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	goldens, err := filepath.Glob(filepath.Join(the.Root, "internal", "controller", "translate", "testdata", "*.out.yaml"))
	must(t, err)
	admitted, controller := 0, as(t, controllerAccount)
	for _, golden := range goldens {
		content, err := os.ReadFile(golden)
		must(t, err)
		objects, err := manifest.Decode(content)
		must(t, err)
		for _, o := range objects {
			if o.GetAPIVersion() != "networking.istio.io/v1" && o.GetAPIVersion() != "networking.istio.io/v1alpha3" {
				continue // the status
			}
			err := the.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.GetNamespace()}})
			if err != nil && !apierrors.IsAlreadyExists(err) {
				t.Fatal(err)
			}
			o.SetName("golden-" + o.GetName()[:min(len(o.GetName()), 200)]) // this mesh already has objects of some of the names
			o.SetLabels(map[string]string{owned: "true"})
			if err := controller.Create(ctx, o, client.DryRunAll); err != nil {
				t.Errorf("%s: %s %s: %v", filepath.Base(golden), o.GetKind(), o.GetName(), err)
			}
			admitted++
		}
	}
	if admitted < len(goldens) {
		t.Errorf("only %d objects in %d goldens: the check looks at too little", admitted, len(goldens))
	}
	wrong := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
		"metadata": map[string]any{"namespace": "models", "name": "wrong"},
		"spec": map[string]any{
			"hosts": []any{"wrong.example"}, "resolution": "STATIC", "addresses": []any{"not an address"},
			"ports": []any{map[string]any{"number": int64(80), "name": "http", "protocol": "HTTP"}},
		},
	}}
	if err := the.Client.Create(ctx, wrong, client.DryRunAll); err == nil {
		t.Error("an invalid ServiceEntry was admitted: nobody validates")
	}
}
