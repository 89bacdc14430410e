package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	poolapi "github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// chainYAML changes the filter chain of the plain Service.
const chainYAML = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: edited-plain, namespace: models}
spec:
  targetRefs: [{kind: Service, group: "", name: edited-plain}]
  rules: [{}]
`

// testUpgrade starts the current controllers with the pool's EnvoyFilter in the form that held the routes in the chain.
// The upgrade replaces the chain, so it may cost what that costs a plain Service.
func (e *editing) testUpgrade(t *testing.T) {
	ctx := begin(t, 5*time.Minute)
	kind := func(name string, edit func(*editKind, int) error) *editKind {
		return &editKind{name: name, times: 3, every: 3 * time.Second, edit: edit, replaces: true, ctx: ctx, t: t}
	}
	plain := e.measure(kind("a Service's chain changed", func(k *editKind, _ int) error {
		applyYAML(k.ctx, k.t, chainYAML)
		return nil
	}), plainHost)
	t.Logf("%s", plain)
	unguard(ctx, t)
	t.Cleanup(func() { runControllers(context.WithoutCancel(ctx), t, 2) })
	upgrade := kind("upgrade from the previous form", func(k *editKind, _ int) error {
		runControllers(k.ctx, k.t, 2)
		e.awaitForm(k)
		return nil
	})
	// The end of a chain's drain may hit a call on each of the callers' connections. The number of these calls varies.
	upgrade.allowed = &editCost{lost: map[string]int{"of a chain": max(total(plain.lost), 8)}, cut: plain.cut}
	must(t, e.putBack(upgrade))
	e.settle(upgrade)
	e.run(upgrade)
}

// putBack gives the pool's EnvoyFilter its previous form, and deletes the objects that the previous version did not make.
func (e *editing) putBack(k *editKind) error {
	runControllers(k.ctx, k.t, 0)
	text, err := os.ReadFile(filepath.Join("testdata", "previous-form.yaml"))
	if err != nil {
		return err
	}
	form, err := yaml.YAMLToJSON([]byte(strings.ReplaceAll(string(text), "NAME", e.name)))
	if err != nil {
		return err
	}
	filters, err := filtersAt(k.ctx, "models", strings.TrimPrefix(e.host, "http://"))
	if err != nil || len(filters) != 1 {
		return fmt.Errorf("%d EnvoyFilters of the pool, want 1: %w", len(filters), err)
	}
	eventually(k.ctx, k.t, "an EnvoyFilter of the previous form", func(ctx context.Context) error {
		return the.Client.Patch(ctx, filters[0], client.RawPatch("application/merge-patch+json", form))
	})
	return e.deletePickers(k.ctx)
}

// deletePickers deletes the waypoint's EnvoyFilter about pickers.
func (e *editing) deletePickers(ctx context.Context) error {
	var all networkingv1alpha3.EnvoyFilterList
	if err := the.Client.List(ctx, &all, client.InNamespace("models")); err != nil {
		return err
	}
	for _, f := range all.Items {
		if f.Annotations[poolapi.OwnerAnnotation] == "models/gateway/"+editsWaypoint {
			return the.Client.Delete(ctx, f)
		}
	}
	return errors.New("the waypoint has no EnvoyFilter about pickers")
}

// awaitForm waits until the pool's EnvoyFilter has the current form.
func (e *editing) awaitForm(k *editKind) {
	eventually(k.ctx, k.t, "an EnvoyFilter whose chain fetches its routes", func(ctx context.Context) error {
		filters, err := filtersAt(ctx, "models", strings.TrimPrefix(e.host, "http://"))
		if err != nil || len(filters) != 1 {
			return fmt.Errorf("%d EnvoyFilters of the pool, want 1: %w", len(filters), err)
		}
		for _, p := range filters[0].Spec.GetConfigPatches() {
			if p.GetApplyTo() == networkingapi.EnvoyFilter_VIRTUAL_HOST {
				return nil
			}
		}
		return errors.New("it still holds its routes itself")
	})
}

// runControllers runs so many controllers and waits until exactly these are ready.
func runControllers(ctx context.Context, t *testing.T, replicas int) {
	t.Helper()
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "inference-controller"}}
	must(t, patch(ctx, d, fmt.Sprintf(`{"spec":{"replicas":%d}}`, replicas)))
	eventually(ctx, t, fmt.Sprintf("%d controllers", replicas), func(ctx context.Context) error {
		if n := len(pods(ctx, t, system, client.MatchingLabels{"app.kubernetes.io/name": d.Name})); n != replicas {
			return fmt.Errorf("%d are there", n)
		}
		return the.AwaitDeployment(ctx, system, d.Name)
	})
}
