package integration

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// broken is an EnvoyFilter that istiod accepts and Envoy refuses: its script does not compile.
const broken = `
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: broken, namespace: models}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  configPatches:
    - applyTo: HTTP_FILTER
      match: {context: SIDECAR_INBOUND, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}}
      patch:
        operation: INSERT_FIRST
        value:
          name: envoy.filters.http.lua
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
            default_source_code: {inline_string: "this is no Lua"}
`

// Refused configuration is noticed. All other tests rely on it, as they fail if anything is refused meanwhile.
func TestRefusedConfigurationIsSeen(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("not within a minute"))
	defer cancel()
	before := len(the.Refusals())
	must(t, the.ApplyYAML(ctx, broken))
	must(t, the.Await(ctx, "a refusal", func(context.Context) error {
		for _, refusal := range the.Refusals()[before:] {
			if strings.Contains(refusal.Message, "script load error") {
				return nil
			}
		}
		return errors.New("nothing was refused")
	}))
	filter := &networkingv1alpha3.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "broken"}}
	must(t, the.Client.Delete(ctx, filter))
	// The waypoint keeps its previous configuration, and accepts the next.
	must(t, ask(ctx, "Are you still served?"))
	awaitQuiet(ctx, t)
}

// awaitQuiet waits until waypoints have refused nothing for a second, so that this test's refusals do not fail the next.
func awaitQuiet(ctx context.Context, t *testing.T) {
	t.Helper()
	seen, since := len(the.Refusals()), time.Now()
	must(t, the.Await(ctx, "quiet", func(context.Context) error {
		if n := len(the.Refusals()); n != seen {
			seen, since = n, time.Now()
		}
		if time.Since(since) < time.Second {
			return errors.New("configuration was refused a moment ago")
		}
		return nil
	}))
}
