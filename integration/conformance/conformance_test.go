package conformance

import (
	"fmt"
	"io/fs"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"
	suite "sigs.k8s.io/gateway-api-inference-extension/conformance"
	"sigs.k8s.io/gateway-api-inference-extension/conformance/tests"
	"sigs.k8s.io/gateway-api-inference-extension/conformance/utils/config"
	"sigs.k8s.io/gateway-api/conformance/utils/flags"
	"sigs.k8s.io/gateway-api/conformance/utils/roundtripper"
	confsuite "sigs.k8s.io/gateway-api/conformance/utils/suite"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
)

// TestConformance runs all of the suite's tests, and ours too. With -run-test NAME it runs one.
func TestConformance(t *testing.T) {
	manifests, err := meshManifests()
	must(t, err)
	clientset, err := kubernetes.NewForConfig(the.Config)
	must(t, err)
	j := &judge{Client: the.Client}
	tests.ConformanceTests = append(tests.ConformanceTests, pickerGoneFailOpen, pickerGoneFailClose)
	for i := range tests.ConformanceTests {
		tests.ConformanceTests[i].Test = told(tests.ConformanceTests[i], j)
	}
	timeouts := config.DefaultInferenceExtensionTimeoutConfig().TimeoutConfig
	timeouts.NamespacesMustBeReady = testLimit
	configurable := confsuite.ConfigurableOptions{
		GatewayClassName:     "istio-waypoint",
		NamespaceLabels:      map[string]string{"istio.io/dataplane-mode": "ambient"},
		CleanupTestResources: true,
		ConformanceProfiles:  []confsuite.ConformanceProfileName{suite.GatewayLayerProfileName},
		SupportedFeatures:    suite.GatewayLayerProfile.CoreFeatures.UnsortedList(),
		TimeoutConfig:        timeouts,
	}
	flags.ApplyAll(&configurable)
	suite.RunConformanceWithOptions(t, confsuite.ConformanceOptions{
		ConfigurableOptions: configurable,

		Client:        j,
		ClientOptions: client.Options{Scheme: manifest.Scheme()},
		Clientset:     clientset,
		RestConfig:    the.Config,
		RoundTripper:  &roundtripper.DefaultRoundTripper{TimeoutConfig: timeouts, CustomDialContext: dial},
		BaseManifests: "resources/base.yaml",
		ManifestFS:    []fs.FS{manifests},
	})
}

// weighted is a test that takes minutes by design. For each pod of the pool with 30 % of the calls it repeats one call, a
// second apart, until three in a row have reached that pod. 70 % of the calls go to the other pool, whose picker does not
// have the pod: 36 failures on average for each of three pods.
const (
	weighted      = "GatewayWeightedAcrossTwoInferencePools"
	weightedLimit = 6 * time.Minute
)

// told is a test that prints its outcome.
func told(test confsuite.ConformanceTest, j *judge) func(*testing.T, *confsuite.ConformanceTestSuite) {
	return func(t *testing.T, s *confsuite.ConformanceTestSuite) {
		began := time.Now()
		t.Cleanup(func() {
			verdict := "passed"
			if t.Failed() {
				verdict = "FAILED"
			}
			_, _ = fmt.Fprintf(the.out, "%s  %5.1f s  %s\n", verdict, time.Since(began).Seconds(), test.ShortName)
		})
		limit := testLimit
		if test.ShortName == weighted {
			limit = weightedLimit
		}
		j.begin(t, limit)
		// A failing check must end before its test's limit.
		s.TimeoutConfig.MaxTimeToConsistency = limit - testLimit/3
		s.TimeoutConfig.HTTPRouteMustHaveCondition = testLimit / 3
		test.Test(t, s)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
