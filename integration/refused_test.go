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

// broken is what istiod takes and Envoy does not: a script that does not compile.
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

// What Envoy refuses is seen: all other tests rely on it, as each fails when anything is refused while it runs.
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
	// The waypoint keeps what it had; it takes what comes next.
	must(t, ask(ctx, "Are you still served?"))
	awaitQuiet(ctx, t)
}

// awaitQuiet waits until waypoints have refused nothing for a second: the refusals of this test must not count as
// those of the next.
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
