package cluster

import (
	"context"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// List has the objects of one kind. With a Problem, some or all of them could not be read.
type List[T any] struct {
	Items   []*T
	Problem *Problem
}

// Find is the object of a name; nil if it was not read.
func Find[T any, O interface {
	*T
	client.Object
}](l List[T], namespace, name string) *T {
	for _, o := range l.Items {
		if O(o).GetNamespace() == namespace && O(o).GetName() == name {
			return o
		}
	}
	return nil
}

// Snapshot has the objects that commands judge.
type Snapshot struct {
	// SystemNamespace is where Inference Waypoint itself is installed.
	SystemNamespace string
	// Settings are the controller's settings, from the arguments in its Deployment, or the defaults.
	Settings translate.Settings
	// Unwatched says that the controller runs with --watch-waypoints=0.
	Unwatched bool

	Pools      List[inferencev1.InferencePool]
	Namespaces List[corev1.Namespace] // the pools' own
	Gateways   List[gatewayv1.Gateway]
	Entries    List[networkingv1.ServiceEntry]
	Filters    List[networkingv1alpha3.EnvoyFilter]
	Services   List[corev1.Service]
	Pods       List[corev1.Pod]
	// Deployments are the Deployments of SystemNamespace.
	Deployments List[appsv1.Deployment]
	// Answers are those of pickers, where they were asked.
	Answers []Answer
}

// Problems lists the problems of all lists, each once.
func (s *Snapshot) Problems() []*Problem {
	var out []*Problem
	for _, p := range []*Problem{
		s.Pools.Problem, s.Namespaces.Problem, s.Gateways.Problem, s.Entries.Problem, s.Filters.Problem, s.Services.Problem,
		s.Pods.Problem, s.Deployments.Problem,
	} {
		if p != nil && !slices.ContainsFunc(out, func(o *Problem) bool { return *o == *p }) {
			out = append(out, p)
		}
	}
	return out
}

// Read reads the pools of a namespace (of all if it is empty) or the one pool of a name, and the objects that concern
// them. The error is a *Problem: no API server answers.
func (c *Cluster) Read(ctx context.Context, namespace, name string) (*Snapshot, error) {
	s := &Snapshot{SystemNamespace: c.SystemNamespace}
	s.Pools = list[inferencev1.InferencePool](ctx, c, "inferencepools", &inferencev1.InferencePoolList{}, namespace)
	if p := s.Pools.Problem; p != nil && p.Cause == NotReached {
		return nil, p
	}
	if name != "" {
		s.Pools.Items = slices.DeleteFunc(s.Pools.Items, func(p *inferencev1.InferencePool) bool { return p.Name != name })
	}
	s.Deployments = list[appsv1.Deployment](ctx, c, "deployments", &appsv1.DeploymentList{}, c.SystemNamespace)
	s.Settings = settingsOf(s.Deployments, c.SystemNamespace)
	s.Unwatched = unwatched(s.Deployments)

	own := map[string]bool{}
	for _, p := range s.Pools.Items {
		own[p.Namespace] = true
	}
	for _, name := range slices.Sorted(maps.Keys(own)) {
		get(ctx, c, name, &s.Namespaces)
	}
	places := s.places()
	s.Pods = lists[corev1.Pod](ctx, c, "pods", &corev1.PodList{}, places)
	s.Services = lists[corev1.Service](ctx, c, "services", &corev1.ServiceList{}, places)
	s.Gateways = lists[gatewayv1.Gateway](ctx, c, "gateways", &gatewayv1.GatewayList{}, places)
	s.Filters = lists[networkingv1alpha3.EnvoyFilter](ctx, c, "envoyfilters", &networkingv1alpha3.EnvoyFilterList{}, places)
	s.Entries = lists[networkingv1.ServiceEntry](ctx, c, "serviceentries", &networkingv1.ServiceEntryList{}, slices.Sorted(maps.Keys(own)))
	return s, nil
}

// PoolNames are the names of a namespace's pools.
func (c *Cluster) PoolNames(ctx context.Context, namespace string) ([]string, error) {
	pools := list[inferencev1.InferencePool](ctx, c, "inferencepools", &inferencev1.InferencePoolList{}, namespace)
	if pools.Problem != nil {
		return nil, pools.Problem
	}
	var out []string
	for _, p := range pools.Items {
		out = append(out, p.Name)
	}
	return out, nil
}

// EndpointNames are the names of the pods of endpoints, by ip:port. Endpoints without a pod in the namespace are left out.
func (c *Cluster) EndpointNames(ctx context.Context, namespace string, endpoints []string) map[string]string {
	byAddress := map[string]string{}
	for _, p := range list[corev1.Pod](ctx, c, "pods", &corev1.PodList{}, namespace).Items {
		byAddress[p.Status.PodIP] = p.Name
	}
	out := map[string]string{}
	for _, endpoint := range endpoints {
		if host, _, err := net.SplitHostPort(endpoint); err == nil && byAddress[host] != "" {
			out[endpoint] = byAddress[host]
		}
	}
	return out
}

// places are the namespaces of the pools, of their waypoints and of their pickers.
func (s *Snapshot) places() []string {
	out := map[string]bool{s.SystemNamespace: true}
	for _, p := range s.Pools.Items {
		out[p.Namespace] = true
		if waypoint, bound := translate.WaypointOf(p, Find(s.Namespaces, "", p.Namespace)); bound {
			out[waypoint.Namespace] = true
		}
		for _, parent := range p.Status.Parents {
			if parent.ParentRef.Namespace != "" {
				out[string(parent.ParentRef.Namespace)] = true
			}
		}
		if picker, named := translate.PickerOf(p, s.Settings); named {
			out[picker.Service.Namespace] = true
		}
	}
	return slices.Sorted(maps.Keys(out))
}

// Definitions reads the CustomResourceDefinitions.
func (c *Cluster) Definitions(ctx context.Context) List[apiextensionsv1.CustomResourceDefinition] {
	return list[apiextensionsv1.CustomResourceDefinition](ctx, c, "customresourcedefinitions", &apiextensionsv1.CustomResourceDefinitionList{}, "")
}

// Istiods reads the Deployments of istiod in all namespaces.
func (c *Cluster) Istiods(ctx context.Context) List[appsv1.Deployment] {
	return list[appsv1.Deployment](ctx, c, "deployments", &appsv1.DeploymentList{}, "", client.MatchingLabels{"app": "istiod"})
}

// DaemonSets reads the DaemonSets of a namespace.
func (c *Cluster) DaemonSets(ctx context.Context, namespace string) List[appsv1.DaemonSet] {
	return list[appsv1.DaemonSet](ctx, c, "daemonsets", &appsv1.DaemonSetList{}, namespace)
}

// Serves reports whether the API server has a resource of a group and version. Every user may ask that.
func (c *Cluster) Serves(groupVersion, resource string) (bool, *Problem) {
	found, err := c.discovery.ServerResourcesForGroupVersion(groupVersion)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, explained("list the kinds of "+groupVersion, err)
	}
	for _, r := range found.APIResources {
		if r.Name == resource {
			return true, nil
		}
	}
	return false, nil
}

func lists[T any](ctx context.Context, c *Cluster, what string, into client.ObjectList, namespaces []string) List[T] {
	var out List[T]
	for _, namespace := range namespaces {
		one := list[T](ctx, c, what, into.DeepCopyObject().(client.ObjectList), namespace)
		out.Items = append(out.Items, one.Items...)
		if out.Problem == nil {
			out.Problem = one.Problem
		}
	}
	return out
}

func list[T any](ctx context.Context, c *Cluster, what string, into client.ObjectList, namespace string, more ...client.ListOption) List[T] {
	done := "list " + what
	if namespace != "" {
		done += " in namespace " + namespace
	}
	if err := c.client.List(ctx, into, append(more, client.InNamespace(namespace))...); err != nil {
		return List[T]{Problem: explained(done, err)}
	}
	var out List[T]
	err := meta.EachListItem(into, func(o runtime.Object) error {
		out.Items = append(out.Items, any(o).(*T))
		return nil
	})
	out.Problem = explained(done, err)
	return out
}

func get(ctx context.Context, c *Cluster, name string, into *List[corev1.Namespace]) {
	var ns corev1.Namespace
	if err := c.client.Get(ctx, client.ObjectKey{Name: name}, &ns); err != nil {
		into.Problem = explained("get namespace "+name, err)
		return
	}
	into.Items = append(into.Items, &ns)
}

// The Deployments of Inference Waypoint, by the label app.kubernetes.io/name.
const (
	NameLabel  = "app.kubernetes.io/name"
	Controller = "inference-controller"
)

// Named finds a Deployment by its label NameLabel.
func Named(l List[appsv1.Deployment], name string) *appsv1.Deployment {
	for _, d := range l.Items {
		if d.Labels[NameLabel] == name {
			return d
		}
	}
	return nil
}

// unwatched reports whether the controller's arguments have --watch-waypoints=0.
func unwatched(l List[appsv1.Deployment]) bool {
	off := false
	if d := Named(l, Controller); d != nil {
		for _, container := range d.Spec.Template.Spec.Containers {
			for _, arg := range container.Args {
				if value, given := strings.CutPrefix(strings.TrimLeft(arg, "-"), "watch-waypoints="); given {
					interval, err := time.ParseDuration(value)
					off = err == nil && interval == 0
				}
			}
		}
	}
	return off
}

// settingsOf reads the controller's settings from the arguments in its Deployment. It uses the controller's defaults for
// missing arguments, or if there is no Deployment.
func settingsOf(l List[appsv1.Deployment], namespace string) translate.Settings {
	var claims []translate.HostClaim
	given := map[string]string{"default-picker": namespace + "/inference-picker:9002", "host-suffix": "inference.internal", "cluster-domain": "cluster.local"}
	if d := Named(l, Controller); d != nil {
		for _, container := range d.Spec.Template.Spec.Containers {
			for _, arg := range container.Args {
				flag, value, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
				if claim, err := translate.ParseHostClaim(value); flag == "allow-host" && err == nil {
					claims = append(claims, claim)
				}
				if _, known := given[flag]; known {
					given[flag] = strings.ReplaceAll(value, "$(POD_NAMESPACE)", d.Namespace)
				}
			}
		}
	}
	out := translate.Settings{HostSuffix: given["host-suffix"], ClusterDomain: given["cluster-domain"], HostClaims: claims}
	if picker, err := translate.ParseServicePort(given["default-picker"]); err == nil {
		out.DefaultPicker = &picker
	}
	return out
}
