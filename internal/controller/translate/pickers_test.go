package translate

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

var pickersWaypoint = types.NamespacedName{Namespace: "infra", Name: "shared"}

func poolFilter(asks string) *networkingv1alpha3.EnvoyFilter {
	return &networkingv1alpha3.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{pool.AskedPickersAnnotation: asks}}}
}

// TestPickersFilter compares a waypoint's EnvoyFilter with a golden file: two pools ask our picker, and one of them asks
// another as well, by a route. Only ours is pinned.
func TestPickersFilter(t *testing.T) {
	pools := []*networkingv1alpha3.EnvoyFilter{
		poolFilter("inference-system/inference-picker:9002,models/epp:9002"),
		poolFilter("inference-system/inference-picker:9002"),
		poolFilter(""),
	}
	filter, err := PickersFilter(pickersWaypoint, pools, func(p ServicePort) bool { return p.Service.Name == "inference-picker" }, Settings{ClusterDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	got := toYAML(t, filter, "status", "metadata.creationTimestamp")
	path := filepath.Join("testdata", "pickers.golden.yaml")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run the test with -update)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPickersFilterWithoutPickers(t *testing.T) {
	filter, err := PickersFilter(pickersWaypoint, []*networkingv1alpha3.EnvoyFilter{poolFilter("")}, nil, Settings{})
	if err != nil || filter != nil {
		t.Errorf("got %v, %v, want no EnvoyFilter", filter, err)
	}
}

func TestOwningWaypoint(t *testing.T) {
	if got, ok := OwningWaypoint(WaypointOwner(pickersWaypoint)); !ok || got != pickersWaypoint {
		t.Errorf("got %v, %t", got, ok)
	}
	if got, ok := OwningWaypoint(pickersWaypoint); ok {
		t.Errorf("a pool's name is taken for waypoint %v", got)
	}
}
