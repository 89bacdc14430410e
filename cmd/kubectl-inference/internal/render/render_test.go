package render

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/snapshottest"
)

const barePool = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: llama}
spec: {selector: {matchLabels: {app: llama}}, targetPorts: [{number: 8000}]}
`

func TestRender(t *testing.T) {
	tests := map[string]struct {
		files                               string
		waypoint                            types.NamespacedName
		wantObjects, wantNotes, wantRefused []string
	}{
		"a pool alone": {
			files: barePool, waypoint: types.NamespacedName{Name: "waypoint"},
			wantObjects: []string{"EnvoyFilter models", "ServiceEntry models"},
			wantNotes: []string{
				"assumed to exist: the picker's Service inference-system/inference-picker:9002",
				"assumed to exist: waypoint models/waypoint, to which pool models/llama is bound",
			},
		},
		"a waypoint elsewhere": {
			files: barePool, waypoint: types.NamespacedName{Namespace: "infra", Name: "shared"},
			wantObjects: []string{"EnvoyFilter infra", "ServiceEntry models"},
			wantNotes: []string{
				"assumed to exist: the picker's Service inference-system/inference-picker:9002",
				"assumed to exist: waypoint infra/shared, to which pool models/llama is bound",
			},
		},
		"a namespace without a waypoint": {
			files:       barePool + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: models, labels: {istio.io/use-waypoint: none}}}",
			waypoint:    types.NamespacedName{Name: "waypoint"},
			wantNotes:   []string{"assumed to exist: the picker's Service inference-system/inference-picker:9002"},
			wantRefused: []string{"pool models/llama: it is bound to no waypoint"},
		},
		"a Gateway that is no waypoint, and a Deployment": {
			files: barePool + `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: models}
spec: {gatewayClassName: istio, listeners: []}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: llama}}`,
			waypoint:    types.NamespacedName{Name: "waypoint"},
			wantObjects: []string{"ServiceEntry models"},
			wantNotes: []string{
				"assumed to exist: the picker's Service inference-system/inference-picker:9002",
				"ignored: a Deployment does not affect pools",
			},
			wantRefused: []string{"pool models/llama at waypoint models/waypoint: Gateway models/waypoint is of class istio: a waypoint's is istio-waypoint"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := NewInputs()
			if err := in.Add(strings.NewReader(tt.files), "models"); err != nil {
				t.Fatal(err)
			}
			out, err := Render(in, Options{Settings: snapshottest.Settings(), Waypoint: tt.waypoint})
			if err != nil {
				t.Fatal(err)
			}
			var objects []string
			for _, o := range out.Objects {
				objects = append(objects, o.GetObjectKind().GroupVersionKind().Kind+" "+o.GetNamespace())
			}
			got := [][]string{objects, out.Notes, out.Refused}
			if diff := cmp.Diff([][]string{tt.wantObjects, tt.wantNotes, tt.wantRefused}, got); diff != "" {
				t.Errorf("objects, notes, refused (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAddRefuses(t *testing.T) {
	tests := map[string]struct{ file, want string }{
		"no YAML":          {"}{", "document 1"},
		"no kind":          {"a: b", "it has no kind"},
		"an unknown field": {strings.Replace(barePool, "targetPorts", "targetPort", 1), `unknown field "targetPort"`},
		"no name":          {strings.Replace(barePool, "name: llama", "", 1), "it has no metadata.name"},
		"the same twice":   {barePool + "---" + barePool, "document 2: v1.InferencePool models/llama: the files have it twice"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := NewInputs().Add(strings.NewReader(tt.file), "models")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
	if _, err := Render(NewInputs(), Options{}); !errors.Is(err, ErrNoPool) {
		t.Errorf("of nothing: %v", err)
	}
}
