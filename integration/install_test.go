package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkpolicyv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
	"github.com/inference-waypoint/inference-waypoint/internal/modules"
)

const (
	system            = "inference-system"
	controllerAccount = "inference-controller"
	pickerAccount     = "inference-picker"
	owned             = "inference-waypoint.io/owned"
)

// kustomizations are all kustomizations in manifests/ that can be applied.
var kustomizations = []string{
	"manifests", "manifests/overlays/default", "manifests/overlays/monitoring", "manifests/overlays/autoscaling", "manifests/monitoring",
	"manifests/uninstall",
}

// The API server, with istiod's webhook on, accepts everything in manifests/, and istioctl analyze reports nothing.
func TestManifestsAreTaken(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	definePrometheusKinds(ctx, t)
	for _, path := range kustomizations {
		t.Run(path, func(t *testing.T) {
			objects, err := the.Read(path)
			must(t, err)
			var stream bytes.Buffer
			for _, o := range objects {
				text, err := yaml.Marshal(o.Object)
				must(t, err)
				stream.WriteString("---\n" + string(text))
				apply := client.ApplyConfigurationFromUnstructured(o.DeepCopy())
				if err := the.Client.Apply(ctx, apply, client.FieldOwner("test"), client.ForceOwnership, client.DryRunAll); err != nil {
					t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
				}
			}
			file := filepath.Join(t.TempDir(), "all.yaml")
			must(t, os.WriteFile(file, stream.Bytes(), 0o644))
			out, err := exec.CommandContext(ctx, filepath.Join(the.Root, ".tools", "istioctl"), "analyze", "--use-kube=false", "--failure-threshold=Info", file).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "No validation issues found") {
				t.Errorf("istioctl analyze (%v): %s", err, out)
			}
		})
	}
}

// definePrometheusKinds defines the kinds of the Prometheus operator in the API server.
func definePrometheusKinds(ctx context.Context, t *testing.T) {
	t.Helper()
	const module = "github.com/prometheus-operator/prometheus-operator"
	pin := filepath.Join(the.Root, "integration", "tools", "prometheus-operator")
	dir, err := modules.Dir(ctx, pin, module)
	must(t, err)
	for _, kind := range []string{"podmonitors", "prometheusrules"} {
		must(t, the.Apply(ctx, filepath.Join(dir, "example", "prometheus-operator-crd", "monitoring.coreos.com_"+kind+".yaml")))
	}
}

// Each account has the rights in this list and no others, according to the API server.
func TestAccountsMayDoNoMore(t *testing.T) {
	ctx := begin(t, time.Minute)
	const look, write = "get,list,watch", "create,delete,get,list,patch,watch"
	pickerRights := []string{
		"inferenceobjectives.inference.networking.x-k8s.io: list,watch", "inferenceobjectives.llm-d.ai: list,watch",
		"inferencepools.inference.networking.k8s.io: " + look, "pods: " + look,
		"subjectaccessreviews.authorization.k8s.io: create", "tokenreviews.authentication.k8s.io: create",
	}
	tests := map[string]struct {
		account, namespace string
		want               []string // "resource: verbs"
	}{
		"the controller": {controllerAccount, "models", []string{
			"destinationrules.networking.istio.io: list,watch",
			"envoyfilters.networking.istio.io: " + write,
			"events.events.k8s.io: create,patch",
			"gateways.gateway.networking.k8s.io: " + write,
			"grpcroutes.gateway.networking.k8s.io: " + look,
			"grpcroutes/status.gateway.networking.k8s.io: patch",
			"httproutes.gateway.networking.k8s.io: " + look,
			"httproutes/status.gateway.networking.k8s.io: patch",
			"inferencepools.inference.networking.k8s.io: " + look,
			"inferencepools/status.inference.networking.k8s.io: patch",
			"namespaces: " + look,
			"pods: list,watch",
			"referencegrants.gateway.networking.k8s.io: " + look,
			"serviceentries.networking.istio.io: " + write,
			"services: " + look,
			"virtualservices.networking.istio.io: list,watch",
		}},
		"the picker":                      {pickerAccount, "models", pickerRights},
		"the picker in its own namespace": {pickerAccount, system, slices.Concat([]string{"endpointslices.discovery.k8s.io: " + look}, slices.Insert(slices.Clone(pickerRights), 4, "secrets/inference-picker-key: get"))},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := slices.DeleteFunc(rights(ctx, t, tt.account, tt.namespace), func(r string) bool {
				return slices.Contains(rights(ctx, t, "default", tt.namespace), r) // rights of every account
			})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("rights (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("the controller in its own namespace", func(t *testing.T) {
		got := strings.Join(rights(ctx, t, controllerAccount, system), "\n")
		for _, want := range []string{"events: create,patch", "authorizationpolicies.security.istio.io: " + write, "leases.coordination.k8s.io: create", "leases.coordination.k8s.io/inference-waypoint-controller: get,update", "secrets: create", "secrets/inference-picker-key: delete,get,patch", "pods/status: patch"} {
			if !strings.Contains(got, want) {
				t.Errorf("it lacks %s", want)
			}
		}
		if strings.Count(got, "secrets") > 2 || strings.Count(got, "pods") > 2 || strings.Contains(got, "deployments") {
			t.Errorf("it has more than it needs:\n%s", got)
		}
	})
}

// rights lists, sorted by resource, the rights in a namespace of an account of our namespace.
func rights(ctx context.Context, t *testing.T, account, namespace string) []string {
	t.Helper()
	review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}
	must(t, as(t, account).Create(ctx, review))
	if review.Status.Incomplete {
		t.Fatalf("the API server does not know all: %s", review.Status.EvaluationError)
	}
	verbs := map[string][]string{}
	for _, rule := range review.Status.ResourceRules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				name := strings.TrimSuffix(resource+"."+group, ".")
				if len(rule.ResourceNames) > 0 {
					name += "/" + strings.Join(rule.ResourceNames, ",")
				}
				verbs[name] = append(verbs[name], rule.Verbs...)
			}
		}
	}
	var out []string
	for name, v := range verbs {
		slices.Sort(v)
		out = append(out, name+": "+strings.Join(slices.Compact(v), ","))
	}
	slices.Sort(out)
	return out
}

// as returns a client that acts as an account of our namespace.
func as(t *testing.T, account string) client.Client {
	t.Helper()
	return asOf(t, system, account)
}

// asOf returns a client that acts as a service account.
func asOf(t *testing.T, namespace, account string) client.Client {
	t.Helper()
	config := rest.CopyConfig(the.Config)
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + namespace + ":" + account,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
	}
	c, err := client.New(config, client.Options{Scheme: manifest.Scheme()})
	must(t, err)
	return c
}

// Of pods' statuses the controller writes only whether pods of its own namespace are ready.
func TestControllerWritesOnlyWhetherPodsAreReady(t *testing.T) {
	ctx := begin(t, time.Minute)
	controller := as(t, controllerAccount)
	target := picker(ctx, t)
	status := func(pod *corev1.Pod, kind types.PatchType, status string) error {
		pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
		return controller.Status().Patch(ctx, pod, client.RawPatch(kind, []byte(`{"status":`+status+`}`)), client.DryRunAll)
	}
	const ready = `{"conditions":[{"type":"Ready","status":"False","reason":"PickerUnreachable"}]}`
	must(t, status(target, types.StrategicMergePatchType, ready))
	for what, change := range map[string]string{
		"another condition":   `{"conditions":[{"type":"ContainersReady","status":"False"}]}`,
		"one condition more":  `{"conditions":[{"type":"example.com/Checked","status":"True"}]}`,
		"phase":               `{"phase":"Failed"}`,
		"state of containers": `{"containerStatuses":[{"name":"picker","ready":false,"image":"i","imageID":"i","restartCount":7}]}`,
	} {
		if err := status(target, types.StrategicMergePatchType, change); !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) || !strings.Contains(fmt.Sprint(err), "only the condition Ready") {
			t.Errorf("%s gave %v, want that the policy forbids it", what, err)
		}
	}
	const address = `{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"}]}`
	if err := status(target, types.MergePatchType, address); !strings.Contains(fmt.Sprint(err), "only the condition Ready") {
		t.Errorf("its address gave %v, want that the policy forbids it", err)
	}
	if err := status(&modelServers(ctx, t)[0], types.StrategicMergePatchType, ready); !apierrors.IsForbidden(err) {
		t.Errorf("a pod of another namespace gave %v, want that it may not", err)
	}
}

// The controller writes only objects with its label: no Gateway of others, and no Gateway that it does not label.
func TestControllerWritesOnlyItsOwn(t *testing.T) {
	ctx := begin(t, time.Minute)
	controller := as(t, controllerAccount)
	theirs := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "waypoint"}}
	ours := serviceEntry("llama")
	mark := func(value string) client.Patch {
		return client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}}}`, owned, value))
	}
	unmarked := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "unmarked"}}
	unmarked.Spec.Hosts = []string{"unmarked.example"}
	for name, err := range map[string]error{
		"deleting another's Gateway":           controller.Delete(ctx, theirs),
		"marking another's Gateway as its own": controller.Patch(ctx, theirs, mark(`"true"`)),
		"making an object without the label":   controller.Create(ctx, unmarked),
		"taking the label off":                 controller.Patch(ctx, ours, mark("null")),
	} {
		if !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) || !strings.Contains(fmt.Sprint(err), owned) {
			t.Errorf("%s gave %v, want that the policy forbids it", name, err)
		}
	}
	must(t, controller.Patch(ctx, ours, mark(`"true"`)))
	if err := as(t, pickerAccount).Delete(ctx, serviceEntry("llama")); !apierrors.IsForbidden(err) {
		t.Errorf("the picker deleting a ServiceEntry gave %v, want that it may not", err)
	}
}

// The API server enforces the restricted level in our namespace, and accepts all our pods there.
func TestPodsAreRestricted(t *testing.T) {
	ctx := begin(t, time.Minute)
	var ns corev1.Namespace
	must(t, the.Client.Get(ctx, client.ObjectKey{Name: system}, &ns))
	if ns.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
		t.Errorf("the namespace's labels are %v", ns.Labels)
	}
	found := 0
	for _, path := range []string{"manifests/overlays/default", "manifests/uninstall"} {
		objects, err := the.Read(path)
		must(t, err)
		for _, o := range objects {
			template, ok := templateOf(t, o)
			if !ok {
				continue
			}
			found++
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "probe"}, Spec: template.Spec}
			if err := the.Client.Create(ctx, pod.DeepCopy(), client.DryRunAll); err != nil {
				t.Errorf("%s of %s: %v", o.GetName(), path, err)
			}
			pod.Spec.Containers[0].SecurityContext = nil
			if err := the.Client.Create(ctx, pod, client.DryRunAll); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "PodSecurity") {
				t.Errorf("%s without its security context gave %v, want that it is refused", o.GetName(), err)
			}
		}
	}
	if found != 3 {
		t.Errorf("%d pod templates were tried, want 3", found)
	}
}

// templateOf returns the pod template of a Deployment or a Job.
func templateOf(t *testing.T, o *unstructured.Unstructured) (corev1.PodTemplateSpec, bool) {
	t.Helper()
	var job batchv1.Job
	var deployment appsv1.Deployment
	switch o.GetKind() {
	case "Job":
		must(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &job))
		return job.Spec.Template, true
	case "Deployment":
		must(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &deployment))
		return deployment.Spec.Template, true
	}
	return corev1.PodTemplateSpec{}, false
}

// admitYAML admits to the picker the service account of a waypoint's name in a namespace without waypoints.
const admitYAML = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: admit, namespace: inference-system}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: inference-picker}}
  rules: [{from: [{source: {principals: ["*/ns/hostile/sa/waypoint"]}}], to: [{operation: {ports: ["9002"]}}]}]
`

// The waypoints of pools reach the picker's ext_proc port. A service of the mesh does not, nor does a service account with
// a waypoint's name in another namespace. With a policy that admits the latter, it does: so it is the policies that keep it
// out. Anybody may read metrics.
func TestPickerAdmitsExactWaypoints(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	applyYAML(ctx, t, `{apiVersion: v1, kind: Namespace, metadata: {name: hostile, labels: {istio.io/dataplane-mode: ambient}}}`)
	hostile, err := the.NewCaller(ctx, "hostile", "caller", "waypoint")
	must(t, err)
	defer hostile.Close()
	reach := func(ctx context.Context, from *mesh.Caller, port int) error {
		conn, err := from.DialPod(ctx, picker(ctx, t), port)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	kept := func(ctx context.Context) error {
		for name, from := range map[string]*mesh.Caller{"a service": the.caller, "a service account named waypoint": hostile} {
			switch err := reach(ctx, from, 9002); {
			case err == nil:
				return fmt.Errorf("%s reaches the picker", name)
			case !strings.Contains(err.Error(), "401"):
				return fmt.Errorf("%s asking the picker got %w, want a 401", name, err)
			}
		}
		return nil
	}
	must(t, kept(ctx))
	must(t, reach(ctx, the.caller, 9090))
	must(t, staysPut(ctx, llama))

	must(t, the.ApplyYAML(ctx, admitYAML))
	eventually(ctx, t, "the picker open to it", func(ctx context.Context) error { return reach(ctx, hostile, 9002) })
	withdraw(ctx, t, admitYAML)
	eventually(ctx, t, "the picker closed again", kept)
	must(t, staysPut(ctx, llama))
}

// The NetworkPolicy selects the pods that istiod makes for waypoints, and no other pod of the mesh. Networks of clusters
// enforce it; this mesh does not.
func TestNetworkPolicyNamesWaypoints(t *testing.T) {
	ctx := begin(t, time.Minute)
	var policy networkpolicyv1.NetworkPolicy
	must(t, the.Client.Get(ctx, client.ObjectKey{Namespace: system, Name: "inference-picker"}, &policy))
	selected, err := metav1.LabelSelectorAsSelector(policy.Spec.Ingress[0].From[0].PodSelector)
	must(t, err)
	var all corev1.PodList
	must(t, the.Client.List(ctx, &all))
	var waypoints int
	for _, p := range all.Items {
		isWaypoint := p.Labels["gateway.networking.k8s.io/gateway-class-name"] == "istio-waypoint"
		if got := selected.Matches(labels.Set(p.Labels)); got != isWaypoint {
			t.Errorf("pod %s/%s: the policy takes it for a waypoint: %v", p.Namespace, p.Name, got)
		}
		if isWaypoint {
			waypoints++
		}
	}
	if waypoints == 0 {
		t.Error("there is no pod of a waypoint")
	}
	for _, rule := range policy.Spec.Ingress {
		for _, port := range rule.Ports {
			if port.Port.IntValue() == 9002 {
				t.Error("the ext_proc port is open past the mesh")
			}
		}
	}
}

// A rolling update of the picker and of the controller loses no call under steady load.
func TestUpgradeLosesNoCall(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	before := append(pickers(ctx, t), controllers(ctx, t)...)
	stop := flow(ctx, 4)
	for _, name := range []string{pickerAccount, controllerAccount} { // also the names of the Deployments
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: name}}
		must(t, the.Client.Patch(ctx, d, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"template":{"spec":{"terminationGracePeriodSeconds":40}}}}`))))
	}
	eventually(ctx, t, "new pods in the place of all", func(ctx context.Context) error {
		for _, old := range before {
			if err := gone(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: old.Namespace, Name: old.Name}}); err != nil {
				return fmt.Errorf("pod %s: %w", old.Name, err)
			}
		}
		return nil
	})
	must(t, the.AwaitDeployment(ctx, system, pickerAccount))
	must(t, the.AwaitDeployment(ctx, system, controllerAccount))
	eventually(ctx, t, "picking", func(ctx context.Context) error { return staysPut(ctx, llama) })
	outcomes := stop()
	if len(outcomes) < 20 {
		t.Errorf("only %d calls were made: too few to say anything", len(outcomes))
	}
	for _, o := range outcomes {
		if o.err != nil {
			t.Errorf("a call was lost: %v", o.err)
		}
	}
}

func controllers(ctx context.Context, t *testing.T) []corev1.Pod {
	t.Helper()
	return pods(ctx, t, system, client.MatchingLabels{"app.kubernetes.io/name": controllerAccount})
}

// An uninstallation in the documented order leaves nothing of ours in any namespace or status, and loses no call to a
// Service that was a pool's front. An installation afterwards, by Helm and then by kustomize, serves the remaining pools
// again.
func TestUninstallLeavesNothing(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	must(t, the.ApplyYAML(ctx, `
apiVersion: v1
kind: Namespace
metadata: {name: leaving, labels: {istio.io/dataplane-mode: ambient, inference-waypoint.io/waypoint: inference}}
`))
	serve(ctx, t, "leaving", "echo", echoServer, 1)
	eventually(ctx, t, "a served call", func(ctx context.Context) error {
		return wantHeard(ctx, "http://echo.leaving.inference.internal/x", "echo-")
	})
	must(t, the.ApplyYAML(ctx, `
apiVersion: v1
kind: Service
metadata: {name: adopted, namespace: models, annotations: {inference-waypoint.io/pool: llama}}
spec: {selector: {app: llama}, ports: [{name: http, port: 80, targetPort: 8000}]}
`))
	defer func() {
		must(t, the.Client.Delete(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "adopted"}}))
	}()
	eventually(ctx, t, "picking at the Service", func(ctx context.Context) error { return staysPut(ctx, "http://adopted.models") })
	if len(leftovers(ctx, t)) == 0 {
		t.Fatal("there is nothing to take back")
	}

	lost := callAdopted(ctx)
	must(t, the.Client.Delete(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: controllerAccount}}))
	job := uninstallPod(ctx, t)
	eventually(ctx, t, "the end of what is ours", func(ctx context.Context) error {
		if left := leftovers(ctx, t); len(left) > 0 {
			return fmt.Errorf("left are %v", left)
		}
		return nil
	})
	must(t, the.Client.Delete(ctx, job))
	deleteManifests(ctx, t)
	for _, err := range lost() {
		t.Errorf("a call to the Service was lost: %v", err)
	}
	if left := leftovers(ctx, t); len(left) > 0 {
		t.Errorf("left are %v", left)
	}

	must(t, the.Client.Delete(ctx, &inferencev1.InferencePool{ObjectMeta: metav1.ObjectMeta{Namespace: "leaving", Name: "echo"}}))
	helm(ctx, t, "install", "test", chartForAnyVersion(t))
	serves := func() {
		t.Helper()
		must(t, the.AwaitDeployment(ctx, system, controllerAccount))
		must(t, the.AwaitDeployment(ctx, system, pickerAccount))
		eventually(ctx, t, "picking", func(ctx context.Context) error { return staysPut(ctx, llama) })
	}
	serves()
	helm(ctx, t, "uninstall", "test", "--no-hooks") // its Job would wait for a Job controller
	must(t, the.Apply(ctx, "manifests"))
	must(t, onePicker(ctx))
	serves()
}

// chartForAnyVersion copies the chart without its required version of Kubernetes: an API server built from its module, as
// here, does not know its version.
func chartForAnyVersion(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "inference-waypoint")
	must(t, os.CopyFS(dir, os.DirFS(filepath.Join(the.Root, "manifests", "charts", "inference-waypoint"))))
	linked := filepath.Join(dir, "monitoring") // the link's target, which the copy lacks
	must(t, os.Remove(linked))
	must(t, os.CopyFS(linked, os.DirFS(filepath.Join(the.Root, "manifests", "monitoring"))))
	file := filepath.Join(dir, "Chart.yaml")
	content, err := os.ReadFile(file)
	must(t, err)
	lines := slices.DeleteFunc(strings.SplitAfter(string(content), "\n"), func(l string) bool { return strings.HasPrefix(l, "kubeVersion:") })
	must(t, os.WriteFile(file, []byte(strings.Join(lines, "")), 0o644))
	return dir
}

func helm(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(the.Root, ".tools", "helm"), append(args, "--namespace", system, "--kubeconfig", the.Kubeconfig())...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("helm %s: %v: %s", args[0], err, out)
	}
}

// callAdopted calls the Service until the returned function is called, which returns the errors.
func callAdopted(ctx context.Context) func() []error {
	ctx, cancel := context.WithCancel(ctx)
	var lost []error
	var wait sync.WaitGroup
	wait.Go(func() {
		for ctx.Err() == nil {
			h, err := send(ctx, http.MethodGet, "http://adopted.models/v1/models", "")
			if err == nil && h.Status != http.StatusOK {
				err = fmt.Errorf("status %d", h.Status)
			}
			if err != nil && ctx.Err() == nil {
				lost = append(lost, err)
			}
		}
	})
	return func() []error {
		cancel()
		wait.Wait()
		return lost
	}
}

// uninstallPod makes the pod of the Job in manifests/uninstall, as no Job controller runs here.
func uninstallPod(ctx context.Context, t *testing.T) *corev1.Pod {
	t.Helper()
	objects, err := the.Read("manifests/uninstall")
	must(t, err)
	template, ok := templateOf(t, objects[0])
	if !ok || len(objects) != 1 {
		t.Fatalf("manifests/uninstall holds %v, want a Job", objects)
	}
	container := &template.Spec.Containers[0]
	container.Args = append(container.Args, "--drain=3s") // the mesh's waypoints drain for a second
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "uninstall", Labels: template.Labels}, Spec: template.Spec}
	must(t, the.Client.Create(ctx, pod))
	return pod
}

// deleteManifests deletes the objects of manifests/ except the namespace, which needs a namespace controller to go.
func deleteManifests(ctx context.Context, t *testing.T) {
	t.Helper()
	objects, err := the.Read("manifests")
	must(t, err)
	for _, o := range objects {
		if o.GetKind() == "Namespace" {
			continue
		}
		must(t, client.IgnoreNotFound(the.Client.Delete(ctx, o)))
	}
	eventually(ctx, t, "the end of our pods", func(ctx context.Context) error {
		var list corev1.PodList
		err := the.Client.List(ctx, &list, client.InNamespace(system))
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are left", len(list.Items))
		}
		return err
	})
}

// leftovers names each object with our label and each status with an entry of the controller.
func leftovers(ctx context.Context, t *testing.T) []string {
	t.Helper()
	var out []string
	for _, list := range []client.ObjectList{&networkingv1.ServiceEntryList{}, &networkingv1alpha3.EnvoyFilterList{}, &gatewayv1.GatewayList{}} {
		must(t, the.Client.List(ctx, list, client.HasLabels{owned}))
		must(t, eachObject(list, func(o client.Object) { out = append(out, fmt.Sprintf("%T %s", o, client.ObjectKeyFromObject(o))) }))
	}
	const us = "inference-waypoint.io/controller"
	var pools inferencev1.InferencePoolList
	must(t, the.Client.List(ctx, &pools))
	for _, p := range pools.Items {
		if slices.ContainsFunc(p.Status.Parents, func(s inferencev1.ParentStatus) bool { return s.ControllerName == us }) {
			out = append(out, "the status of pool "+p.Namespace+"/"+p.Name)
		}
	}
	var routes gatewayv1.HTTPRouteList
	must(t, the.Client.List(ctx, &routes))
	for _, r := range routes.Items {
		if slices.ContainsFunc(r.Status.Parents, func(s gatewayv1.RouteParentStatus) bool { return s.ControllerName == us }) {
			out = append(out, "the status of route "+r.Namespace+"/"+r.Name)
		}
	}
	return out
}

func eachObject(list client.ObjectList, do func(client.Object)) error {
	return meta.EachListItem(list, func(o runtime.Object) error {
		c, ok := o.(client.Object)
		if !ok {
			return errors.New("an item that is no object")
		}
		do(c)
		return nil
	})
}
