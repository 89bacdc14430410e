package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
)

// poolYAML is another pool over the quickstart's model servers.
const poolYAML = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata:
  name: NAME
  namespace: models
spec:
  selector:
    matchLabels:
      app: llama
  targetPorts:
    - number: 8000
`

func pool(name string) *inferencev1.InferencePool {
	return &inferencev1.InferencePool{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: name}}
}

// serversYAML is a Deployment of IMAGE with its account and a pool over it, all with the same name.
const serversYAML = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: NAME, namespace: NAMESPACE}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: NAMESPACE}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      serviceAccountName: NAME
      containers:
        - name: server
          image: IMAGE
          args: [--name=$(POD_NAME)]
          env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
          readinessProbe: {httpGet: {path: /health, port: 8000}}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: NAME, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: NAME}}
  targetPorts: [{number: 8000}]
`

// serve makes servers of an image and a pool over them, and waits until they are ready.
func serve(ctx context.Context, t *testing.T, namespace, name, image string, replicas int) {
	t.Helper()
	must(t, the.ApplyYAML(ctx, strings.NewReplacer("NAMESPACE", namespace, "NAME", name, "IMAGE", image, "REPLICAS", fmt.Sprint(replicas)).Replace(serversYAML)))
	must(t, the.AwaitDeployment(ctx, namespace, name))
}

const (
	modelServer = "inference-waypoint/modelserver"
	echoServer  = "inference-waypoint/echo"
)

// heard is an echo server's report of a request.
type heard struct {
	Status  int
	Answer  http.Header
	Server  string
	Method  string
	Host    string
	Path    string
	Proto   string
	Headers http.Header
	Count   int
	Length  int64
}

// send makes a request from the caller and reads the echo server's report. Server is empty if another server answered. It
// follows no redirects.
func send(ctx context.Context, method, url, body string, headers ...string) (*heard, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewBufferString(body))
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			request.Host = headers[i+1]
		} else {
			request.Header.Set(headers[i], headers[i+1])
		}
	}
	response, err := the.caller.HTTP.Transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	out := &heard{}
	_ = json.Unmarshal(text, out) // an answer of another server is no report
	out.Status, out.Answer = response.StatusCode, response.Header
	return out, nil
}

// eventually waits until check returns nil, as configuration reaches a waypoint a moment after its write.
func eventually(ctx context.Context, t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	must(t, the.Await(ctx, what, check))
}

// parentOf returns the controller's entry for a waypoint in a pool's status.
func parentOf(p *inferencev1.InferencePool, gateway string) *inferencev1.ParentStatus {
	for i, parent := range p.Status.Parents {
		if parent.ControllerName == "inference-waypoint.io/controller" && string(parent.ParentRef.Name) == gateway {
			return &p.Status.Parents[i]
		}
	}
	return nil
}

// withoutParent fails if a pool's status still has our entry for a waypoint.
func withoutParent(ctx context.Context, namespace, name, gateway string) error {
	var p inferencev1.InferencePool
	if err := the.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &p); err != nil {
		return err
	}
	if parent := parentOf(&p, gateway); parent != nil {
		return fmt.Errorf("the status of pool %s still says %+v", name, parent)
	}
	return nil
}

// wantCondition waits until a pool's status has this condition for a waypoint.
func wantCondition(ctx context.Context, t *testing.T, namespace, name, gateway, kind string, status metav1.ConditionStatus, reason string) {
	t.Helper()
	eventually(ctx, t, fmt.Sprintf("condition %s of pool %s", kind, name), func(ctx context.Context) error {
		var p inferencev1.InferencePool
		if err := the.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &p); err != nil {
			return err
		}
		parent := parentOf(&p, gateway)
		if parent == nil {
			return fmt.Errorf("its status has no entry for %s: %+v", gateway, p.Status.Parents)
		}
		c := meta.FindStatusCondition(parent.Conditions, kind)
		if c == nil || c.Status != status || c.Reason != reason || c.ObservedGeneration != p.Generation {
			return fmt.Errorf("it is %+v, want %s %s", c, status, reason)
		}
		return nil
	})
}

// ownedObjects counts our objects that name a pool of namespace models.
func ownedObjects(ctx context.Context, t *testing.T, pool string) int {
	t.Helper()
	n := 0
	var entries networkingv1.ServiceEntryList
	must(t, the.Client.List(ctx, &entries, client.InNamespace("models"), client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("metadata.name", pool)}))
	n += len(entries.Items)
	return n + filtersOf(ctx, t, "models", pool+".models.inference.internal")
}

// filtersOf counts the EnvoyFilters of a namespace for a host's filter chain.
func filtersOf(ctx context.Context, t *testing.T, namespace, host string) int {
	t.Helper()
	filters, err := filtersAt(ctx, namespace, host)
	must(t, err)
	return len(filters)
}

// filtersAt lists the EnvoyFilters of a namespace for a host's filter chain.
func filtersAt(ctx context.Context, namespace, host string) ([]*networkingv1alpha3.EnvoyFilter, error) {
	var filters networkingv1alpha3.EnvoyFilterList
	if err := the.Client.List(ctx, &filters, client.InNamespace(namespace)); err != nil {
		return nil, err
	}
	chain := "inbound-vip|80|http|" + host
	return slices.DeleteFunc(filters.Items, func(f *networkingv1alpha3.EnvoyFilter) bool {
		return !slices.ContainsFunc(f.Spec.GetConfigPatches(), func(p *networkingapi.EnvoyFilter_EnvoyConfigObjectPatch) bool {
			return p.GetMatch().GetListener().GetFilterChain().GetName() == chain
		})
	}), nil
}

// gone checks that an object does not exist.
func gone(ctx context.Context, o client.Object) error {
	err := the.Client.Get(ctx, client.ObjectKeyFromObject(o), o)
	if err == nil {
		return errors.New("it is still there")
	}
	return client.IgnoreNotFound(err)
}

func serviceEntry(name string) *networkingv1.ServiceEntry {
	return &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: name}}
}

// deleteFilters deletes the EnvoyFilters for a host's filter chain.
func deleteFilters(ctx context.Context, namespace, host string) error {
	filters, err := filtersAt(ctx, namespace, host)
	for _, f := range filters {
		err = errors.Join(err, the.Client.Delete(ctx, f))
	}
	return err
}
