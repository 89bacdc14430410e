package conformance

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/gateway-api-inference-extension/conformance/resources"
	"sigs.k8s.io/gateway-api-inference-extension/conformance/utils/features"
	"sigs.k8s.io/gateway-api-inference-extension/conformance/utils/headers"
	k8sutils "sigs.k8s.io/gateway-api-inference-extension/conformance/utils/kubernetes"
	gwhttp "sigs.k8s.io/gateway-api/conformance/utils/http"
	confsuite "sigs.k8s.io/gateway-api/conformance/utils/suite"
	gatewayfeatures "sigs.k8s.io/gateway-api/pkg/features"
)

// The suite's FailOpen test removes the picker of a pool that the test does not call, so it passes without failing open.
// These two tests remove the picker of the pool that they call, and check that the picker is gone: it no longer steers.

// pickerGoneFailOpen: a FailOpen pool is served without its picker, by any of its endpoints.
var pickerGoneFailOpen = confsuite.ConformanceTest{
	ShortName:   "PickerGoneFailOpen",
	Description: "Calls to a pool that fails open are served, by any endpoint, while its own picker is gone",
	Manifests:   []string{"tests/epp_unavailable_fail_open.yaml"},
	Features:    []gatewayfeatures.FeatureName{features.SupportInferencePool, gatewayfeatures.SupportGateway},
	Test: func(t *testing.T, s *confsuite.ConformanceTestSuite) {
		c := pickerGone{
			route: "httproute-for-failopen-pool-gw", gateway: resources.SecondaryGatewayNN, pool: resources.SecondaryInferencePoolNN,
			picker: resources.SecondaryEppServiceNN, app: resources.SecondaryModelServerAppLabel,
			host: "secondary.example.com", path: "/failopen-pool-test",
		}
		c.takeAway(t, s)
		// Without a picker, the waypoint spreads the calls: each of the three endpoints serves some of 60.
		served := map[string]int{}
		for range 60 {
			status, pod := c.call(t, s)
			if status != http.StatusOK {
				t.Fatalf("a call was answered with %d, want 200", status)
			}
			served[pod]++
		}
		if len(served) != resources.ModelServerPodReplicas {
			t.Errorf("the calls were served by %v, want by all %d endpoints", served, resources.ModelServerPodReplicas)
		}
	},
}

// pickerGoneFailClose: a FailClose pool, which is the default, is not served without its picker.
var pickerGoneFailClose = confsuite.ConformanceTest{
	ShortName:   "PickerGoneFailClose",
	Description: "Calls to a pool that fails closed are refused while its own picker is gone",
	Manifests:   []string{"tests/gateway_following_epp_routing.yaml"},
	Features:    []gatewayfeatures.FeatureName{features.SupportInferencePool, gatewayfeatures.SupportGateway},
	Test: func(t *testing.T, s *confsuite.ConformanceTestSuite) {
		c := pickerGone{
			route: "httproute-for-primary-gw", gateway: resources.PrimaryGatewayNN, pool: resources.PrimaryInferencePoolNN,
			picker: resources.PrimaryEppServiceNN, app: resources.PrimaryModelServerAppLabel,
			host: "primary.example.com", path: "/primary-gateway-test",
		}
		c.takeAway(t, s)
		for range 20 {
			if status, pod := c.call(t, s); status != http.StatusServiceUnavailable {
				t.Fatalf("a call was answered with %d by %q, want 503", status, pod)
			}
		}
	},
}

// pickerGone is a pool behind a Gateway. A header tells the pool's picker which pod to pick.
type pickerGone struct {
	route      string
	gateway    types.NamespacedName
	pool       types.NamespacedName
	picker     types.NamespacedName
	app        string
	host, path string

	picked corev1.Pod
}

// takeAway checks that the picker steers, removes it until the test's end, and waits until it steers no longer.
func (c *pickerGone) takeAway(t *testing.T, s *confsuite.ConformanceTestSuite) {
	t.Helper()
	k8sutils.HTTPRouteAndInferencePoolMustBeAcceptedAndRouteAccepted(t, s.Client,
		types.NamespacedName{Namespace: resources.AppBackendNamespace, Name: c.route}, c.gateway, c.pool)
	pods, err := k8sutils.GetPodsWithLabel(t, s.Client, resources.AppBackendNamespace, map[string]string{"app": c.app}, s.TimeoutConfig)
	must(t, err)
	c.picked = pods[0]
	gwhttp.AwaitConvergence(t, 10, s.TimeoutConfig.MaxTimeToConsistency, func(time.Duration) bool { return c.steered(t, s) })

	restore, err := k8sutils.MakeServiceUnavailable(t, s.Client, c.picker, s.TimeoutConfig.RequestTimeout)
	must(t, err)
	t.Cleanup(restore)
	gwhttp.AwaitConvergence(t, 1, s.TimeoutConfig.MaxTimeToConsistency, func(time.Duration) bool { return !c.steered(t, s) })
}

// steered reports whether the pod in the header serves a call.
func (c *pickerGone) steered(t *testing.T, s *confsuite.ConformanceTestSuite) bool {
	t.Helper()
	status, pod := c.call(t, s)
	return status == http.StatusOK && pod == c.picked.Name
}

func (c *pickerGone) call(t *testing.T, s *confsuite.ConformanceTestSuite) (status int, pod string) {
	t.Helper()
	address := k8sutils.GetGatewayEndpoint(t, s.Client, s.TimeoutConfig, c.gateway)
	expected := gwhttp.ExpectedResponse{Request: gwhttp.Request{
		Host: c.host, Path: c.path, Method: http.MethodPost,
		Headers: map[string]string{headers.HeaderTestEppEndPointSelectionKey: fmt.Sprint(c.picked.Status.PodIP, ":3000")},
		Body:    `{"model": "conformance-fake-model", "prompt": "Hello"}`,
	}}
	request, response, err := s.RoundTripper.CaptureRoundTrip(gwhttp.MakeRequest(t, &expected, address, "HTTP", "http"))
	must(t, err)
	return response.StatusCode, request.Pod
}
