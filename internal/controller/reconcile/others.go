package reconcile

import (
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/ineffective"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// CacheOptions keep the cache small. Of VirtualServices and DestinationRules, of which there may be thousands, it keeps only
// the fields that show whether they have an effect. It keeps AuthorizationPolicies of our picker's namespace only, and pods
// of Gateways and of our picker's namespace only. Of other objects it shortens managedFields to the names of our labels and annotations.
func CacheOptions(settings translate.Settings) cache.Options {
	out := map[client.Object]cache.ByObject{
		&networkingv1.VirtualService{}:  {Transform: strip},
		&networkingv1.DestinationRule{}: {Transform: strip},
	}
	pods := map[string]cache.Config{cache.AllNamespaces: {LabelSelector: ofGateways(), Transform: stripPod}}
	out[&corev1.Pod{}] = cache.ByObject{Namespaces: pods}
	if picker := settings.DefaultPicker; picker != nil {
		pods[picker.Service.Namespace] = cache.Config{LabelSelector: labels.Everything(), Transform: stripPicker}
		out[&securityv1.AuthorizationPolicy{}] = cache.ByObject{Namespaces: map[string]cache.Config{picker.Service.Namespace: {}}}
	}
	return cache.Options{ByObject: out, DefaultTransform: apply.Strip}
}

// ofGateways selects the pods of waypoints, and of other Gateways.
func ofGateways() labels.Selector {
	exists, err := labels.NewRequirement(gatewayNameLabel, selection.Exists, nil)
	if err != nil {
		return labels.Nothing() // cannot happen: the label's name is valid
	}
	return labels.NewSelector().Add(*exists)
}

// stripPod keeps only a pod's names, its Gateway label, its address and whether it runs.
func stripPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	kept := bare(p)
	kept.Labels = map[string]string{gatewayNameLabel: p.Labels[gatewayNameLabel]}
	return kept, nil
}

// stripPicker keeps of a pod what stripPod does, all labels, its node, its ports, and whether it is ready.
func stripPicker(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	kept := bare(p)
	kept.Labels, kept.Spec.NodeName = p.Labels, p.Spec.NodeName
	for _, c := range p.Spec.Containers {
		kept.Spec.Containers = append(kept.Spec.Containers, corev1.Container{Ports: c.Ports})
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			kept.Status.Conditions = []corev1.PodCondition{c}
		}
	}
	return kept, nil
}

func bare(p *corev1.Pod) *corev1.Pod {
	kept := &corev1.Pod{Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP}}
	kept.Name, kept.Namespace, kept.UID, kept.ResourceVersion = p.Name, p.Namespace, p.UID, p.ResourceVersion
	kept.DeletionTimestamp = p.DeletionTimestamp
	return kept
}

// strip drops a VirtualService's routes, a DestinationRule's subsets, and the labels, annotations and managedFields of both.
// It keeps one empty route or subset if there were any.
func strip(o any) (any, error) {
	switch o := o.(type) {
	case *networkingv1.VirtualService:
		if len(o.Spec.Http) > 0 {
			o.Spec.Http = []*networkingapi.HTTPRoute{{}}
		}
		o.Spec.Tcp, o.Spec.Tls = nil, nil
	case *networkingv1.DestinationRule:
		if len(o.Spec.Subsets) > 0 {
			o.Spec.Subsets = []*networkingapi.Subset{{}}
		}
	}
	if accessor, err := meta.Accessor(o); err == nil {
		accessor.SetManagedFields(nil)
		accessor.SetAnnotations(nil)
		accessor.SetLabels(nil)
	}
	return o, nil
}

func othersIndexes(settings translate.Settings) []index {
	return []index{
		{&networkingv1.VirtualService{}, hostIndex, func(o client.Object) []string {
			return hostKeys(ineffective.VirtualServiceHosts(o.(*networkingv1.VirtualService), settings.ClusterDomain))
		}},
		{&networkingv1.DestinationRule{}, hostIndex, func(o client.Object) []string {
			return hostKeys(ineffective.DestinationRuleHosts(o.(*networkingv1.DestinationRule), settings.ClusterDomain))
		}},
		{envoyFilterKind, targetIndex, func(o client.Object) []string {
			if _, ours := apply.Owner(o); ours {
				return nil
			}
			return keysOf(ineffective.Targets(o.(*networkingv1alpha3.EnvoyFilter)))
		}},
	}
}

func gatewayObject(name types.NamespacedName) routes.Object {
	return routes.Object{Group: gatewayv1.GroupName, Kind: "Gateway", Name: name}
}
