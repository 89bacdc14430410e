package cluster

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestUnwatched(t *testing.T) {
	for arg, want := range map[string]bool{
		"--leader-elect": false, "--watch-waypoints=5s": false, "--watch-waypoints=0": true, "--watch-waypoints=0s": true, "--watch-waypoints=?": false,
	} {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{NameLabel: Controller}}}
		d.Spec.Template.Spec.Containers = []corev1.Container{{Args: []string{arg, "--log-level=info"}}}
		if got := unwatched(List[appsv1.Deployment]{Items: []*appsv1.Deployment{d}}); got != want {
			t.Errorf("%s: unwatched is %t, want %t", arg, got, want)
		}
	}
	if unwatched(List[appsv1.Deployment]{}) {
		t.Error("a controller that cannot be read is taken for one that does not watch")
	}
}
