package translate

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"istio.io/api/networking/v1alpha3"
	"istio.io/api/type/v1beta1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// envoyFilter makes a waypoint ask the picker about each call to the pool's fronts there. It is in the waypoint's
// namespace, as istiod reads the EnvoyFilters of a Gateway only there.
func (t translator) envoyFilter(r readPool, waypoint types.NamespacedName, fronts []front) (*networkingv1alpha3.EnvoyFilter, error) {
	b := &filterBuilder{translator: t, pool: r, backends: map[types.NamespacedName]readPool{}, services: map[string]bool{}, pickers: map[ServicePort]bool{}}
	for _, f := range fronts {
		if err := b.front(f); err != nil {
			return nil, err
		}
	}
	if err := b.clusters(); err != nil {
		return nil, err
	}
	out := &networkingv1alpha3.EnvoyFilter{
		TypeMeta: metav1.TypeMeta{APIVersion: networkingv1alpha3.SchemeGroupVersion.String(), Kind: "EnvoyFilter"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   waypoint.Namespace,
			Name:        envoyFilterName(r.Name, waypoint),
			Annotations: map[string]string{pool.AskedForPeopleAnnotation: r.picker.String()},
		},
		Spec: v1alpha3.EnvoyFilter{
			TargetRefs: []*v1beta1.PolicyTargetReference{{
				Group: gatewayv1.GroupName,
				Kind:  "Gateway",
				Name:  waypoint.Name,
			}},
			ConfigPatches: b.patches,
		},
	}
	if len(b.services) > 0 {
		out.Annotations[envoypatch.ReferencedServices] = strings.Join(slices.Sorted(maps.Keys(b.services)), ",")
	}
	if len(b.pickers) > 0 {
		out.Annotations[pool.AskedPickersAnnotation] = joinPickers(b.pickers)
	}
	return out, nil
}

// filterBuilder collects the patches of one EnvoyFilter, and the pools, Services and pickers that the patches refer to.
type filterBuilder struct {
	translator
	pool     readPool
	patches  []*envoypatch.Patch
	backends map[types.NamespacedName]readPool
	services map[string]bool // namespace/host
	pickers  map[ServicePort]bool
}

// front adds the patches of each host and port of a front.
func (b *filterBuilder) front(f front) error {
	own := b.pickerSettings(b.pool)
	b.refer(b.pool)
	for _, port := range f.ports {
		list, _ := routes.Merge(b.attached(f, port, b.resolve))
		if list == nil {
			list = []envoypatch.Route{{
				Name: clusterName(b.pool.Name, b.pool.Name),
				To:   []envoypatch.Destination{{Cluster: clusterName(b.pool.Name, b.pool.Name), Weight: 1, Picker: &own}},
			}}
		}
		for _, host := range f.hosts {
			if err := b.host(envoypatch.Front{Host: host, Port: uint32(port.Number)}, own, list); err != nil {
				return err
			}
		}
	}
	if f.object.Kind == entryKind {
		return b.closeExtraPorts(f.hosts)
	}
	return nil
}

func (b *filterBuilder) host(at envoypatch.Front, own envoypatch.Picker, list []envoypatch.Route) error {
	name := virtualHostName(b.pool.Name)
	chain, err := envoypatch.ChainPatches(at, name, pool.CounterName(b.pool.Name), b.brokenOffReceiver(b.pool))
	if err != nil {
		return err
	}
	routed, err := envoypatch.VirtualHostPatch(at, envoypatch.VirtualHost{Name: name, Picker: own, Routes: list})
	if err != nil {
		return err
	}
	b.patches = append(append(b.patches, chain...), routed)
	return nil
}

// closeExtraPorts makes the waypoint refuse calls to the extra ports of a host. These ports exist only to make istiod send the
// endpoints of further target ports; a call to such a port would reach an endpoint without a pick.
func (b *filterBuilder) closeExtraPorts(hosts []string) error {
	for i := 1; i < len(b.pool.TargetPorts); i++ {
		for _, host := range hosts {
			at := envoypatch.Front{Host: host, Port: frontPort + uint32(i)}
			fetched, err := envoypatch.FetchedRoutesPatch(at, virtualHostName(b.pool.Name))
			if err != nil {
				return err
			}
			refused, err := envoypatch.VirtualHostPatch(at, envoypatch.VirtualHost{
				Name:   virtualHostName(b.pool.Name),
				Routes: []envoypatch.Route{{Name: "no-port", Status: http.StatusNotFound}},
			})
			if err != nil {
				return err
			}
			b.patches = append(b.patches, fetched, refused)
		}
	}
	return nil
}

// resolve finds a backend and records the cluster and picker that it needs.
func (b *filterBuilder) resolve(namespace string, ref gatewayv1.BackendObjectReference) (envoypatch.Destination, *routes.Problem) {
	to, problem := b.backend(b.pool.Name, namespace, ref)
	if problem != nil {
		return to.Destination, problem
	}
	if to.pool != nil {
		b.refer(*to.pool)
	}
	if to.service != (types.NamespacedName{}) {
		b.services[to.service.Namespace+"/"+b.serviceHost(to.service)] = true
	}
	return to.Destination, nil
}

// refer records that the EnvoyFilter needs a pool's cluster and picker.
func (b *filterBuilder) refer(r readPool) {
	b.backends[r.Name] = r
	if !r.picker.missing {
		b.services[r.picker.at.Service.Namespace+"/"+b.serviceHost(r.picker.at.Service)] = true
		b.pickers[r.picker.at] = true
	}
}

// clusters adds the cluster of each pool that the routes refer to. A cluster has the endpoints of the pool's own host,
// which istiod sends to any waypoint that asks for them.
func (b *filterBuilder) clusters() error {
	for _, name := range sortedNames(b.backends) {
		r := b.backends[name]
		patch, err := envoypatch.ClusterPatch(envoypatch.Cluster{
			Name:      clusterName(b.pool.Name, name),
			Endpoints: envoypatch.Front{Host: r.Host(b.settings.HostSuffix), Port: frontPort},
			H2C:       r.H2C,
			ShownTo:   b.shownTo(r),
			Service:   name.Name,
			Namespace: name.Namespace,
		})
		if err != nil {
			return err
		}
		b.patches = append(b.patches, patch)
	}
	return nil
}

// virtualHostName is the name of the virtual host of all fronts of a pool. No two pools share a name.
func virtualHostName(pool types.NamespacedName) string { return "inference|" + pool.String() }

// clusterName is the name of a pool's cluster in the EnvoyFilter of an owner. Names in Kubernetes have no bars or slashes,
// so no two pools and no two EnvoyFilters share a cluster. So a change of one EnvoyFilter never changes another's
// cluster.
func clusterName(owner, name types.NamespacedName) string {
	if owner == name {
		return "inference|" + name.String()
	}
	return "inference|" + owner.String() + "|" + name.String()
}

// maxReadable is how many characters of a pool's name an EnvoyFilter's name contains. With prefix and hash the name stays
// within 63 characters, the longest value of a label.
const maxReadable = 40

// envoyFilterName is unique for the pool and the waypoint, and always short. It contains the beginning of the pool's name
// for people. The hash distinguishes pools of other namespaces or with the same beginning.
func envoyFilterName(pool, waypoint types.NamespacedName) string {
	sum := sha256.Sum256([]byte(pool.String() + "|" + waypoint.String()))
	readable := pool.Name
	if len(readable) > maxReadable {
		readable = strings.TrimRight(readable[:maxReadable], "-.")
	}
	return fmt.Sprintf("inference-%s-%s", readable, hex.EncodeToString(sum[:5]))
}
