package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/authorization"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/hbone"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/sandbox"
)

// Image is what the machine runs for a container image, whose tag is not looked at.
type Image struct {
	// Path is the program. Where it is empty the pod is an address and an identity to call from, and nothing runs.
	Path string
	// Args makes the program's arguments out of the container's own, chiefly to bind the pod's address and not all
	// addresses: all pods share one network namespace. Nil leaves them as they are.
	Args func(pod *corev1.Pod, dir string, args []string) ([]string, error)
	// Ready, where set, takes the place of the container's readiness probe.
	Ready *corev1.Probe
	// OwnTunnel says that the program takes HBONE itself, as a waypoint does.
	OwnTunnel bool
}

const (
	dataplaneMode   = "istio.io/dataplane-mode"      // label: is a pod, or a namespace, in the ambient mesh?
	redirectionDone = "ambient.istio.io/redirection" // annotation by which istio-cni says that a pod is
	restartDelay    = 500 * time.Millisecond         // before a program that ended by itself starts again
	probeWhileDown  = 50 * time.Millisecond          // between probes of a pod that is not ready
	probeWhileUp    = time.Second                    // and of one that is
	failuresToDown  = 3                              // probes in a row that a ready pod may not fail, unless it says how many
	defaultGrace    = corev1.DefaultTerminationGracePeriodSeconds * time.Second
)

// runningPod is a pod that the machine has started.
type runningPod struct {
	pod    *corev1.Pod // as it was when it started; its status holds the address
	cancel context.CancelFunc
	done   chan struct{} // closed when its program has ended for good

	grace   time.Duration         // how long the program may take to end; 0 kills it
	program chan *process.Process // holds the program while one runs
}

// syncPod starts a pod that is new, and ends one that is to be deleted.
func (m *machine) syncPod(ctx context.Context, p *corev1.Pod, s *state) error {
	if _, known := m.imageOf(p.Spec); !known {
		return nil
	}
	if p.Spec.NodeName == "" {
		binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: cluster.NodeName}}
		if err := m.client.SubResource("binding").Create(ctx, p, binding); err != nil {
			return fmt.Errorf("placing pod %s: %w", p.Name, err)
		}
		return nil
	}
	m.mu.Lock()
	r := m.running[p.UID]
	m.mu.Unlock()
	switch {
	case p.DeletionTimestamp != nil && r == nil:
		return m.forget(ctx, p)
	case p.DeletionTimestamp != nil:
		m.end(r, p)
	case r == nil:
		return m.startPod(ctx, p, s.namespaces[p.Namespace])
	}
	return nil
}

// imageOf finds what to run for a pod by its first container's image.
func (m *machine) imageOf(spec corev1.PodSpec) (Image, bool) {
	name := spec.Containers[0].Image
	if i := strings.LastIndexAny(name, ":/"); i >= 0 && name[i] == ':' {
		name = name[:i]
	}
	image, known := m.images[name]
	return image, known
}

// startPod gives the pod an address and starts its program in the background.
func (m *machine) startPod(ctx context.Context, p *corev1.Pod, ns *corev1.Namespace) error {
	p = p.DeepCopy()
	image, _ := m.imageOf(p.Spec)
	m.mu.Lock()
	m.nextAddr = m.nextAddr.Next()
	addr := m.nextAddr
	m.mu.Unlock()
	p.Status.PodIP = addr.String()

	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &runningPod{pod: p, cancel: cancel, done: make(chan struct{}), grace: graceOf(p), program: make(chan *process.Process, 1)}
	inMesh := !image.OwnTunnel && ambient(p, ns)
	if inMesh {
		if err := m.serveTunnel(life, p, addr); err != nil {
			cancel()
			return err
		}
	}
	m.mu.Lock()
	m.running[p.UID] = r
	m.mu.Unlock()
	if err := m.reportPod(ctx, p, inMesh, false); err != nil {
		m.log.Error("reporting a pod", "pod", p.Name, "error", err)
	}
	m.wait.Go(func() {
		defer close(r.done)
		m.live(life, r, image)
	})
	return nil
}

func graceOf(p *corev1.Pod) time.Duration {
	if s := p.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return defaultGrace
}

// ambient reports whether istio-cni would take a pod into the mesh.
func ambient(p *corev1.Pod, ns *corev1.Namespace) bool {
	if mode, ok := p.Labels[dataplaneMode]; ok {
		return mode == "ambient"
	}
	return ns != nil && ns.Labels[dataplaneMode] == "ambient"
}

// serveTunnel takes HBONE for the pod, with its identity, from before the program runs until after it has ended.
func (m *machine) serveTunnel(ctx context.Context, p *corev1.Pod, addr netip.Addr) error {
	identity, err := m.authority.Workload(p.Namespace, accountOf(p))
	if err != nil {
		return err
	}
	config, err := m.authority.MutualTLS(identity)
	if err != nil {
		return err
	}
	allow := func(ctx context.Context, principal string, port uint16) (<-chan struct{}, error) {
		c := authorization.Connection{Principal: principal, Pod: addr, Namespace: p.Namespace, Port: port}
		if err := m.policies.Allow(ctx, c); err != nil {
			return nil, err
		}
		return m.policies.Revoked(ctx, c), nil
	}
	m.wait.Go(func() {
		if err := hbone.Serve(ctx, addr, config, allow); err != nil {
			m.log.Error("a pod's tunnel", "pod", p.Name, "error", err)
		}
	})
	return nil
}

func accountOf(p *corev1.Pod) string {
	if p.Spec.ServiceAccountName == "" {
		return "default"
	}
	return p.Spec.ServiceAccountName
}

// live runs the pod's program until ctx ends, again whenever it ends by itself.
func (m *machine) live(ctx context.Context, r *runningPod, image Image) {
	if image.Path == "" {
		m.setReady(ctx, r.pod, true)
		<-ctx.Done()
		return
	}
	for ctx.Err() == nil {
		p, err := m.startProgram(ctx, r.pod, image)
		if err != nil {
			m.log.Error("starting a pod", "pod", r.pod.Name, "error", err)
		} else {
			r.program <- p
			m.watchProgram(ctx, r, p, probeOf(r.pod, image))
			<-r.program
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartDelay):
		}
	}
}

// watchProgram probes a program until it ends or is to end.
func (m *machine) watchProgram(ctx context.Context, r *runningPod, p *process.Process, probe func(context.Context) error) {
	ready, failures, most := false, 0, failuresToDown
	if own := r.pod.Spec.Containers[0].ReadinessProbe; own != nil && own.FailureThreshold > 0 {
		most = int(own.FailureThreshold)
	}
	for pause := probeWhileDown; ; {
		select {
		case <-ctx.Done():
			p.Stop(r.grace)
			return
		case <-p.Done():
			m.log.Warn("a pod's program ended by itself", "pod", r.pod.Name, "error", p.Err())
			m.setReady(ctx, r.pod, false)
			return
		case <-time.After(pause):
		}
		err := probe(ctx)
		switch {
		case err == nil && !ready:
			ready, failures, pause = true, 0, probeWhileUp
			m.setReady(ctx, r.pod, true)
		case err == nil:
			failures = 0
		case ready:
			if failures++; failures == most {
				ready, pause = false, probeWhileDown
				m.setReady(ctx, r.pod, false)
			}
		}
	}
}

func (m *machine) startProgram(ctx context.Context, p *corev1.Pod, image Image) (*process.Process, error) {
	c := p.Spec.Containers[0]
	dir := filepath.Join(m.dir, p.Namespace+"-"+p.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making a pod's directory: %w", err)
	}
	kubeconfig, err := m.cluster.KubeconfigOf(ctx, p.Namespace, accountOf(p))
	if err != nil {
		return nil, err
	}
	environment := map[string]string{}
	for _, e := range c.Env {
		environment[e.Name] = valueOf(e, p)
	}
	environment["KUBECONFIG"] = kubeconfig // in the place of the token and the address that a kubelet gives a pod
	args := make([]string, 0, len(c.Args))
	for _, a := range c.Args {
		args = append(args, expand(a, environment))
	}
	if image.Args != nil {
		if args, err = image.Args(p, dir, args); err != nil {
			return nil, err
		}
	}
	list := make([]string, 0, len(environment))
	for k, v := range environment {
		list = append(list, k+"="+v)
	}
	return process.Start(m.logs, process.Program{Name: p.Namespace + "." + p.Name, Path: image.Path, Args: args, Environment: list, Directory: dir})
}

// valueOf resolves what an environment variable takes from its pod. What depends on a node's resources is left empty.
func valueOf(e corev1.EnvVar, p *corev1.Pod) string {
	if e.ValueFrom == nil || e.ValueFrom.FieldRef == nil {
		return e.Value
	}
	switch path := e.ValueFrom.FieldRef.FieldPath; path {
	case "metadata.name":
		return p.Name
	case "metadata.namespace":
		return p.Namespace
	case "spec.serviceAccountName":
		return accountOf(p)
	case "spec.nodeName":
		return cluster.NodeName
	case "status.podIP":
		return p.Status.PodIP
	default:
		return ""
	}
}

var reference = regexp.MustCompile(`\$\(([A-Za-z_][A-Za-z0-9_]*)\)`)

// expand fills $(NAME) in an argument, as a kubelet does.
func expand(arg string, environment map[string]string) string {
	return reference.ReplaceAllStringFunc(arg, func(s string) string {
		if v, ok := environment[s[2:len(s)-1]]; ok {
			return v
		}
		return s
	})
}

// probeOf is the check that makes a pod ready. A pod without one is ready as soon as its program runs.
func probeOf(p *corev1.Pod, image Image) func(context.Context) error {
	probe := p.Spec.Containers[0].ReadinessProbe
	if image.Ready != nil {
		probe = image.Ready
	}
	timeout := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, 2*time.Second)
	}
	switch {
	case probe != nil && probe.HTTPGet != nil:
		url := "http://" + net.JoinHostPort(p.Status.PodIP, portOf(p, probe.HTTPGet.Port.String())) + probe.HTTPGet.Path
		check := process.Answers(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, url)
		return func(ctx context.Context) error {
			ctx, cancel := timeout(ctx)
			defer cancel()
			return check(ctx)
		}
	case probe != nil && probe.GRPC != nil:
		return func(ctx context.Context) error {
			ctx, cancel := timeout(ctx)
			defer cancel()
			return checkGRPC(ctx, net.JoinHostPort(p.Status.PodIP, strconv.Itoa(int(probe.GRPC.Port))), probe.GRPC.Service)
		}
	default:
		return func(context.Context) error { return nil }
	}
}

// portOf gives the number of a port that is named by a container, or the number itself.
func portOf(p *corev1.Pod, port string) string {
	for _, c := range p.Spec.Containers[0].Ports {
		if c.Name == port {
			return strconv.Itoa(int(c.ContainerPort))
		}
	}
	return port
}

func checkGRPC(ctx context.Context, address string, service *string) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	request := &grpc_health_v1.HealthCheckRequest{}
	if service != nil {
		request.Service = *service
	}
	response, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, request)
	if err == nil && response.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		err = fmt.Errorf("health is %s", response.GetStatus())
	}
	return err
}

func (m *machine) setReady(ctx context.Context, p *corev1.Pod, ready bool) {
	if err := m.reportPod(ctx, p, false, ready); err != nil && ctx.Err() == nil {
		m.log.Error("reporting a pod", "pod", p.Name, "error", err)
	}
}

// reportPod writes a pod's status and, where it is in the mesh, the annotation by which istiod knows.
func (m *machine) reportPod(ctx context.Context, p *corev1.Pod, inMesh, ready bool) error {
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}}
	if inMesh {
		note := fmt.Sprintf(`{"metadata":{"uid":%q,"annotations":{%q:"enabled"}}}`, p.UID, redirectionDone)
		if err := m.client.Patch(ctx, target, client.RawPatch(types.MergePatchType, []byte(note))); err != nil {
			return fmt.Errorf("annotating pod %s: %w", p.Name, err)
		}
	}
	condition := corev1.ConditionFalse
	if ready {
		condition = corev1.ConditionTrue
	}
	now := metav1.Now()
	status, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID},
		"status": corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: p.Status.PodIP, PodIPs: []corev1.PodIP{{IP: p.Status.PodIP}},
			HostIP: sandbox.NodeAddress, StartTime: &now,
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
				{Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
				{Type: corev1.ContainersReady, Status: condition, LastTransitionTime: now},
				{Type: corev1.PodReady, Status: condition, LastTransitionTime: now},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("encoding the status of pod %s: %w", p.Name, err)
	}
	if err := m.client.Status().Patch(ctx, target, client.RawPatch(types.MergePatchType, status)); err != nil {
		return fmt.Errorf("reporting pod %s: %w", p.Name, err)
	}
	return nil
}

// end stops a pod that is being deleted and lets the API server forget it once its program has ended.
func (m *machine) end(r *runningPod, p *corev1.Pod) {
	select {
	case <-r.done:
		return
	default:
	}
	if s := p.DeletionGracePeriodSeconds; s != nil {
		r.grace = time.Duration(*s) * time.Second
	}
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	m.wait.Go(func() {
		<-r.done
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		m.mu.Lock()
		delete(m.running, p.UID)
		m.mu.Unlock()
		if err := m.forget(ctx, p); err != nil {
			m.log.Error("forgetting a pod", "pod", p.Name, "error", err)
		}
	})
}

func (m *machine) forget(ctx context.Context, p *corev1.Pod) error {
	err := m.client.Delete(ctx, p, client.GracePeriodSeconds(0), client.Preconditions{UID: &p.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("forgetting pod %s: %w", p.Name, err)
	}
	return nil
}

// stopMissing kills the programs of pods that the API server no longer has: they were deleted without grace.
func (m *machine) stopMissing(present map[types.UID]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid, r := range m.running {
		if !present[uid] && r.cancel != nil {
			r.grace = 0
			r.cancel()
			delete(m.running, uid)
		}
	}
}

// stopAll ends all pods together.
func (m *machine) stopAll() {
	m.mu.Lock()
	for _, r := range m.running {
		if r.cancel != nil {
			r.grace = min(r.grace, 2*time.Second)
			r.cancel()
		}
	}
	m.mu.Unlock()
	m.wait.Wait()
}

// programOf finds what runs for a pod now.
func (m *machine) programOf(uid types.UID) (*process.Process, error) {
	m.mu.Lock()
	r := m.running[uid]
	m.mu.Unlock()
	if r == nil {
		return nil, fmt.Errorf("no pod of the uid %s runs here", uid)
	}
	select {
	case p := <-r.program:
		r.program <- p
		return p, nil
	default:
		return nil, fmt.Errorf("pod %s has no program that runs", r.pod.Name)
	}
}

// Kill ends a pod's program at once, as a crash would. It is started again after a moment.
func (m *Mesh) Kill(pod types.UID) error {
	p, err := m.machine.programOf(pod)
	if err != nil {
		return err
	}
	return p.Kill()
}

// ProcessID is the number of a pod's program, which a restart changes.
func (m *Mesh) ProcessID(pod types.UID) (int, error) {
	p, err := m.machine.programOf(pod)
	if err != nil {
		return 0, err
	}
	return p.ID(), nil
}
