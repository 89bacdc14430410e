package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
)

// A pool is called by the hosts in its annotation as by its own. Of two pools that claim a host the older gets it, and the
// other's status says so. When the older gives the host up, the other gets it.
func TestMoreHosts(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	claim := func(name string) {
		t.Helper()
		must(t, the.ApplyYAML(ctx, strings.ReplaceAll(poolYAML, "NAME", name)))
		must(t, the.Client.Patch(ctx, pool(name), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"inference-waypoint.io/hosts":"chat.example, talk.example"}}}`))))
	}
	claim("older")
	for _, host := range []string{"http://chat.example", "http://talk.example", "http://older.models.inference.internal"} {
		eventually(ctx, t, host, func(ctx context.Context) error { return staysPut(ctx, host) })
	}
	time.Sleep(1100 * time.Millisecond) // creation times have whole seconds
	claim("younger")
	defer func() { must(t, the.Client.Delete(ctx, pool("younger"))) }()
	eventually(ctx, t, "the younger pool's own host", func(ctx context.Context) error { return staysPut(ctx, "http://younger.models.inference.internal") })
	eventually(ctx, t, "the younger pool's status", func(ctx context.Context) error {
		var p inferencev1.InferencePool
		if err := the.Client.Get(ctx, client.ObjectKey{Namespace: "models", Name: "younger"}, &p); err != nil {
			return err
		}
		if parent := parentOf(&p, "waypoint"); parent == nil || !strings.Contains(fmt.Sprint(parent.Conditions), "chat.example") {
			return fmt.Errorf("it says %+v", p.Status.Parents)
		}
		return nil
	})
	must(t, the.Client.Delete(ctx, pool("older")))
	eventually(ctx, t, "the host at the younger pool", func(ctx context.Context) error { return staysPut(ctx, "http://chat.example") })
}

// A Service that names a pool becomes its front: calls to any of the Service's names are picked. Without the annotation
// they go to the Service's own endpoints again.
func TestServiceAsFront(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	must(t, the.ApplyYAML(ctx, `
apiVersion: v1
kind: Service
metadata: {name: llama-svc, namespace: models}
spec:
  selector: {app: llama}
  ports: [{name: http, port: 8080, targetPort: 8000}]
`))
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "llama-svc"}}
	eventually(ctx, t, "a conversation that wanders", func(ctx context.Context) error { return wanders(ctx, "http://llama-svc.models:8080") })
	annotate := func(value string) {
		t.Helper()
		must(t, the.Client.Patch(ctx, service, client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"annotations":{"inference-waypoint.io/pool":%s}}}`, value))))
	}
	annotate(`"llama"`)
	for _, host := range []string{"http://llama-svc.models:8080", "http://llama-svc.models.svc.cluster.local:8080", "http://llama-svc.models.svc:8080"} {
		eventually(ctx, t, host, func(ctx context.Context) error { return staysPut(ctx, host) })
	}
	annotate("null")
	eventually(ctx, t, "a conversation that wanders again", func(ctx context.Context) error { return wanders(ctx, "http://llama-svc.models:8080") })
}
