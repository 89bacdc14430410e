package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utiljson "k8s.io/apimachinery/pkg/util/json" // keeps whole numbers whole
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

// plugin builds kubectl inference, once.
var plugin = sync.OnceValues(func() (string, error) {
	path := filepath.Join(the.Root, "bin", "kubectl-inference")
	build := exec.Command("go", "build", "-o", path, "./cmd/kubectl-inference")
	build.Dir = the.Root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the plugin: %w: %s", err, out)
	}
	return path, nil
})

// said is the output of a run of the plugin.
type said struct {
	out, err string
	code     int
}

// kubectl runs the plugin as the administrator, or with another kubeconfig.
func kubectl(ctx context.Context, t *testing.T, kubeconfig, stdin string, args ...string) said {
	t.Helper()
	path, err := plugin()
	must(t, err)
	if kubeconfig == "" {
		kubeconfig = the.Kubeconfig()
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	cmd.Dir = the.Root
	cmd.Stdin = strings.NewReader(stdin)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return said{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// wantSaid checks the exit code, that the output has all of the texts, and that it has no error of a program.
func wantSaid(t *testing.T, got said, code int, texts ...string) {
	t.Helper()
	all := got.out + got.err
	if got.code != code {
		t.Errorf("exit code %d, want %d:\n%s", got.code, code, all)
	}
	for _, text := range texts {
		if !strings.Contains(all, text) {
			t.Errorf("it does not say %q:\n%s", text, all)
		}
	}
	for _, bad := range []string{"panic", "goroutine", "memcache.go", "%!"} {
		if strings.Contains(all, bad) {
			t.Errorf("it says %q:\n%s", bad, all)
		}
	}
}

func TestKubectlStatus(t *testing.T) {
	ctx := begin(t, time.Minute)
	must(t, ask(ctx, "Who serves this?"))
	eventually(ctx, t, "a controller that has seen the pick", func(ctx context.Context) error {
		if got := kubectl(ctx, t, "", "", "status", "llama", "-n", "models").out; !strings.Contains(got, "picking") {
			return errors.New(got)
		}
		return nil
	})
	wantSaid(t, kubectl(ctx, t, "", "", "status", "-n", "models"), 0, "models", "llama", "picking", "models/waypoint", "inference-system/inference-picker:9002", "4/4")
	wantSaid(t, kubectl(ctx, t, "", "", "status", "llama", "-n", "models"), 0,
		"http://llama.models.inference.internal", "programmed, 1 of 1 pods ready", "Inference Waypoint's own, 1 of 1 pods ready", "llama-3", "Accepted", "the waypoint serves the pool")
	wantSaid(t, kubectl(ctx, t, "", "", "status", "nobody", "-n", "models"), 1, "no InferencePool nobody in namespace models")
	var report struct {
		Pools []struct {
			Name, State string
			ReadyPods   int
		}
	}
	must(t, json.Unmarshal([]byte(kubectl(ctx, t, "", "", "status", "-A", "-o", "json").out), &report))
	i := slices.IndexFunc(report.Pools, func(p struct {
		Name, State string
		ReadyPods   int
	}) bool {
		return p.Name == "llama"
	})
	if i < 0 || report.Pools[i].State != "picking" || report.Pools[i].ReadyPods != 4 {
		t.Errorf("as JSON: %+v", report)
	}
	wantSaid(t, kubectl(ctx, t, "", "", "__complete", "status", "-n", "models", ""), 0, "llama\n")
}

// Status names a problem with the next step: a pool without a waypoint, missing pods, a missing picker.
func TestKubectlStatusSaysWhatIsWrong(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	must(t, the.ApplyYAML(ctx, strings.NewReplacer("NAME", "nopods", "app: llama", "app: nothing").Replace(poolYAML)))
	defer func() { must(t, the.Client.Delete(ctx, pool("nopods"))) }()
	must(t, the.ApplyYAML(ctx, `
{apiVersion: v1, kind: Namespace, metadata: {name: unbound, labels: {istio.io/dataplane-mode: ambient}}}
---
`+strings.NewReplacer("NAME", "adrift", "namespace: models", "namespace: unbound").Replace(poolYAML)))
	eventually(ctx, t, "a report of both", func(ctx context.Context) error {
		got := kubectl(ctx, t, "", "", "status", "-A").out
		for _, want := range []string{
			"No pod in namespace models has the labels app=nothing.",
			"No waypoint serves the pool: namespace unbound is bound to none.", "next: kubectl label namespace unbound inference-waypoint.io/waypoint=inference",
		} {
			if !strings.Contains(got, want) {
				return fmt.Errorf("it does not say %q:\n%s", want, got)
			}
		}
		if strings.Contains(got, "has written no status of the pool") {
			return fmt.Errorf("the controller has not come to it:\n%s", got)
		}
		return nil
	})
	wantSaid(t, kubectl(ctx, t, "", "", "doctor"), 1, "pool models/nopods: No pod in namespace models", "next: ")

	scalePicker(ctx, t, 0)
	defer scalePicker(ctx, t, 1)
	wantSaid(t, kubectl(ctx, t, "", "", "status", "llama", "-n", "models"), 0, "serving blindly", "No picker is ready, and meanwhile calls are spread over all endpoints.", "next: kubectl get pods -n inference-system")
	wantSaid(t, kubectl(ctx, t, "", "", "doctor"), 1, "calls are not picked")
	wantSaid(t, kubectl(ctx, t, "", "{}", "explain", "-f", "-", "llama", "-n", "models"), 1, "no picker of pool models/llama is ready")
}

// All checks of the quickstart's pool pass.
func TestKubectlDoctor(t *testing.T) {
	ctx := begin(t, time.Minute)
	eventually(ctx, t, "readings of all model servers, and calls that are picked", func(ctx context.Context) error {
		if err := ask(ctx, "Who serves this?"); err != nil { // the state of picking stays as last seen until a call comes
			return err
		}
		got := kubectl(ctx, t, "", "", "doctor", "-o", "json")
		var report struct {
			Checks []struct{ Name, Result, Message string }
		}
		if err := json.Unmarshal([]byte(got.out), &report); err != nil {
			return err
		}
		well := map[string]bool{}
		for _, c := range report.Checks {
			of := strings.Contains(c.Message, "models/llama") || !strings.Contains(c.Message, "/")
			if c.Result == "ok" || c.Result == "warning" {
				well[c.Name] = true
			} else if of {
				return fmt.Errorf("%s: %s: %s", c.Name, c.Result, c.Message)
			}
		}
		for _, name := range []string{
			"kubernetes", "gateway-api", "inference-extension", "istio-crds", "istio-version", "istio-flags", "ambient-mode", "controller",
			"picker", "config-accepted", "namespace", "pool", "host", "envoyfilter", "pods-in-mesh", "metrics",
		} {
			if !well[name] {
				return fmt.Errorf("no check %s is well: %s", name, got.out)
			}
		}
		return nil
	})
}

func TestKubectlExplain(t *testing.T) {
	ctx := begin(t, time.Minute)
	conversation := traffic.NewConversation("Explain it to kubectl.", 47)
	first, err := conversation.Ask(ctx, the.caller.HTTP, llama, model, 400, 4)
	must(t, err)
	next := append(slices.Clone(conversation.Messages), traffic.Message{Role: "user", Content: "Go on."})
	body := string(traffic.Body(model, next, 4))
	wantSaid(t, kubectl(ctx, t, "", body, "explain", "-f", "-", "llama", "-n", "models"), 0,
		"The request would go to "+first.Endpoint+": it holds", "prompt tokens for model "+model, " (+", "pod inference-system/inference-picker-")
	at := servePage(ctx, t, "9098") // servePage passes all requests on, with the administrator's token
	wantSaid(t, kubectl(ctx, t, "/nonexistent", body, "explain", "-f", "-", "llama", "-n", "models", "--picker-url", at), 0, "The request would go to 10.")
	direct := "http://" + picker(ctx, t).Status.PodIP + ":9091"
	wantSaid(t, kubectl(ctx, t, "", body, "explain", "-f", "-", "llama", "-n", "models", "--picker-url", direct), 1, "refuses: no token")
	wantSaid(t, kubectl(ctx, t, "", body, "explain", "-f", "-", "nobody", "-n", "models", "--picker-url", at), 1, "answers 404: there is no such pool")
	wantSaid(t, kubectl(ctx, t, "", body, "explain", "-f", "/nonexistent.json", "llama"), 1, "reading the request: open /nonexistent.json")
}

func TestKubectlTop(t *testing.T) {
	ctx := begin(t, time.Minute)
	must(t, ask(ctx, "Is it busy?"))
	got := kubectl(ctx, t, "", "", "top", "llama", "-n", "models", "--once", "-o", "wide")
	wantSaid(t, got, 0, "models/llama at ", "KV USE", "llama-0", "all 4", "ready")
}

// Rendering without a cluster gives the objects that the controller wrote.
func TestKubectlRender(t *testing.T) {
	ctx := begin(t, time.Minute)
	got := kubectl(ctx, t, "/nonexistent", "", "render", "-f", "samples/quickstart/namespace.yaml", "-f", "samples/quickstart/waypoint.yaml", "-f", "samples/quickstart/pool.yaml")
	wantSaid(t, got, 0, "assumed to exist: the picker's Service inference-system/inference-picker:9002")
	objects, err := manifest.Decode([]byte(got.out))
	must(t, err)
	kinds := map[string]int{}
	for _, want := range objects {
		kinds[want.GetKind()]++
		live := want.DeepCopy()
		must(t, the.Client.Get(ctx, client.ObjectKeyFromObject(want), live))
		if diff := cmp.Diff(want.Object["spec"], withoutTokens(t, live.Object["spec"])); diff != "" {
			t.Errorf("%s %s (-rendered +written):\n%s", want.GetKind(), want.GetName(), diff)
		}
	}
	if kinds["ServiceEntry"] != 1 || kinds["EnvoyFilter"] != 1 {
		t.Errorf("rendered: %v", kinds)
	}
	wantSaid(t, kubectl(ctx, t, "", "kind: InferencePool\napiVersion: inference.networking.k8s.io/v1\nspce: {}", "render", "-f", "-"), 1, `unknown field "spce"`)
}

var tokenOf = regexp.MustCompile(`,\{"key":"inference-waypoint-token","value":"[^"]+"\}`)

// withoutTokens removes the pools' tokens from a spec: they derive from the cluster's key, which a rendering lacks.
func withoutTokens(t *testing.T, spec any) any {
	t.Helper()
	raw, err := json.Marshal(spec)
	must(t, err)
	var out any
	must(t, utiljson.Unmarshal(tokenOf.ReplaceAll(raw, nil), &out))
	return out
}

// The plugin tells an account with few rights what it may not read, and shows the rest.
func TestKubectlWithoutPermission(t *testing.T) {
	ctx := begin(t, time.Minute)
	must(t, the.ApplyYAML(ctx, `
{apiVersion: v1, kind: ServiceAccount, metadata: {name: stranger, namespace: models}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: reader, namespace: models}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pool-reader, namespace: models}
rules:
- {apiGroups: [inference.networking.k8s.io], resources: [inferencepools], verbs: [get, list]}
- {apiGroups: [""], resources: [pods, services], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: pool-reader, namespace: models}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: pool-reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: models}]
`))
	stranger, reader := kubeconfigOf(ctx, t, "stranger"), kubeconfigOf(ctx, t, "reader")
	wantSaid(t, kubectl(ctx, t, stranger, "", "doctor"), 2, "not permitted to list deployments", "not permitted to list inferencepools", "next: ask for the right to it")
	wantSaid(t, kubectl(ctx, t, stranger, "", "status", "-n", "models"), 1, "not permitted to list inferencepools in namespace models")
	wantSaid(t, kubectl(ctx, t, reader, "", "status", "-n", "models"), 0, "llama", "4/4", "unknown", "Not read, and so not checked:", "not permitted to get namespace models")
	wantSaid(t, kubectl(ctx, t, "/nonexistent", "", "doctor"), 2, "the API server does not answer", "kubectl config get-contexts")
	wantSaid(t, kubectl(ctx, t, "", "", "status", "--context=nowhere"), 1, "the kubeconfig does not name an API server", "nowhere")
}

// kubeconfigOf writes a kubeconfig of a service account in namespace models.
func kubeconfigOf(ctx context.Context, t *testing.T, account string) string {
	t.Helper()
	request := &authenticationv1.TokenRequest{}
	must(t, the.Client.SubResource("token").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: account}}, request))
	return writeKubeconfig(t, func(text string) string {
		return strings.ReplaceAll(text, "token: "+the.Config.BearerToken, "token: "+request.Status.Token)
	})
}

// writeKubeconfig writes a changed copy of the administrator's kubeconfig.
func writeKubeconfig(t *testing.T, change func(string) string) string {
	t.Helper()
	content, err := os.ReadFile(the.Kubeconfig())
	must(t, err)
	changed := change(string(content))
	if changed == string(content) {
		t.Fatal("the kubeconfig is not as expected")
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	must(t, os.WriteFile(path, []byte(changed), 0o600))
	return path
}

// Doctor on a cluster without Istio, and then on one with an old Istio with sidecars only. The cluster is a second API
// server with another prefix in the same etcd.
func TestKubectlDoctorOnBareCluster(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	const port = "6444"
	bare := writeKubeconfig(t, func(text string) string { return strings.ReplaceAll(text, ":6443", ":"+port) })
	wantSaid(t, kubectl(ctx, t, bare, "", "doctor"), 2, "the API server does not answer", "next: kubectl cluster-info")

	startBareAPIServer(ctx, t, port)
	wantSaid(t, kubectl(ctx, t, bare, "", "doctor"), 1,
		"Gateway API: the cluster does not know gateways", "Inference Extension: the cluster does not know inferencepools",
		"Istio is not installed", "Inference Waypoint is not installed", "next: istioctl install -f manifests/istio/overlay.yaml")
	wantSaid(t, kubectl(ctx, t, bare, "", "status"), 1, "the cluster does not know the kind", "next: kubectl inference doctor")

	config := rest.CopyConfig(the.Config)
	config.Host = "https://127.0.0.1:" + port
	other, err := client.New(config, client.Options{Scheme: manifest.Scheme()})
	must(t, err)
	for _, text := range []string{
		`{apiVersion: v1, kind: Namespace, metadata: {name: istio-system}}`,
		`
apiVersion: apps/v1
kind: Deployment
metadata: {name: istiod, namespace: istio-system, labels: {app: istiod}}
spec:
  selector: {matchLabels: {app: istiod}}
  template:
    metadata: {labels: {app: istiod}}
    spec: {containers: [{name: discovery, image: "docker.io/istio/pilot:1.24.3-distroless"}]}
`,
	} {
		objects, err := manifest.Decode([]byte(text))
		must(t, err)
		must(t, other.Create(ctx, objects[0]))
	}
	wantSaid(t, kubectl(ctx, t, bare, "", "doctor"), 1,
		"Istio (istio-system/istiod) 1.24.3-distroless is too old: want 1.31 or newer", "no pod of istiod (istio-system/istiod) is ready", "Istio runs sidecars only")
}

// startBareAPIServer starts an API server without custom resources, until the end of the test.
func startBareAPIServer(ctx context.Context, t *testing.T, port string) {
	t.Helper()
	dir := filepath.Dir(the.Kubeconfig())
	file := func(name string) string { return filepath.Join(dir, name) }
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	must(t, err)
	cmd := exec.Command(filepath.Join(the.Root, ".tools", "kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379", "--etcd-prefix=/bare", "--secure-port="+port, "--bind-address=127.0.0.1",
		"--tls-cert-file="+file("apiserver.crt"), "--tls-private-key-file="+file("apiserver.key"), "--token-auth-file="+file("tokens.csv"),
		"--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+file("accounts.pub"), "--service-account-signing-key-file="+file("accounts.key"),
		"--service-cluster-ip-range=10.97.0.0/16", "--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount")
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = log.Close()
	})
	web, err := rest.HTTPClientFor(the.Config)
	must(t, err)
	must(t, the.Await(ctx, "a bare API server", func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://127.0.0.1:"+port+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := web.Do(request)
		if err != nil {
			return err
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	}))
}
