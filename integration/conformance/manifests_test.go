package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"testing/fstest"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	suite "sigs.k8s.io/gateway-api-inference-extension/conformance"
	"sigs.k8s.io/gateway-api-inference-extension/conformance/resources"
	"sigs.k8s.io/yaml"
)

// meshManifests are the suite's manifests, with replacements for what only an ingress Gateway has:
//
//   - A Gateway becomes a waypoint, with an HBONE listener.
//   - A route is attached to a host in the mesh, not to a Gateway. Each Gateway gets a pool of its name without endpoints,
//     the front, which is bound to that waypoint. The front's ServiceEntry is the parent of the routes. No other pool is
//     bound to a waypoint, so that statuses are about routes alone, as the suite expects.
//   - A host without routes serves its own pool, while a Gateway without routes answers 404. So each front has one more
//     route, for a path that no test calls.
//   - The suite's endpoint pickers serve TLS with self-signed certificates, which a DestinationRule allows.
func meshManifests() (fs.FS, error) {
	out := fstest.MapFS{}
	err := fs.WalkDir(suite.Manifests, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || path.Ext(name) != ".yaml" {
			return err
		}
		content, err := fs.ReadFile(suite.Manifests, name)
		if err != nil {
			return err
		}
		translated, err := translate(content)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		out[name] = &fstest.MapFile{Data: translated}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("translating the suite's manifests: %w", err)
	}
	return out, nil
}

func translate(content []byte) ([]byte, error) {
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), 4096)
	var out bytes.Buffer
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return out.Bytes(), nil
		}
		if err != nil {
			return nil, err
		}
		if len(object.Object) == 0 {
			continue
		}
		more, err := translateObject(object)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", object.GetKind(), object.GetName(), err)
		}
		text, err := yaml.Marshal(object.Object)
		if err != nil {
			return nil, fmt.Errorf("encoding %s %s: %w", object.GetKind(), object.GetName(), err)
		}
		_, _ = fmt.Fprintf(&out, "---\n%s\n---\n%s\n", text, more)
	}
}

// translateObject changes an object into its form in a mesh, and returns further objects that the mesh needs.
func translateObject(o *unstructured.Unstructured) (more string, err error) {
	switch o.GetKind() {
	case "Namespace":
		return strings.ReplaceAll(defaultAccount, "NAMESPACE", o.GetName()), nil
	case "Gateway":
		o.SetLabels(map[string]string{"istio.io/waypoint-for": "service"})
		err = unstructured.SetNestedSlice(o.Object, []any{map[string]any{
			"name": "mesh", "port": int64(15008), "protocol": "HBONE",
			"allowedRoutes": map[string]any{"namespaces": map[string]any{"from": "All"}},
		}}, "spec", "listeners")
		return strings.NewReplacer("GATEWAY_NAMESPACE", o.GetNamespace(), "GATEWAY", o.GetName(), "NAMESPACE", resources.AppBackendNamespace).Replace(front), err
	case "HTTPRoute":
		return "", attachToFronts(o)
	case "InferencePool":
		picker, named, err := unstructured.NestedString(o.Object, "spec", "endpointPickerRef", "name")
		if err != nil || !named {
			return "", err
		}
		return strings.NewReplacer("PICKER", picker, "NAMESPACE", o.GetNamespace()).Replace(unsignedTLS), nil
	default:
		return "", nil
	}
}

// attachToFronts makes the front of each Gateway that a route names the route's parent. The suite finds a parent in a
// status by name, and by namespace if the parent has one: the front, in the route's own namespace, has none.
func attachToFronts(route *unstructured.Unstructured) error {
	parents, _, err := unstructured.NestedSlice(route.Object, "spec", "parentRefs")
	if err != nil {
		return err
	}
	for _, p := range parents {
		parent, ok := p.(map[string]any)
		if !ok {
			return fmt.Errorf("spec.parentRefs holds a %T", p)
		}
		parent["group"], parent["kind"] = "networking.istio.io", "ServiceEntry"
		delete(parent, "namespace")
	}
	return unstructured.SetNestedSlice(route.Object, parents, "spec", "parentRefs")
}

// defaultAccount is the service account that a controller manager makes in each namespace. The mesh has none here.
const defaultAccount = `
apiVersion: v1
kind: ServiceAccount
metadata:
  name: default
  namespace: NAMESPACE
`

const front = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: GATEWAY
  namespace: NAMESPACE
  labels:
    istio.io/use-waypoint: GATEWAY
    istio.io/use-waypoint-namespace: GATEWAY_NAMESPACE
spec:
  selector:
    matchLabels:
      app: nothing
  targetPorts:
    - number: 3000
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: GATEWAY-kept
  namespace: NAMESPACE
spec:
  parentRefs:
    - group: networking.istio.io
      kind: ServiceEntry
      name: GATEWAY
  rules:
    - matches:
        - path:
            type: Exact
            value: /no-test-calls-this
      backendRefs:
        - group: inference.networking.k8s.io
          kind: InferencePool
          name: GATEWAY
`

const unsignedTLS = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata:
  name: PICKER
  namespace: NAMESPACE
spec:
  host: PICKER.NAMESPACE.svc.cluster.local
  trafficPolicy:
    tls:
      mode: SIMPLE
      insecureSkipVerify: true
`
