package mesh

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/authorization"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/pki"
)

// templateHash labels a pod with the template that it was made from, as the label of the same name does in Kubernetes.
const templateHash = "pod-template-hash"

// machine does for the mesh what a controller manager and a kubelet do for a cluster: it keeps the pods of
// Deployments and the EndpointSlices of Services, runs a real program for each pod, and reports what is ready. It is
// level-triggered: any event makes it look at everything again, which is cheap at a test's size.
type machine struct {
	client    client.WithWatch
	cluster   *cluster.Cluster
	authority *pki.Authority
	policies  *authorization.Authorizer
	logs, dir string
	log       *slog.Logger
	images    map[string]Image

	kick     chan struct{}
	accounts map[string]bool // the namespaces that have their default service account
	wait     sync.WaitGroup

	mu       sync.Mutex
	running  map[types.UID]*runningPod
	nextAddr netip.Addr
}

func newMachine(c *cluster.Cluster, policies *authorization.Authorizer, logs, dir string, images map[string]Image, log *slog.Logger) *machine {
	return &machine{
		client: c.Client, cluster: c, authority: c.CA, policies: policies, logs: logs, dir: dir, log: log, images: images,
		kick: make(chan struct{}, 1), accounts: map[string]bool{}, running: map[types.UID]*runningPod{}, nextAddr: netip.MustParseAddr("10.244.0.1"),
	}
}

// run works until ctx ends and then stops all pods, model servers and waypoints before what they depend on.
func (m *machine) run(ctx context.Context) error {
	defer m.stopAll()
	watches := []client.ObjectList{
		&appsv1.DeploymentList{}, &corev1.PodList{}, &corev1.ServiceList{}, &corev1.NamespaceList{}, &gatewayv1.GatewayList{},
	}
	for _, list := range watches {
		w, err := m.client.Watch(ctx, list)
		if err != nil {
			return fmt.Errorf("watching %T: %w", list, err)
		}
		defer w.Stop()
		m.wait.Go(func() { m.forward(ctx, w) })
	}
	for {
		if err := m.sync(ctx); err != nil && ctx.Err() == nil {
			// A conflict with somebody else's write is ordinary; the next look settles it.
			if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				m.log.Error("looking after the machine", "error", err)
			}
			m.again()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.kick:
		}
	}
}

func (m *machine) forward(ctx context.Context, w watch.Interface) {
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-w.ResultChan():
			if !open {
				return
			}
			m.again()
		}
	}
}

func (m *machine) again() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// state is one look at the API server.
type state struct {
	namespaces  map[string]*corev1.Namespace
	deployments []appsv1.Deployment
	pods        []corev1.Pod
	services    []corev1.Service
	owners      map[types.UID]bool // what exists of the kinds in ownerKinds
}

// ownerKinds are those whose end takes away what they own, as the garbage collector of a cluster sees to.
var ownerKinds = []string{"Deployment", "Gateway"}

func (m *machine) look(ctx context.Context) (*state, error) {
	var (
		s           = state{namespaces: map[string]*corev1.Namespace{}, owners: map[types.UID]bool{}}
		namespaces  corev1.NamespaceList
		deployments appsv1.DeploymentList
		pods        corev1.PodList
		services    corev1.ServiceList
		gateways    gatewayv1.GatewayList
	)
	for _, list := range []client.ObjectList{&namespaces, &deployments, &pods, &services, &gateways} {
		if err := m.client.List(ctx, list); err != nil {
			return nil, fmt.Errorf("listing %T: %w", list, err)
		}
	}
	for i := range namespaces.Items {
		s.namespaces[namespaces.Items[i].Name] = &namespaces.Items[i]
	}
	for i := range deployments.Items {
		s.owners[deployments.Items[i].UID] = true
	}
	for i := range gateways.Items {
		s.owners[gateways.Items[i].UID] = true
	}
	s.deployments, s.pods, s.services = deployments.Items, pods.Items, services.Items
	return &s, nil
}

func (m *machine) sync(ctx context.Context) error {
	s, err := m.look(ctx)
	if err != nil {
		return err
	}
	problems := []error{m.collect(ctx, s), m.syncAccounts(ctx, s)}
	for i := range s.deployments {
		problems = append(problems, m.syncDeployment(ctx, &s.deployments[i], s.pods))
	}
	present := map[types.UID]bool{}
	for i := range s.pods {
		present[s.pods[i].UID] = true
		problems = append(problems, m.syncPod(ctx, &s.pods[i], s))
	}
	m.stopMissing(present)
	for i := range s.services {
		problems = append(problems, m.syncEndpoints(ctx, &s.services[i], s.pods))
	}
	return errors.Join(problems...)
}

// syncAccounts gives every namespace its default service account.
func (m *machine) syncAccounts(ctx context.Context, s *state) error {
	for name := range s.namespaces {
		if m.accounts[name] {
			continue
		}
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}}
		if err := m.client.Create(ctx, account); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("making the default service account of %s: %w", name, err)
		}
		m.accounts[name] = true
	}
	return nil
}

// collect deletes what has lost its owner.
func (m *machine) collect(ctx context.Context, s *state) error {
	var problems []error
	look := func(o client.Object) {
		orphan := slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
			return slices.Contains(ownerKinds, r.Kind) && !s.owners[r.UID]
		})
		if !orphan || o.GetDeletionTimestamp() != nil {
			return
		}
		if err := m.client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
			problems = append(problems, fmt.Errorf("deleting %s, whose owner is gone: %w", o.GetName(), err))
		}
	}
	for i := range s.deployments {
		look(&s.deployments[i])
	}
	for i := range s.services {
		look(&s.services[i])
	}
	for i := range s.pods {
		look(&s.pods[i])
	}
	return errors.Join(problems...)
}

// syncDeployment makes and removes pods until there are as many of the present template as asked for. Those of an older
// one stay until all of these are ready, as with a Deployment's default strategy where it has up to three pods.
func (m *machine) syncDeployment(ctx context.Context, d *appsv1.Deployment, pods []corev1.Pod) error {
	if _, known := m.imageOf(d.Spec.Template.Spec); !known {
		return nil
	}
	hash := hashOf(d.Spec.Template.Spec)
	var current, old []*corev1.Pod
	ready := int32(0)
	for i := range pods {
		p := &pods[i]
		if !metav1.IsControlledBy(p, d) || p.DeletionTimestamp != nil {
			continue
		}
		if p.Labels[templateHash] != hash {
			old = append(old, p)
			continue
		}
		current = append(current, p)
		if cluster.IsReady(p) {
			ready++
		}
	}
	want := 1
	if d.Spec.Replicas != nil {
		want = int(*d.Spec.Replicas)
	}
	slices.SortFunc(current, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for i := want; i < len(current); i++ {
		if err := m.client.Delete(ctx, current[i]); err != nil {
			return fmt.Errorf("deleting pod %s: %w", current[i].Name, err)
		}
	}
	if len(current) < want {
		if err := m.client.Create(ctx, podOf(d, hash, freeName(d.Name, pods))); err != nil {
			return fmt.Errorf("creating a pod of %s: %w", d.Name, err)
		}
		return nil // its own event brings us back for the next one, with the name taken
	}
	for _, p := range old {
		if int(ready) < want {
			break
		}
		if err := m.client.Delete(ctx, p); err != nil {
			return fmt.Errorf("deleting pod %s of an old template: %w", p.Name, err)
		}
	}
	return m.reportDeployment(ctx, d, int32(len(current)), ready)
}

// freeName numbers a Deployment's pods from 0. A number is given again only when its pod is gone.
func freeName(deployment string, pods []corev1.Pod) string {
	for n := 0; ; n++ {
		name := fmt.Sprintf("%s-%d", deployment, n)
		if !slices.ContainsFunc(pods, func(p corev1.Pod) bool { return p.Name == name }) {
			return name
		}
	}
}

func podOf(d *appsv1.Deployment, hash, name string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: *d.Spec.Template.ObjectMeta.DeepCopy(), Spec: *d.Spec.Template.Spec.DeepCopy()}
	p.Namespace, p.Name = d.Namespace, name
	p.Labels = maps.Clone(p.Labels)
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[templateHash] = hash
	p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))}
	return p
}

func hashOf(spec corev1.PodSpec) string {
	h := fnv.New32a()
	text, _ := spec.Marshal() // the API's own type, just read: it always encodes
	_, _ = h.Write(text)
	return fmt.Sprintf("%08x", h.Sum32())
}

func (m *machine) reportDeployment(ctx context.Context, d *appsv1.Deployment, pods, ready int32) error {
	available := metav1.ConditionFalse
	if d.Spec.Replicas == nil && ready > 0 || d.Spec.Replicas != nil && ready >= *d.Spec.Replicas {
		available = metav1.ConditionTrue
	}
	status := appsv1.DeploymentStatus{
		ObservedGeneration: d.Generation, Replicas: pods, UpdatedReplicas: pods, ReadyReplicas: ready, AvailableReplicas: ready,
		Conditions: []appsv1.DeploymentCondition{{
			Type: appsv1.DeploymentAvailable, Status: corev1.ConditionStatus(available), Reason: "Counted",
		}},
	}
	old := d.Status.DeepCopy()
	for i := range old.Conditions {
		old.Conditions[i].LastTransitionTime, old.Conditions[i].LastUpdateTime = metav1.Time{}, metav1.Time{}
	}
	if old.String() == status.String() {
		return nil
	}
	d.Status = status
	if err := m.client.Status().Update(ctx, d); err != nil {
		return fmt.Errorf("reporting deployment %s: %w", d.Name, err)
	}
	return nil
}

// syncEndpoints keeps the one EndpointSlice of a Service that selects pods.
func (m *machine) syncEndpoints(ctx context.Context, s *corev1.Service, pods []corev1.Pod) error {
	if len(s.Spec.Selector) == 0 {
		return nil
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: s.Name + "-machine",
			Labels: map[string]string{
				discoveryv1.LabelServiceName: s.Name,
				discoveryv1.LabelManagedBy:   "endpointslice-controller.k8s.io",
			},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(s, corev1.SchemeGroupVersion.WithKind("Service"))},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	selector := labels.SelectorFromSet(s.Spec.Selector)
	var sample *corev1.Pod
	for i := range pods {
		p := &pods[i]
		if p.Namespace != s.Namespace || p.Status.PodIP == "" || !selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		sample = p
		ready, terminating := cluster.IsReady(p) && p.DeletionTimestamp == nil, p.DeletionTimestamp != nil
		node := cluster.NodeName
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{p.Status.PodIP},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready, Terminating: &terminating},
			NodeName:   &node,
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		})
	}
	for _, port := range s.Spec.Ports {
		number := targetPort(port, sample)
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
			Name: &port.Name, Port: &number, Protocol: &port.Protocol, AppProtocol: port.AppProtocol,
		})
	}
	slices.SortFunc(slice.Endpoints, func(a, b discoveryv1.Endpoint) int { return strings.Compare(a.Addresses[0], b.Addresses[0]) })
	return m.writeSlice(ctx, slice)
}

func (m *machine) writeSlice(ctx context.Context, want *discoveryv1.EndpointSlice) error {
	var have discoveryv1.EndpointSlice
	err := m.client.Get(ctx, client.ObjectKeyFromObject(want), &have)
	switch {
	case apierrors.IsNotFound(err):
		err = m.client.Create(ctx, want)
	case err == nil && !sameSlice(&have, want):
		have.Endpoints, have.Ports = want.Endpoints, want.Ports
		err = m.client.Update(ctx, &have)
	}
	if err != nil {
		return fmt.Errorf("writing endpoint slice %s: %w", want.Name, err)
	}
	return nil
}

func sameSlice(a, b *discoveryv1.EndpointSlice) bool {
	x := discoveryv1.EndpointSlice{Endpoints: a.Endpoints, Ports: a.Ports}
	y := discoveryv1.EndpointSlice{Endpoints: b.Endpoints, Ports: b.Ports}
	return x.String() == y.String()
}

func targetPort(p corev1.ServicePort, pod *corev1.Pod) int32 {
	switch {
	case p.TargetPort.Type == intstr.Int && p.TargetPort.IntVal != 0:
		return p.TargetPort.IntVal
	case p.TargetPort.Type == intstr.String && pod != nil:
		for _, c := range pod.Spec.Containers {
			for _, port := range c.Ports {
				if port.Name == p.TargetPort.StrVal {
					return port.ContainerPort
				}
			}
		}
	}
	return p.Port
}
