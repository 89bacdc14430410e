package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
	"github.com/inference-waypoint/inference-waypoint/internal/modules"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// sampleImages maps images of others in samples/ to what runs here instead. Other model servers have no stand-in: their
// pods do not run.
var sampleImages = map[string]mesh.Image{
	"vllm/vllm-openai": {Path: "/bin/sh", Args: asVLLM},
	"curlimages/curl":  {Path: "/bin/sh", Args: asCurl},
	"registry.k8s.io/gateway-api-inference-extension/epp": {Path: "/bin/sh", Args: asReferencePicker},
}

// execute returns shell arguments that run a program, given relative to the checkout, with the arguments args.
func execute(program string, args ...string) []string {
	return append([]string{"-c", `exec "$@"`, "sh", filepath.Join(the.Root, program)}, args...)
}

// asVLLM runs the stand-in as vLLM would run with these arguments. A vLLM argument unknown to the stand-in is an error.
func asVLLM(p *corev1.Pod, _ string, args []string) ([]string, error) {
	var model, port, slots, grace string
	var lora bool
	var adapters []string
	for i, arg := range args {
		flag, value, _ := strings.Cut(arg, "=")
		switch {
		case i == 0: // the model to load; --served-model-name is its name in the API
			model = arg
		case !strings.HasPrefix(arg, "--") && adapters != nil:
			adapters = append(adapters, flag)
		case flag == "--served-model-name":
			model = value
		case flag == "--port":
			port = value
		case flag == "--enable-lora":
			lora = true
		case flag == "--max-loras":
			slots = value
		case flag == "--lora-modules":
			adapters = []string{}
		case flag == "--shutdown-timeout":
			grace = value + "s"
		case slices.Contains([]string{"--enable-prefix-caching", "--max-lora-rank", "--max-cpu-loras"}, flag):
		default:
			return nil, fmt.Errorf("vLLM's argument %q is not known here", arg)
		}
	}
	if !lora {
		slots = "0"
	}
	return execute("bin/modelserver", "--time-scale=10", "--name="+p.Name, "--model="+model, "--address="+net.JoinHostPort(p.Status.PodIP, port),
		"--max-loras="+slots, "--lora-modules="+strings.Join(adapters, ","), "--shutdown-timeout="+grace), nil
}

// clientProxy is the address of a test's proxy for the client pod's calls: pods here cannot call the mesh themselves.
const clientProxy = "127.0.0.1:3128"

// asCurl runs the client's script.
func asCurl(_ *corev1.Pod, _ string, args []string) ([]string, error) {
	return []string{"-c", "export http_proxy=http://" + clientProxy + "\n" + args[0]}, nil
}

func asReferencePicker(_ *corev1.Pod, _ string, args []string) ([]string, error) {
	return execute(".tools/reference-epp", args...), nil
}

// kustomizedSamples lists the folders of samples/ that can be applied.
func kustomizedSamples(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(the.Root, "samples", "*", "kustomization.yaml"))
	must(t, err)
	var out []string
	for _, f := range files {
		out = append(out, filepath.Base(filepath.Dir(f)))
	}
	return out
}

// Each YAML file in samples/ belongs to a kustomization, so that the next test sees it. The picker's own file is no
// Kubernetes object, and has a test where it is read.
func TestSamplesAreWhole(t *testing.T) {
	var want, got []string
	must(t, filepath.WalkDir(filepath.Join(the.Root, "samples"), func(path string, entry fs.DirEntry, err error) error {
		dir, file := filepath.Base(filepath.Dir(path)), entry.Name()
		alone := dir == "static" || dir == "autoscaling" // files to choose from, which other tests read
		if err == nil && filepath.Ext(file) == ".yaml" && file != "kustomization.yaml" && !alone {
			want = append(want, dir+"/"+file)
		}
		return err
	}))
	for _, name := range kustomizedSamples(t) {
		content, err := os.ReadFile(filepath.Join(the.Root, "samples", name, "kustomization.yaml"))
		must(t, err)
		var kustomization struct {
			Resources []string `json:"resources"`
		}
		must(t, yaml.Unmarshal(content, &kustomization))
		for _, file := range kustomization.Resources {
			got = append(got, name+"/"+file)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files in samples/ (-) and in their kustomizations (+):\n%s", diff)
	}
}

// The API server, with istiod's webhook on, accepts everything in samples/; istioctl analyze reports nothing; and the
// picker knows all annotations of the pools.
func TestSamplesAreTaken(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	for _, name := range kustomizedSamples(t) {
		t.Run(name, func(t *testing.T) {
			objects, err := the.Read("samples/" + name)
			must(t, err)
			for _, o := range objects {
				if o.GetKind() == "Namespace" {
					// The other objects' dry run needs the namespace. It comes without labels, as these would start a waypoint.
					namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: o.GetName()}}
					must(t, client.IgnoreAlreadyExists(the.Client.Create(ctx, namespace)))
				}
				if o.GetKind() == "InferencePool" {
					_, wrong := picksettings.Parse(o.GetAnnotations())
					must(t, errors.Join(wrong...))
				}
				apply := client.ApplyConfigurationFromUnstructured(o.DeepCopy())
				if err := the.Client.Apply(ctx, apply, client.FieldOwner("test"), client.ForceOwnership, client.DryRunAll); err != nil {
					t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
				}
			}
			analyze(ctx, t, objects)
		})
	}
}

// analyze fails the test if istioctl reports anything about the objects.
func analyze(ctx context.Context, t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "all.yaml")
	must(t, os.WriteFile(file, stream(t, objects), 0o644))
	istioctl := filepath.Join(the.Root, ".tools", "istioctl")
	out, err := exec.CommandContext(ctx, istioctl, "analyze", "--use-kube=false", "--failure-threshold=Info", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No validation issues found") {
		t.Errorf("istioctl analyze (%v): %s", err, out)
	}
}

func stream(t *testing.T, objects []*unstructured.Unstructured) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, o := range objects {
		text, err := yaml.Marshal(o.Object)
		must(t, err)
		out.WriteString("---\n" + string(text))
	}
	return out.Bytes()
}

// runSample applies a sample and waits until its pods are ready. A change that is not nil adapts each object to this mesh.
// After the test the objects are deleted, except namespaces and accounts, which others may use. A waypoint started by a
// namespace's label goes too.
func runSample(ctx context.Context, t *testing.T, name string, change func(*unstructured.Unstructured)) {
	t.Helper()
	objects, err := the.Read("samples/" + name)
	must(t, err)
	if change != nil {
		for _, o := range objects {
			change(o)
		}
	}
	t.Cleanup(func() {
		for _, o := range slices.Backward(objects) {
			must(t, takeAway(context.WithoutCancel(ctx), o))
		}
	})
	must(t, the.ApplyYAML(ctx, string(stream(t, objects))))
	for _, o := range objects {
		if o.GetKind() == "Deployment" {
			must(t, the.AwaitDeployment(ctx, o.GetNamespace(), o.GetName()))
		}
	}
}

func takeAway(ctx context.Context, o *unstructured.Unstructured) error {
	switch o.GetKind() {
	case "ServiceAccount":
		return nil
	case "Namespace":
		// No namespace controller runs here: a deleted namespace would stay for ever and accept no objects.
		return the.Client.Patch(ctx, o, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"inference-waypoint.io/waypoint":null}}}`)))
	default:
		return client.IgnoreNotFound(the.Client.Delete(ctx, o))
	}
}

// picked waits until conversations at a host stay at one endpoint. With three endpoints and no picks, one conversation of
// eight turns does so once in 2,187 times, and three in a row practically never.
func picked(ctx context.Context, t *testing.T, host string) {
	t.Helper()
	eventually(ctx, t, "picking at "+host, func(ctx context.Context) error {
		for range 3 {
			if err := staysPut(ctx, host); err != nil {
				return err
			}
		}
		return nil
	})
}

// answeredBy asks a model and checks which server answers, by the beginning of its name.
func answeredBy(ctx context.Context, caller *mesh.Caller, host, model, server string) error {
	answer, err := traffic.Chat(ctx, caller.HTTP, host, model, []traffic.Message{{Role: "user", Content: "Who are you?"}}, 1)
	if err == nil && !strings.HasPrefix(answer.Endpoint, server) {
		err = fmt.Errorf("%s answered, want %s", answer.Endpoint, server)
	}
	return err
}

// Calls to the vLLM sample are picked by prefix and adapter: the picker finds where an adapter is resident.
func TestVLLMSample(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	runSample(ctx, t, "vllm", nil)
	const host = "http://llama.llm.inference.internal"
	picked(ctx, t, host)
	for _, adapter := range []string{"facts", "code"} {
		eventually(ctx, t, "the adapter "+adapter+" resident", func(ctx context.Context) error {
			question := []traffic.Message{{Role: "user", Content: "What do you know of " + adapter + "?"}}
			answer, err := traffic.Chat(ctx, the.caller.HTTP, host, adapter, question, 100)
			if err != nil {
				return err
			}
			why, err := the.Explain(ctx, "llm/llama", traffic.Body(adapter, question, 1))
			if err != nil {
				return err
			}
			if best := why.Candidates[0]; len(why.Candidates) != 2 || best.AdapterState != "resident" {
				return fmt.Errorf("of %d endpoints the best, %s, has it as %q; %s served", len(why.Candidates), best.Endpoint, best.AdapterState, answer.Endpoint)
			}
			return nil
		})
	}
	var refused *traffic.Refused
	_, err := traffic.Chat(ctx, the.caller.HTTP, host, "nothing", []traffic.Message{{Role: "user", Content: "Hello"}}, 1)
	if !errors.As(err, &refused) || refused.Status != http.StatusNotFound {
		t.Errorf("a model that is not there: %v, want status 404", err)
	}
}

// The sample of a client calls the quickstart's pool, and is answered.
func TestClientSample(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("the sample's client is curl, which this machine does not have")
	}
	ctx := begin(t, time.Minute)
	var answered atomic.Int32
	serveCurl(ctx, t, func(r *http.Response) {
		if r.Request.Host == "llama.models.inference.internal" && r.StatusCode == http.StatusOK && r.Header.Get("X-Served-By") != "" {
			answered.Add(1)
		}
	})
	runSample(ctx, t, "client", nil)
	callers := pods(ctx, t, "shop", client.MatchingLabels{"app": "checkout-client"})
	if len(callers) != 1 || callers[0].Spec.ServiceAccountName != "checkout" {
		t.Fatalf("the client's pods are %v, want one of the account checkout, as whom the proxy calls", callers)
	}
	eventually(ctx, t, "two answers", func(context.Context) error {
		if n := answered.Load(); n < 2 {
			return fmt.Errorf("%d so far", n)
		}
		return nil
	})
}

// serveCurl is a proxy that makes the client pod's calls as the caller.
func serveCurl(ctx context.Context, t *testing.T, see func(*http.Response)) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", clientProxy)
	must(t, err)
	server := &http.Server{Handler: passOn(&httputil.ReverseProxy{
		Rewrite:        func(*httputil.ProxyRequest) {}, // a proxy's request already has the full URL
		Transport:      the.caller.HTTP.Transport,
		ModifyResponse: func(r *http.Response) error { see(r); return nil },
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

// The canary's route sends it a tenth of the calls to the stable pool's host: 20 of 200, with a standard deviation of 4.2.
func TestCanarySample(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	runSample(ctx, t, "canary", nil)
	const host = "http://stable.chat.inference.internal"
	eventually(ctx, t, "a call at the canary", func(ctx context.Context) error {
		return answeredBy(ctx, the.caller, host, "chat", "canary-")
	})
	stable := 0
	for range 200 {
		switch err := answeredBy(ctx, the.caller, host, "chat", "stable-"); {
		case err == nil:
			stable++
		case errors.As(err, new(*traffic.Refused)):
			t.Fatal(err)
		}
	}
	if stable < 159 || stable > 199 {
		t.Errorf("%d of 200 calls went to stable, want about 180", stable)
	}
}

// Calls to an existing Service are picked, by the name and port that its callers know.
func TestExistingServiceSample(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	runSample(ctx, t, "existing-service", nil)
	picked(ctx, t, "http://llm.assistant:8080")
	picked(ctx, t, "http://llm.assistant.inference.internal")
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "assistant", Name: "llm"}}
	must(t, the.Client.Patch(ctx, service, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"inference-waypoint.io/pool":null}}}`))))
	eventually(ctx, t, "a conversation that wanders", func(ctx context.Context) error { return wanders(ctx, "http://llm.assistant:8080") })
}

// One waypoint serves the pools of two teams, separately, and its namespace holds their EnvoyFilters.
func TestSharedWaypointSample(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	runSample(ctx, t, "shared-waypoint", nil)
	for _, team := range []struct{ namespace, pool, model string }{{"team-red", "llama", model}, {"team-blue", "qwen", "qwen3-8b"}} {
		host := team.pool + "." + team.namespace + ".inference.internal"
		eventually(ctx, t, "a call to "+host, func(ctx context.Context) error {
			return answeredBy(ctx, the.caller, "http://"+host, team.model, team.pool+"-")
		})
		wantCondition(ctx, t, team.namespace, team.pool, "shared", "Accepted", metav1.ConditionTrue, "Accepted")
		if n := filtersOf(ctx, t, "ai-platform", host); n != 1 {
			t.Errorf("the waypoint's namespace has %d EnvoyFilters for %s, want 1", n, host)
		}
	}
}

// The policies let one service call the pool, and nobody its pods. They refuse all other callers; without the policies
// these are served again.
func TestAuthorizationSample(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	stranger, err := the.NewCaller(ctx, "shop", "stranger", "stranger")
	must(t, err)
	t.Cleanup(func() {
		stranger.Close()
		must(t, the.Client.Delete(context.WithoutCancel(ctx), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "stranger"}}))
	})
	served := func(ctx context.Context) error { return answeredBy(ctx, stranger, llama, model, "llama-") }
	reached := func(ctx context.Context) error {
		conn, err := the.caller.DialPod(ctx, &modelServers(ctx, t)[0], 8000)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	must(t, served(ctx))
	must(t, reached(ctx))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		eventually(ctx, t, "the stranger served again", served)
		eventually(ctx, t, "the pods open again", reached)
	})

	runSample(ctx, t, "authorization", nil)
	eventually(ctx, t, "the stranger refused", func(ctx context.Context) error { return wantForbidden(served(ctx)) })
	eventually(ctx, t, "the pods closed", func(ctx context.Context) error {
		if err := reached(ctx); err == nil || !strings.Contains(err.Error(), "401") {
			return fmt.Errorf("a service that goes past the waypoint got %w, want a 401", err)
		}
		return nil
	})
	must(t, staysPut(ctx, llama))
	// A connection opened before the policies keeps the old rules until Envoy has drained it.
	eventually(ctx, t, "the metrics refused", func(ctx context.Context) error {
		h, err := send(ctx, http.MethodGet, llama+"/metrics", "")
		if err == nil && h.Status != http.StatusForbidden {
			err = fmt.Errorf("status %d", h.Status)
		}
		return err
	})
}

func wantForbidden(err error) error {
	var refused *traffic.Refused
	if !errors.As(err, &refused) || refused.Status != http.StatusForbidden {
		return fmt.Errorf("it got %w, want status 403", err)
	}
	return nil
}

// Another project's picker, which serves TLS, picks: conversations stay while it runs, and wander when it is gone, which
// they would not with ours.
func TestOtherPickerSample(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	if _, err := os.Stat(filepath.Join(the.Root, ".tools", "reference-epp")); err != nil {
		t.Fatal("the tool reference-epp is missing: run integration/tools/install.sh .tools reference-epp")
	}
	defineReferenceKinds(ctx, t)
	runSample(ctx, t, "other-picker", func(o *unstructured.Unstructured) {
		if o.GetKind() == "Deployment" && o.GetName() == "llama-epp" {
			movePorts(t, o)
		}
	})
	const host = "http://llama.research.inference.internal"
	picked(ctx, t, host)
	must(t, the.Client.Delete(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "research", Name: "llama-epp"}}))
	eventually(ctx, t, "a conversation that wanders", func(ctx context.Context) error { return wanders(ctx, host) })
}

// movePorts gives the picker ports that are free in this mesh: it listens on all addresses, including that of our picker's
// pod.
func movePorts(t *testing.T, deployment *unstructured.Unstructured) {
	t.Helper()
	text, err := deployment.MarshalJSON()
	must(t, err)
	moved := strings.NewReplacer("9002", "19002", "9003", "19003", "9090", "19090").Replace(string(text))
	must(t, deployment.UnmarshalJSON([]byte(moved)))
}

// defineReferenceKinds defines in the API server the kinds, beside InferencePool, that the reference's picker needs.
func defineReferenceKinds(ctx context.Context, t *testing.T) {
	t.Helper()
	const module = "sigs.k8s.io/gateway-api-inference-extension"
	pin := filepath.Join(the.Root, "integration", "tools", "reference-epp")
	dir, err := modules.Dir(ctx, pin, module)
	must(t, err)
	for _, kind := range []string{"inferencemodelrewrites", "inferenceobjectives"} {
		must(t, the.Apply(ctx, filepath.Join(dir, "config", "crd", "bases", "inference.networking.x-k8s.io_"+kind+".yaml")))
	}
}
