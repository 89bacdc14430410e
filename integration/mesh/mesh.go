// Package mesh runs a whole Istio ambient mesh on one machine, without containers: a real etcd, kube-apiserver and
// istiod, a real Envoy for each waypoint, and a process for each pod, all in one network namespace. The demo and the
// integration tests stand on it. What is not the real thing is small and named: machine.go for the controller manager
// and the kubelet, packages hbone and authorization for ztunnel, package relay for the filters that only Istio's Envoy has.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/authorization"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/pki"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/relay"
	"github.com/inference-waypoint/inference-waypoint/internal/modules"
)

// startLimit bounds the start of a mesh. It takes some ten seconds; a machine under heavy load takes longer.
const startLimit = 3 * time.Minute

// Options say how to start a mesh. The zero value is a good one.
type Options struct {
	// Root is the checkout; where empty it is looked for upwards from the working directory.
	Root string
	// Progress takes a line for each step.
	Progress io.Writer
	// Images are what the machine runs for container images besides those that it knows, or in their place.
	Images map[string]Image
}

// Mesh is a running mesh with Istio installed and nothing else.
type Mesh struct {
	// Client has all rights on the API server.
	Client client.WithWatch
	// Config is how to reach the API server with all rights.
	Config *rest.Config
	// Root is the checkout.
	Root string

	cluster *cluster
	machine *machine
	relay   *relay.Relay
	logs    string
	cancel  context.CancelFunc
	wait    sync.WaitGroup

	progress io.Writer
	began    time.Time
	closed   sync.Once

	reader struct {
		sync.Mutex
		token string
	}
}

// Start starts a mesh. The program must have called Enter before. Where it fails, what had started is stopped again
// and the error holds the ends of the logs.
func Start(ctx context.Context, o Options) (*Mesh, error) {
	if os.Getenv(insideEnv) == "" {
		return nil, errors.New("a mesh starts inside its namespaces: call mesh.Enter first")
	}
	root := o.Root
	if root == "" {
		var err error
		if root, err = findRoot(); err != nil {
			return nil, err
		}
	}
	ctrllog.SetLogger(logr.Discard()) // the client's library warns, with a stack, where it has none
	m := &Mesh{Root: root, logs: filepath.Join(workDir, "logs"), progress: o.Progress, began: time.Now()}
	if m.progress == nil {
		m.progress = io.Discard
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, errors.New("the mesh did not start in time"))
	defer cancel()
	if err := m.start(ctx, o.Images); err != nil {
		var logs strings.Builder
		m.ShowLogs(&logs, 15)
		m.Close()
		return nil, fmt.Errorf("starting the mesh: %w\n%s", err, logs.String())
	}
	return m, nil
}

func (m *Mesh) say(format string, args ...any) {
	_, _ = fmt.Fprintf(m.progress, "mesh: %5.1f s  %s\n", time.Since(m.began).Seconds(), fmt.Sprintf(format, args...))
}

func (m *Mesh) start(ctx context.Context, images map[string]Image) error {
	tools, err := m.toolsDir()
	if err != nil {
		return err
	}
	for _, dir := range []string{m.logs, filepath.Join(workDir, "cluster"), filepath.Join(workDir, "pods")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making the mesh's directories: %w", err)
		}
	}
	authority, err := pki.New()
	if err != nil {
		return err
	}
	// Rendering and building need no cluster, and the cluster needs neither: all three at once.
	rendered := async(func() ([]*unstructured.Unstructured, error) { return m.renderAll(ctx, tools) })
	built := async(func() (struct{}, error) { return struct{}{}, m.build(ctx) })
	m.cluster, err = startCluster(ctx, tools, filepath.Join(workDir, "cluster"), m.logs, authority)
	if err != nil {
		return err
	}
	m.Client, m.Config = m.cluster.client, m.cluster.config
	m.say("etcd and kube-apiserver answer")

	objects, err := rendered()
	if err != nil {
		return err
	}
	if err := m.ensureNamespace(ctx, istioNamespace); err != nil {
		return err
	}
	if err := m.cluster.apply(ctx, objects); err != nil {
		return err
	}
	m.say("the overlay's %d objects and definitions are applied", len(objects))
	if _, err := built(); err != nil {
		return err
	}
	if err := m.startMachine(tools, images); err != nil {
		return err
	}
	if err := m.cluster.awaitDeployment(ctx, istioNamespace, "istiod"); err != nil {
		return err
	}
	if err := m.cluster.awaitValidator(ctx); err != nil {
		return err
	}
	if err := m.startRelay(ctx, authority); err != nil {
		return err
	}
	m.say("istiod is ready and validates")
	return nil
}

// async starts work and returns how to wait for it.
func async[T any](work func() (T, error)) func() (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := work()
		done <- result{v, err}
	}()
	return func() (T, error) {
		r := <-done
		return r.value, r.err
	}
}

// findRoot looks for the checkout upwards from the working directory.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the checkout: %w", err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "integration", "tools")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("finding the checkout: no directory above this one holds integration/tools")
}

func (m *Mesh) toolsDir() (string, error) {
	dir := filepath.Join(m.Root, ".tools")
	for _, tool := range []string{"etcd", "kube-apiserver", "istiod", "istioctl", "envoy"} {
		if _, err := os.Stat(filepath.Join(dir, tool)); err != nil {
			return "", fmt.Errorf("the tool %s is missing: run make tools", tool)
		}
	}
	return dir, nil
}

// ours are the programs of this checkout, by the image that stands for them in manifests and samples. Their flags for
// addresses are given the pod's own in the place of all addresses. The controller is told that waypoints drain faster here
// than by default, and which hosts pools may claim.
var ours = map[string]struct {
	module, pkg string            // the folder of the program's module in the checkout, and the package's in the module
	ports       map[string]string // flag → port
	flags       []string
}{
	"inference-waypoint/controller":  {".", "./cmd/controller", map[string]string{"metrics-address": "9090", "health-address": "8081"}, []string{"--drain=3s", "--allow-host=models=chat.example", "--allow-host=models=talk.example"}},
	"inference-waypoint/picker":      {".", "./cmd/picker", map[string]string{"extproc-address": "9002", "health-address": "9003", "metrics-address": "9090", "debug-address": "9091"}, nil},
	"inference-waypoint/modelserver": {"samples/modelserver", ".", map[string]string{"address": "8000"}, nil},
	"inference-waypoint/echo":        {"integration", "./echo", map[string]string{"address": "8000"}, nil},
	"test/hangingpicker":             {"integration", "./hangingpicker", map[string]string{"extproc-address": "9002", "health-address": "9003"}, nil},
}

// bound makes the arguments that bind a program's ports to its pod's address. Flags that a pod has itself win.
func bound(ports map[string]string, flags []string) func(*corev1.Pod, string, []string) ([]string, error) {
	return func(p *corev1.Pod, _ string, args []string) ([]string, error) {
		args = slices.Concat(flags, args)
		for flag, port := range ports {
			args = append(args, "--"+flag+"="+net.JoinHostPort(p.Status.PodIP, port))
		}
		return args, nil
	}
}

// ClientImage is the image of a pod that runs nothing and is only called from.
const ClientImage = "inference-waypoint/client"

// build builds our programs, so that no test ever runs old ones. Each is built in its own module, whose go.mod says of
// which versions it is made.
func (m *Mesh) build(ctx context.Context) error {
	packages := map[string][]string{}
	for _, program := range ours {
		packages[program.module] = append(packages[program.module], program.pkg)
	}
	for _, module := range slices.Sorted(maps.Keys(packages)) {
		args := []string{"build", "-o", filepath.Join(m.Root, "bin") + string(filepath.Separator)}
		cmd := exec.CommandContext(ctx, "go", append(args, packages[module]...)...)
		cmd.Dir = filepath.Join(m.Root, module)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building our programs of the module in %s: %w: %s", cmd.Dir, err, out)
		}
	}
	return nil
}

// definitions are the modules, and the folders and files in them, that hold the definitions of APIs that Istio does
// not bring itself.
var definitions = map[string]string{
	"sigs.k8s.io/gateway-api":                     "config/crd/standard/gateway.networking.k8s.io_*s.yaml",
	"sigs.k8s.io/gateway-api-inference-extension": "config/crd/bases/*.yaml",
}

// renderAll makes the objects of Istio and of the APIs that it needs, definitions first.
func (m *Mesh) renderAll(ctx context.Context, tools string) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for module, pattern := range definitions {
		dir, err := modules.Dir(ctx, m.Root, module)
		if err != nil {
			return nil, err
		}
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, fmt.Errorf("looking for definitions in module %s: %w", module, err)
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("module %s holds no definitions at %s", module, pattern)
		}
		for _, file := range files {
			objects, err := decodeFile(file)
			if err != nil {
				return nil, err
			}
			out = append(out, objects...)
		}
	}
	istio, err := renderIstio(ctx, tools, filepath.Join(m.Root, "manifests", "istio", "overlay.yaml"))
	return append(out, istio...), err
}

func decodeFile(path string) ([]*unstructured.Unstructured, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading objects: %w", err)
	}
	objects, err := Decode(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return objects, nil
}

func (m *Mesh) startMachine(tools string, more map[string]Image) error {
	images := map[string]Image{
		"registry.istio.io/testing/pilot":   istiodImage(filepath.Join(tools, "istiod")),
		"registry.istio.io/testing/proxyv2": waypointImage(filepath.Join(tools, "envoy")),
		ClientImage:                         {},
	}
	for image, program := range ours {
		images[image] = Image{Path: filepath.Join(m.Root, "bin", filepath.Base(filepath.Join(program.module, program.pkg))), Args: bound(program.ports, program.flags)}
	}
	maps.Copy(images, more)
	log, err := m.logger("machine")
	if err != nil {
		return err
	}
	policies, err := authorization.New(m.locateIstiod, log)
	if err != nil {
		return err
	}
	m.machine = newMachine(m.cluster, policies, m.logs, filepath.Join(workDir, "pods"), images, log)
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.wait.Go(func() { policies.Run(ctx) })
	m.wait.Go(func() {
		if err := m.machine.run(ctx); err != nil {
			log.Error("the machine stopped", "error", err)
		}
	})
	return nil
}

func (m *Mesh) startRelay(ctx context.Context, authority *pki.Authority) error {
	log, err := m.logger("relay")
	if err != nil {
		return err
	}
	m.relay, err = relay.New(m.locateIstiod, authority, log)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", relayAddress)
	if err != nil {
		return fmt.Errorf("listening for waypoints: %w", err)
	}
	life, cancel := context.WithCancel(context.Background())
	before := m.cancel
	m.cancel = func() { before(); cancel() }
	m.wait.Go(func() {
		if err := m.relay.Serve(life, listener); err != nil {
			log.Error("the relay stopped", "error", err)
		}
	})
	return nil
}

// locateIstiod waits for a ready istiod and gives the address of its configuration in plain text.
func (m *Mesh) locateIstiod(ctx context.Context) (string, error) {
	istiod, err := m.readyPod(ctx, istioNamespace, map[string]string{"app": "istiod"})
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(istiod.Status.PodIP, "15010"), nil
}

func (m *Mesh) logger(name string) (*slog.Logger, error) {
	file, err := os.Create(filepath.Join(m.logs, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("opening the log of the %s: %w", name, err)
	}
	return slog.New(slog.NewTextHandler(file, nil)), nil
}

// Close stops everything in order: pods, waypoints and istiod, then the API server, then etcd.
func (m *Mesh) Close() {
	m.closed.Do(func() {
		if m.cancel != nil {
			m.cancel()
		}
		m.wait.Wait()
		if m.cluster == nil {
			return
		}
		for _, p := range []*process{m.cluster.apiServer, m.cluster.etcd} {
			if p != nil {
				p.stop(2 * time.Second)
			}
		}
	})
}

// Refusals are the pieces of configuration that waypoints have refused so far. In a sound mesh there is none.
func (m *Mesh) Refusals() []relay.Refusal { return m.relay.Refusals() }

// ShowLogs writes the last lines of every log.
func (m *Mesh) ShowLogs(w io.Writer, lines int) {
	files, _ := filepath.Glob(filepath.Join(m.logs, "*.log")) // the pattern is a constant: it cannot be malformed
	for _, file := range files {
		_, _ = fmt.Fprintf(w, "==> %s\n%s\n", filepath.Base(file), tailOf(file, lines))
	}
}

// KeepLogs copies all logs to a directory that outlives the mesh.
func (m *Mesh) KeepLogs(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("keeping logs: %w", err)
	}
	if err := os.CopyFS(dir, os.DirFS(m.logs)); err != nil {
		return fmt.Errorf("keeping logs: %w", err)
	}
	return nil
}

// Kubeconfig is the path of a kubeconfig with all rights, valid inside the mesh's namespaces.
func (m *Mesh) Kubeconfig() string { return m.cluster.file("kubeconfig") }

// Apply writes the objects of YAML files, or of kustomizations where a path is a directory.
func (m *Mesh) Apply(ctx context.Context, paths ...string) error {
	for _, path := range paths {
		objects, err := m.Read(path)
		if err != nil {
			return err
		}
		if err := m.cluster.apply(ctx, objects); err != nil {
			return err
		}
	}
	return nil
}

// ApplyYAML writes the objects of a YAML stream.
func (m *Mesh) ApplyYAML(ctx context.Context, stream string) error {
	objects, err := Decode([]byte(stream))
	if err != nil {
		return err
	}
	return m.cluster.apply(ctx, objects)
}

// Read gives the objects of a YAML file, or of the kustomization where the path is a directory.
func (m *Mesh) Read(path string) ([]*unstructured.Unstructured, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(m.Root, path)
	}
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return decodeFile(path)
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), path)
	if err != nil {
		return nil, fmt.Errorf("building the kustomization %s: %w", path, err)
	}
	stream, err := built.AsYaml()
	if err != nil {
		return nil, fmt.Errorf("building the kustomization %s: %w", path, err)
	}
	return Decode(stream)
}

// InstallQuickstart puts up what a user would: the product, a namespace with a waypoint, model servers and a pool. It
// waits until their pods are ready.
func (m *Mesh) InstallQuickstart(ctx context.Context) error {
	if err := m.Apply(ctx, "manifests", "samples/quickstart"); err != nil {
		return err
	}
	for _, name := range [][2]string{
		{"inference-system", "inference-controller"}, {"inference-system", "inference-picker"}, {"models", "waypoint"}, {"models", "llama"},
	} {
		if err := m.AwaitDeployment(ctx, name[0], name[1]); err != nil {
			return err
		}
	}
	return nil
}

// RestartIstiod replaces istiod by one with an environment variable set, and waits until the old one is gone.
func (m *Mesh) RestartIstiod(ctx context.Context, name, value string) error {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: istioNamespace, Name: "istiod"}}
	patch := fmt.Appendf(nil, `{"spec":{"template":{"spec":{"containers":[{"name":"discovery","env":[{"name":%q,"value":%q}]}]}}}}`, name, value)
	if err := m.Client.Patch(ctx, d, client.RawPatch(types.StrategicMergePatchType, patch)); err != nil {
		return fmt.Errorf("setting istiod's %s: %w", name, err)
	}
	if err := m.AwaitDeployment(ctx, istioNamespace, "istiod"); err != nil {
		return err
	}
	return m.Await(ctx, "the end of the old istiod", func(ctx context.Context) error {
		var pods corev1.PodList
		if err := m.Client.List(ctx, &pods, client.InNamespace(istioNamespace), client.MatchingLabels{"app": "istiod"}); err != nil {
			return err
		}
		if len(pods.Items) != 1 {
			return fmt.Errorf("%d pods of istiod", len(pods.Items))
		}
		return nil
	})
}

// AwaitDeployment waits until all pods of a Deployment are ready.
func (m *Mesh) AwaitDeployment(ctx context.Context, namespace, name string) error {
	return m.cluster.awaitDeployment(ctx, namespace, name)
}

// Await looks at a condition until it holds, which it says by returning nil.
func (m *Mesh) Await(ctx context.Context, what string, check func(context.Context) error) error {
	return await(ctx, what, check, m.cluster.apiServer)
}

func (m *Mesh) ensureNamespace(ctx context.Context, name string) error {
	err := m.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if err != nil {
		return fmt.Errorf("making namespace %s: %w", name, err)
	}
	return nil
}

// readyPod waits for a ready pod with these labels.
func (m *Mesh) readyPod(ctx context.Context, namespace string, labels map[string]string) (*corev1.Pod, error) {
	var found *corev1.Pod
	err := m.Await(ctx, fmt.Sprintf("a ready pod of %v in %s", labels, namespace), func(ctx context.Context) error {
		var pods corev1.PodList
		if err := m.Client.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels(labels)); err != nil {
			return err
		}
		for i := range pods.Items {
			if isReady(&pods.Items[i]) && pods.Items[i].DeletionTimestamp == nil {
				found = &pods.Items[i]
				return nil
			}
		}
		return fmt.Errorf("none of %d is ready", len(pods.Items))
	})
	return found, err
}
