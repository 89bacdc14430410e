package reconcile

import (
	"slices"
	"strings"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/ineffective"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// othersKinds are looked at for nothing but what has no effect. A cluster may lack them.
var othersKinds = []client.Object{&networkingv1.VirtualService{}, &networkingv1.DestinationRule{}}

// installed reports whether the API server has a kind, as far as it says: where it does not answer, the watch of the kind
// will tell.
func installed(mapper meta.RESTMapper, scheme *runtime.Scheme, kind client.Object) bool {
	gvk, err := apiutil.GVKForObject(kind, scheme)
	if err == nil {
		_, err = mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	}
	return !meta.IsNoMatchError(err)
}

// CacheOptions keep of the kinds that are only looked at for what has no effect no more than that takes: a cluster may
// have thousands of them. AuthorizationPolicies are read beside our picker alone, and of pods those of Gateways alone, by
// their addresses. Of all other objects no managedFields are kept but what tells our labels and annotations from others'.
func CacheOptions(settings translate.Settings) cache.Options {
	out := map[client.Object]cache.ByObject{
		&networkingv1.VirtualService{}:  {Transform: strip},
		&networkingv1.DestinationRule{}: {Transform: strip},
		&corev1.Pod{}:                   {Label: ofGateways(), Transform: stripPod},
	}
	if picker := settings.DefaultPicker; picker != nil {
		out[&securityv1.AuthorizationPolicy{}] = cache.ByObject{Namespaces: map[string]cache.Config{picker.Service.Namespace: {}}}
	}
	return cache.Options{ByObject: out, DefaultTransform: apply.Strip}
}

// ofGateways selects the pods of waypoints, and of other Gateways.
func ofGateways() labels.Selector {
	exists, err := labels.NewRequirement(gatewayNameLabel, selection.Exists, nil)
	if err != nil {
		return labels.Nothing() // the label is Istio's, and no name of a label is wrong
	}
	return labels.NewSelector().Add(*exists)
}

// stripPod keeps of a pod what finds it and says whether it runs.
func stripPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	kept := corev1.Pod{Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP}}
	kept.Name, kept.Namespace, kept.UID, kept.ResourceVersion = p.Name, p.Namespace, p.UID, p.ResourceVersion
	kept.Labels = map[string]string{gatewayNameLabel: p.Labels[gatewayNameLabel]}
	kept.DeletionTimestamp = p.DeletionTimestamp
	return &kept, nil
}

// strip drops of a VirtualService its routes, of a DestinationRule its subsets, and of both what people and programs noted
// on them. That there are any routes or subsets stays.
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

// others reads what others have configured for calls to a pool, as far as the pool's hosts and waypoints find it.
func (g *gatherer) others(name types.NamespacedName) {
	targets := []routes.Object{entryObject(name), ineffective.Class(g.settings.RootNamespace)}
	hosts := append(hostsOf(g.in.Pools[name], g.settings), anyHost)
	if waypoint, bound := translate.WaypointOf(g.in.Pools[name], g.in.Namespaces[name.Namespace]); bound {
		targets = append(targets, gatewayObject(waypoint))
	}
	for service, s := range g.in.Services {
		if translate.FrontOf(s) != name {
			continue
		}
		targets = append(targets, serviceObject(service))
		hosts = append(hosts, translate.ServiceHost(service, g.settings))
		if waypoint, bound := translate.ServiceWaypoint(s, g.in.Namespaces[name.Namespace]); bound {
			targets = append(targets, gatewayObject(waypoint))
		}
	}
	for _, host := range hosts {
		for _, v := range list[networkingv1.VirtualService](g, &networkingv1.VirtualServiceList{}, hostIndex, host) {
			g.in.Others.VirtualServices[client.ObjectKeyFromObject(v)] = v
		}
		for _, d := range list[networkingv1.DestinationRule](g, &networkingv1.DestinationRuleList{}, hostIndex, host) {
			g.in.Others.DestinationRules[client.ObjectKeyFromObject(d)] = d
		}
	}
	for _, target := range targets {
		for _, f := range list[networkingv1alpha3.EnvoyFilter](g, &networkingv1alpha3.EnvoyFilterList{}, targetIndex, keyOf(target)) {
			g.in.Others.EnvoyFilters[client.ObjectKeyFromObject(f)] = f
		}
	}
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

func hostKeys(patterns []string) []string {
	var out []string
	for _, pattern := range patterns {
		if strings.HasPrefix(pattern, "*") {
			pattern = anyHost
		}
		out = append(out, pattern)
	}
	return out
}

func gatewayObject(name types.NamespacedName) routes.Object {
	return routes.Object{Group: gatewayv1.GroupName, Kind: "Gateway", Name: name}
}

// calledAs adds the pools that are called by a host which a pattern is for.
func (w watcher) calledAs(g *gatherer, patterns []string, out names) {
	for _, pattern := range patterns {
		matches := func(host string) bool { return ineffective.Matches(pattern, host) }
		key := pattern
		if strings.HasPrefix(pattern, "*") {
			key = anyFront
			w.matching(g, "", out, func(p *inferencev1.InferencePool) bool { return slices.ContainsFunc(hostsOf(p, w.settings), matches) })
		} else {
			w.claiming(g, []string{pattern}, out)
		}
		for _, s := range list[corev1.Service](g, &corev1.ServiceList{}, frontIndex, key) {
			if matches(translate.ServiceHost(client.ObjectKeyFromObject(s), w.settings)) {
				out[translate.FrontOf(s)] = true
			}
		}
	}
}

// targeted adds the pools that an EnvoyFilter of others reaches.
func (w watcher) targeted(g *gatherer, f *networkingv1alpha3.EnvoyFilter, out names) {
	for _, o := range ineffective.Targets(f) {
		switch o {
		case ineffective.Class(w.settings.RootNamespace):
			w.matching(g, "", out, func(*inferencev1.InferencePool) bool { return true })
		case gatewayObject(o.Name):
			w.at(g, o.Name, out)
		case entryObject(o.Name):
			out[o.Name] = true // a pool's has the pool's name; of another's nothing comes
		case serviceObject(o.Name):
			read(g, o.Name, g.in.Services)
			if s := g.in.Services[o.Name]; s != nil && translate.FrontOf(s).Name != "" {
				out[translate.FrontOf(s)] = true
			}
		}
	}
}
