package translate

import (
	"cmp"
	"slices"
	"strings"

	"istio.io/api/networking/v1alpha3"
	"istio.io/api/type/v1beta1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// gatewayOwner begins the name of an owner that is a waypoint. No pool's name has a slash.
const gatewayOwner = "gateway/"

// WaypointOwner is the owner of objects that belong to a waypoint, and not to one of its pools.
func WaypointOwner(waypoint types.NamespacedName) types.NamespacedName {
	return types.NamespacedName{Namespace: waypoint.Namespace, Name: gatewayOwner + waypoint.Name}
}

// OwningWaypoint is the inverse of WaypointOwner; ok is false for an owner that is a pool.
func OwningWaypoint(owner types.NamespacedName) (waypoint types.NamespacedName, ok bool) {
	name, ok := strings.CutPrefix(owner.Name, gatewayOwner)
	return types.NamespacedName{Namespace: owner.Namespace, Name: name}, ok
}

// PickersFilter makes a waypoint eject pickers that hang or are gone. It is one for all pools of the waypoint, so that a
// thousand pools of one picker need its settings once. Pools are their EnvoyFilters, and own tells our own pickers from
// others, which do not get the name of the pool. It is nil if no pool asks a picker.
func PickersFilter(
	waypoint types.NamespacedName, pools []*networkingv1alpha3.EnvoyFilter, own func(ServicePort) bool, settings Settings,
) (*networkingv1alpha3.EnvoyFilter, error) {
	var patches []*envoypatch.Patch
	for _, picker := range distinctPickers(pools) {
		patch, err := envoypatch.PickerPatch(envoypatch.PickerCluster{
			Host: ServiceHost(picker.Service, settings), Port: uint32(picker.Port), Own: own(picker),
		})
		if err != nil {
			return nil, err
		}
		patches = append(patches, patch)
	}
	if len(patches) == 0 {
		return nil, nil
	}
	return &networkingv1alpha3.EnvoyFilter{
		TypeMeta: metav1.TypeMeta{APIVersion: networkingv1alpha3.SchemeGroupVersion.String(), Kind: "EnvoyFilter"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: waypoint.Namespace,
			// A pool has a namespace, so no pool's EnvoyFilter has the same hash.
			Name: envoyFilterName(types.NamespacedName{Name: "pickers"}, waypoint),
		},
		Spec: v1alpha3.EnvoyFilter{
			TargetRefs: []*v1beta1.PolicyTargetReference{{
				Group: gatewayv1.GroupName,
				Kind:  "Gateway",
				Name:  waypoint.Name,
			}},
			ConfigPatches: patches,
		},
	}, nil
}

// distinctPickers are the pickers that any of the EnvoyFilters asks, each once.
func distinctPickers(pools []*networkingv1alpha3.EnvoyFilter) []ServicePort {
	seen := map[string]bool{}
	var out []ServicePort
	for _, f := range pools {
		for _, text := range listedPickers(f.Annotations) {
			if seen[text] {
				continue
			}
			seen[text] = true
			if picker, err := ParseServicePort(text); err == nil { // an error means that somebody changed our annotation, which the controller repairs
				out = append(out, picker)
			}
		}
	}
	slices.SortFunc(out, func(a, b ServicePort) int { return cmp.Compare(a.String(), b.String()) })
	return out
}

// AskedBy are the pickers that a pool's EnvoyFilter asks, or will ask soon.
func AskedBy(filter *networkingv1alpha3.EnvoyFilter) []ServicePort {
	return distinctPickers([]*networkingv1alpha3.EnvoyFilter{filter})
}

// listedPickers are the pickers that an EnvoyFilter's annotation lists, as written.
func listedPickers(annotations map[string]string) []string {
	return strings.Split(annotations[pool.AskedPickersAnnotation], ",")
}

// joinPickers writes the annotation that distinctPickers reads.
func joinPickers(pickers map[ServicePort]bool) string {
	var out []string
	for picker := range pickers {
		out = append(out, picker.String())
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}
