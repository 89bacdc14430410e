package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

// pathsRouteYAML rewrites the paths of other providers' clients to those of the model servers. The picker sees the path
// before the rewrite.
const pathsRouteYAML = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: paths, namespace: models}
spec:
  parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: paths}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /llama}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}]
    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: paths}]
  - matches: [{path: {type: PathPrefix, value: /openai/deployments/sample-model}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}]
    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: paths}]
  - matches: [{path: {type: Exact, value: /ask}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /v1/chat/completions}}}]
    backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: paths}]
  - backendRefs: [{group: inference.networking.k8s.io, kind: InferencePool, name: paths}]
`

// TestPathsBeforeTheRewrite makes 12 calls with one prompt by each path: they go to one endpoint, each but the first is
// picked by its prefix, and the server finds its prompt cached.
func TestPathsBeforeTheRewrite(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	c := choose(ctx, t, "paths", 3, 3, "", "--time-scale=20")
	must(t, the.ApplyYAML(ctx, pathsRouteYAML))
	t.Cleanup(func() {
		must(t, the.Client.Delete(context.WithoutCancel(ctx), &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "paths"}}))
	})
	const calls, tokens = 12, 800
	for name, path := range map[string]string{
		"a prefix that is rewritten": "/llama/chat/completions",
		"Azure's path":               "/openai/deployments/sample-model/chat/completions?api-version=2024-10-21",
		"a path that tells nothing":  "/ask",
		"the API's own path":         "/v1/chat/completions",
	} {
		t.Run(name, func(t *testing.T) {
			whilePicked(ctx, t, c.name, calls, func() (wrong []string) {
				messages := []traffic.Message{{Role: "user", Content: distinct(1, tokens)[0]}}
				say := func(ctx context.Context) (*traffic.Answer, error) {
					return traffic.ChatAt(ctx, the.caller.HTTP, c.host+path, "sample-model", messages, 1)
				}
				var first *traffic.Answer
				eventually(ctx, t, "the route", func(ctx context.Context) (err error) { first, err = say(ctx); return err })
				before := picksOf(ctx, t, c.name, `outcome="prefix"`)
				for n := 2; n <= calls; n++ {
					answer, err := say(ctx)
					must(t, err)
					if answer.Endpoint != first.Endpoint {
						wrong = append(wrong, fmt.Sprintf("call %d went to %s, the first to %s", n, answer.Endpoint, first.Endpoint))
					}
					if answer.CachedTokens < tokens/2 {
						wrong = append(wrong, fmt.Sprintf("call %d: %d of %d prompt tokens were cached, want most", n, answer.CachedTokens, answer.PromptTokens))
					}
				}
				if got := picksOf(ctx, t, c.name, `outcome="prefix"`) - before; got != calls-1 {
					wrong = append(wrong, fmt.Sprintf("%d calls were picked by their prefix, want %d", got, calls-1))
				}
				return wrong
			})
		})
	}
}
