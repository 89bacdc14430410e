package doctor

import (
	"errors"
	"path/filepath"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/snapshottest"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

func istiod(image string, env ...corev1.EnvVar) *appsv1.Deployment {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istiod"}}
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "discovery", Image: image, Env: env}}
	d.Status.ReadyReplicas = 1
	return d
}

func definition(name, annotation, value string) *apiextensionsv1.CustomResourceDefinition {
	return &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{annotation: value}}}
}

var ambientOn = corev1.EnvVar{Name: ambientFlag, Value: "true"}

// wellFacts are the facts of a cluster without faults.
func wellFacts(t *testing.T) Facts {
	f := Facts{
		Server: &version.Info{GitVersion: "v1.36.3"},
		Served: map[Kind]bool{},
		Definitions: cluster.List[apiextensionsv1.CustomResourceDefinition]{Items: []*apiextensionsv1.CustomResourceDefinition{
			definition(families[0].definition, families[0].annotation, "v1.6.3"), definition(families[1].definition, families[1].annotation, "v1.6.0"),
		}},
		Istiods: cluster.List[appsv1.Deployment]{Items: []*appsv1.Deployment{istiod("registry.istio.io/release/pilot:1.31.4-distroless", ambientOn)}},
		DaemonSets: cluster.List[appsv1.DaemonSet]{Items: []*appsv1.DaemonSet{{
			ObjectMeta: metav1.ObjectMeta{Name: "ztunnel", Namespace: "istio-system"},
			Status:     appsv1.DaemonSetStatus{DesiredNumberScheduled: 3, NumberReady: 3},
		}}},
		Snapshot: snapshottest.Load(t, "../status/testdata/system.yaml", "../status/testdata/models.yaml"),
	}
	for _, k := range Kinds() {
		f.Served[k] = true
	}
	endpoint := func(name string) livestate.Endpoint {
		return livestate.Endpoint{Name: name, Ready: true, Reading: &livestate.Reading{Age: 0.1}}
	}
	answer := func(picker, other string) cluster.Answer {
		silent := 0.3
		return cluster.Answer{
			Pod:   types.NamespacedName{Namespace: "inference-system", Name: picker},
			State: livestate.State{Picker: picker, Others: []livestate.Other{{Picker: other, Silent: &silent}}},
		}
	}
	f.Snapshot.Answers = []cluster.Answer{answer("inference-picker-0", "inference-picker-1"), answer("inference-picker-1", "inference-picker-0")}
	f.Snapshot.Answers[0].State.Pools = []livestate.Pool{{
		Name: "models/llama", Endpoints: []livestate.Endpoint{endpoint("llama-0"), endpoint("llama-1")},
		PickedBy: []livestate.PickedBy{{Picker: "inference-picker-0", Since: 60}},
	}}
	return f
}

// TestExamine examines a cluster with a single fault, and compares the report with testdata/<name>.txt.
func TestExamine(t *testing.T) {
	forbidden := &cluster.Problem{Cause: cluster.NotPermitted, Text: "not permitted to list deployments"}
	picked := func(status metav1.ConditionStatus, reason, message string) func(*Facts) {
		return func(f *Facts) {
			c := meta.FindStatusCondition(f.Snapshot.Pools.Items[0].Status.Parents[0].Conditions, poolstatus.Picked)
			c.Status, c.Reason, c.Message = status, reason, message
		}
	}
	tests := map[string]struct {
		change   func(*Facts)
		wide     bool
		wantCode int
	}{
		"well":      {wantCode: ExitOK},
		"well-wide": {wide: true, wantCode: ExitOK},
		"no-api-server": {change: func(f *Facts) {
			f.ServerProblem = &cluster.Problem{Cause: cluster.NotReached, Text: "the API server does not answer: connection refused"}
		}, wantCode: ExitUnknown},
		"old-kubernetes": {change: func(f *Facts) { f.Server.GitVersion = "v1.30.1" }, wantCode: ExitFailed},
		"no-definitions": {change: func(f *Facts) {
			for k := range f.Served {
				f.Served[k] = false
			}
			f.Snapshot.Pools = cluster.List[inferencev1.InferencePool]{Problem: &cluster.Problem{Cause: cluster.NotInstalled}}
		}, wantCode: ExitFailed},
		"old-gateway-api": {change: func(f *Facts) {
			f.Definitions.Items[0] = definition(families[0].definition, families[0].annotation, "v1.2.0")
		}, wantCode: ExitOK},
		"definitions-unread": {change: func(f *Facts) {
			f.Definitions = cluster.List[apiextensionsv1.CustomResourceDefinition]{Problem: forbidden}
		}, wantCode: ExitOK},
		"no-istio": {change: func(f *Facts) { f.Istiods.Items = nil }, wantCode: ExitFailed},
		"old-istio": {change: func(f *Facts) {
			f.Istiods.Items[0] = istiod("docker.io/istio/pilot:1.24.3-distroless@sha256:0a", ambientOn)
		}, wantCode: ExitFailed},
		"istio-of-own-build": {change: func(f *Facts) { f.Istiods.Items[0] = istiod("example.com:5000/pilot:latest", ambientOn) }, wantCode: ExitOK},
		"sidecars-only": {change: func(f *Facts) {
			f.Istiods.Items[0] = istiod("docker.io/istio/pilot:1.31.4")
			f.Snapshot.Namespaces.Items[0].Labels = map[string]string{"istio-injection": "enabled", "istio.io/use-waypoint": "waypoint"}
		}, wantCode: ExitFailed},
		"no-addresses": {change: func(f *Facts) {
			f.Istiods.Items[0] = istiod("docker.io/istio/pilot:1.31.4", ambientOn, corev1.EnvVar{Name: autoAllocateFlag, Value: "false"})
			f.Snapshot.Entries.Items[0].Status.Addresses = nil
		}, wantCode: ExitFailed},
		"inference-flag": {change: func(f *Facts) {
			f.Istiods.Items[0] = istiod("docker.io/istio/pilot:1.31.4", ambientOn, corev1.EnvVar{Name: inferenceFlag, Value: "true"})
		}, wantCode: ExitOK},
		"istio-unread":      {change: func(f *Facts) { f.Istiods = cluster.List[appsv1.Deployment]{Problem: forbidden} }, wantCode: ExitUnknown},
		"no-ztunnel":        {change: func(f *Facts) { f.DaemonSets.Items = nil }, wantCode: ExitFailed},
		"ztunnel-not-ready": {change: func(f *Facts) { f.DaemonSets.Items[0].Status.NumberReady = 1 }, wantCode: ExitFailed},
		"config-refused":    {change: func(f *Facts) { f.Rejects = 3 }, wantCode: ExitOK},
		"rejects-unread": {change: func(f *Facts) {
			f.RejectsErr = &cluster.Problem{Cause: cluster.NotPermitted, Text: "not permitted to reach it"}
		}, wantCode: ExitUnknown},
		"not-installed": {change: func(f *Facts) {
			f.Snapshot.Deployments.Items, f.Snapshot.Pools.Items, f.Snapshot.Answers = nil, nil, nil
		}, wantCode: ExitFailed},
		"picker-not-reached": {change: func(f *Facts) {
			f.Snapshot.Answers[0] = cluster.Answer{Pod: f.Snapshot.Answers[0].Pod, Err: errors.New("not permitted to reach the picker")}
		}, wantCode: ExitUnknown},
		"no-picker":      {change: func(f *Facts) { f.Snapshot.Answers = nil }, wantCode: ExitFailed},
		"metrics-unread": {change: func(f *Facts) { f.Snapshot.Answers[0].State.Pools[0].Endpoints[1].Reading = nil }, wantCode: ExitFailed},
		"metrics-stale":  {change: func(f *Facts) { f.Snapshot.Answers[0].State.Pools[0].Endpoints[1].Reading.Age = 60 }, wantCode: ExitFailed},
		"ineffective-config": {change: func(f *Facts) {
			parent := &f.Snapshot.Pools.Items[0].Status.Parents[0]
			parent.Conditions = append(parent.Conditions, metav1.Condition{
				Type: poolstatus.IneffectiveConfig, Status: metav1.ConditionTrue, Reason: "IneffectiveConfig", ObservedGeneration: 2,
				Message: "without effect on calls to the pool: VirtualService models/faults (write an HTTPRoute whose parent is the host's object)",
			})
		}, wantCode: ExitOK},
		"idle":       {change: picked("True", "Idle", "calls were picked, the last one more than 10 minutes ago"), wantCode: ExitOK},
		"not-called": {change: picked("Unknown", "NotCalled", "no call has come by the waypoint yet"), wantCode: ExitOK},
		"unpicked": {change: picked("False", "Unpicked", "a tenth of the calls or more are spread over the endpoints without a pick: the picker does not answer in time"),
			wantCode: ExitFailed},
		"counters-unread": {change: picked("Unknown", "CountersUnread",
			"whether calls are picked is not known: no pod of the waypoint shows its counters at port 15090; a NetworkPolicy may keep the controller away"), wantCode: ExitOK},
		"pickers-apart": {change: func(f *Facts) {
			f.Snapshot.Answers[0].State.Others = []livestate.Other{{Picker: "10.244.0.9:9004"}}
		}, wantCode: ExitOK},
		"no-envoyfilter":  {change: func(f *Facts) { f.Snapshot.Filters.Items = nil }, wantCode: ExitFailed},
		"pod-out-of-mesh": {change: func(f *Facts) { f.Snapshot.Pods.Items[2].Annotations = nil }, wantCode: ExitOK},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := wellFacts(t)
			if tt.change != nil {
				tt.change(&f)
			}
			report := Examine(f)
			if code := report.ExitCode(); code != tt.wantCode {
				t.Errorf("exit code %d, want %d", code, tt.wantCode)
			}
			snapshottest.Golden(t, filepath.Join("testdata", name+".txt"), report.Text(tt.wide))
		})
	}
}
