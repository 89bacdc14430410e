package integration

import (
	"context"
	"testing"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
)

// poolYAML is a pool over the quickstart's model servers, of another name.
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

// ownedObjects counts the objects of ours that mention a pool of the namespace models.
func ownedObjects(ctx context.Context, t *testing.T, pool string) int {
	t.Helper()
	n := 0
	var entries networkingv1.ServiceEntryList
	must(t, the.Client.List(ctx, &entries, client.InNamespace("models"), client.MatchingFieldsSelector{Selector: fields.OneTermEqualSelector("metadata.name", pool)}))
	n += len(entries.Items)
	var filters networkingv1alpha3.EnvoyFilterList
	must(t, the.Client.List(ctx, &filters, client.InNamespace("models")))
	for _, f := range filters.Items {
		for _, patch := range f.Spec.GetConfigPatches() {
			if patch.GetMatch().GetListener().GetFilterChain().GetName() == "inbound-vip|80|http|"+pool+".models.inference.internal" {
				n++
				break
			}
		}
	}
	return n
}
