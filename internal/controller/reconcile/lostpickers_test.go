package reconcile

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/pickerwatch"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// pickerPod is a ready pod of the picker's Service.
func pickerPod(name, address string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "inference-system", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "picker"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "picker", Ports: []corev1.ContainerPort{{Name: "grpc", ContainerPort: 9102}}}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: address,
			Conditions: []corev1.PodCondition{{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
}

func lost(t *testing.T, objects ...client.Object) (lostPickers, *events.FakeRecorder) {
	t.Helper()
	c, _ := newClient(t, objects...)
	recorder := events.NewFakeRecorder(4)
	return lostPickers{client: c, events: recorder, picker: *settings().DefaultPicker, withdrawn: pickerwatch.Withdrawn()}, recorder
}

// Watched are the ready pods that the picker's Service selects, at the port of their metrics or the port that it leads to.
func TestPickersThatAreWatched(t *testing.T) {
	unready, elsewhere, other, portless, local := pickerPod("unready", "10.0.0.2"), pickerPod("elsewhere", "10.0.0.3"), pickerPod("other", "10.0.0.4"),
		pickerPod("portless", "10.0.0.5"), pickerPod("local", "127.0.0.1")
	unready.Status.Conditions[1].Status = corev1.ConditionFalse
	elsewhere.Namespace = "models"
	other.Labels["app"] = "another"
	portless.Spec.Containers[0].Ports = nil
	metered := pickerPod("metered", "10.0.0.6")
	metered.Spec.Containers[0].Ports = append(metered.Spec.Containers[0].Ports, corev1.ContainerPort{Name: "metrics", ContainerPort: 9090})
	pods := []client.Object{pickerPod("a", "10.0.0.1"), metered, unready, elsewhere, other, portless, local}
	for what, c := range map[string]struct {
		selector map[string]string
		target   intstr.IntOrString
		want     map[string]uint16
	}{
		"a named port":   {map[string]string{"app": "picker"}, intstr.FromString("grpc"), map[string]uint16{"a": 9102, "metered": 9090}},
		"a number":       {map[string]string{"app": "picker"}, intstr.FromInt32(9002), map[string]uint16{"a": 9002, "portless": 9002, "metered": 9090}},
		"another name":   {map[string]string{"app": "picker"}, intstr.FromString("http"), map[string]uint16{"metered": 9090}},
		"no selector":    {nil, intstr.FromInt32(9002), nil},
		"other's labels": {map[string]string{"app": "nobody"}, intstr.FromInt32(9002), nil},
	} {
		service := pickerService()
		service.Spec.Selector, service.Spec.Ports[0].TargetPort = c.selector, c.target
		l, _ := lost(t, append(pods, service)...)
		all, err := l.list(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]uint16
		for _, p := range all {
			if got == nil {
				got = map[string]uint16{}
			}
			got[p.Name.Name] = p.Address.Port()
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	l, _ := lost(t)
	if all, err := l.list(t.Context()); len(all) > 0 || err != nil {
		t.Errorf("without a Service: %v, %v", all, err)
	}
}

// A picker that is withdrawn is no longer ready, and the other conditions stay. A pod that followed it stays ready.
func TestWithdraw(t *testing.T) {
	p := pickerPod("a", "10.0.0.1")
	l, recorder := lost(t, p)
	silent := pickerwatch.Picker{Name: client.ObjectKeyFromObject(p), UID: p.UID, Address: netip.MustParseAddrPort("10.0.0.1:9002")}
	if err := l.withdraw(t.Context(), silent, 1400*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	var got corev1.Pod
	if err := l.client.Get(t.Context(), silent.Name, &got); err != nil {
		t.Fatal(err)
	}
	const why = "the controller had no answer from 10.0.0.1:9002 for 1.4s"
	ready := got.Status.Conditions[1]
	if pool.Serving(&got) || ready.Reason != "PickerUnreachable" || ready.Message != why || got.Status.Conditions[0].Status != corev1.ConditionTrue {
		t.Errorf("its conditions are %+v", got.Status.Conditions)
	}
	if want := "Warning PickerUnreachable " + why + "; calls go on without it until its kubelet says that it is ready"; <-recorder.Events != want {
		t.Errorf("the event is not %q", want)
	}
	var counted dto.Metric
	if err := l.withdrawn.Write(&counted); err != nil || counted.GetCounter().GetValue() != 1 {
		t.Errorf("counted: %v, %v", counted.GetCounter(), err)
	}
	silent.Name.Name = "gone"
	if err := l.withdraw(t.Context(), silent, time.Second); err != nil {
		t.Errorf("a picker that is gone: %v", err)
	}
}
