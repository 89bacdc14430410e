package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
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
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/pickerwatch"
)

// pickerPod is a ready pod of the picker's Service.
func pickerPod(name, address string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "inference-system", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "picker"}},
		Spec:       corev1.PodSpec{NodeName: "node-" + name, Containers: []corev1.Container{{Name: "picker", Ports: []corev1.ContainerPort{{Name: "grpc", ContainerPort: 9102}}}}},
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

// Watched are the running pods that the picker's Service selects, at the port of their metrics or the port that it leads to.
func TestPickersThatAreWatched(t *testing.T) {
	changed := func(name, address string, change func(*corev1.Pod)) *corev1.Pod {
		p := pickerPod(name, address)
		change(p)
		return p
	}
	pods := []client.Object{
		pickerPod("a", "10.0.0.1"),
		changed("unready", "10.0.0.2", func(p *corev1.Pod) { p.Status.Conditions[1].Status = corev1.ConditionFalse }),
		changed("withdrawn", "10.0.0.3", func(p *corev1.Pod) {
			p.Status.Conditions[1].Status, p.Status.Conditions[1].Reason = corev1.ConditionFalse, reasonUnreachable
		}),
		changed("metered", "10.0.0.4", func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{Name: "metrics", ContainerPort: 9090})
		}),
		changed("datagrams", "10.0.0.5", func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{Name: "metrics", ContainerPort: 9090, Protocol: corev1.ProtocolUDP})
		}),
		changed("portless", "10.0.0.6", func(p *corev1.Pod) { p.Spec.Containers[0].Ports = nil }),
		changed("elsewhere", "10.0.0.7", func(p *corev1.Pod) { p.Namespace = "models" }),
		changed("other", "10.0.0.8", func(p *corev1.Pod) { p.Labels["app"] = "another" }),
		changed("ended", "10.0.0.9", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }),
		pickerPod("local", "127.0.0.1"),
	}
	named := map[string]string{"a": "10.0.0.1:9102 true false", "unready": "10.0.0.2:9102 false false", "withdrawn": "10.0.0.3:9102 false true", "metered": "10.0.0.4:9090 true false", "datagrams": "10.0.0.5:9102 true false"}
	for what, c := range map[string]struct {
		change func(*corev1.Service)
		want   map[string]string
	}{
		"a named port": {func(*corev1.Service) {}, named},
		"a number": {func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromInt32(9002) }, map[string]string{
			"a": "10.0.0.1:9002 true false", "unready": "10.0.0.2:9002 false false", "withdrawn": "10.0.0.3:9002 false true", "metered": "10.0.0.4:9090 true false",
			"datagrams": "10.0.0.5:9002 true false", "portless": "10.0.0.6:9002 true false",
		}},
		"another name":             {func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("http") }, map[string]string{"metered": "10.0.0.4:9090 true false"}},
		"no selector":              {func(s *corev1.Service) { s.Spec.Selector = nil }, nil},
		"labels of nobody":         {func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "nobody"} }, nil},
		"a name outside":           {func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, nil},
		"addresses of all pods":    {func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }, nil},
		"a port of another number": {func(s *corev1.Service) { s.Spec.Ports[0].Port = 9003 }, map[string]string{"metered": "10.0.0.4:9090 true false"}},
	} {
		service := pickerService()
		service.Spec.Selector, service.Spec.Ports[0].TargetPort = map[string]string{"app": "picker"}, intstr.FromString("grpc")
		c.change(service)
		l, _ := lost(t, append(pods, service)...)
		all, err := l.list(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]string
		for _, p := range all {
			if got == nil {
				got = map[string]string{}
			}
			got[p.Name.Name] = fmt.Sprintf("%s %t %t", p.Address, p.Ready, p.Withdrawn)
			if p.Node != "node-"+p.Name.Name {
				t.Errorf("%s: %s is on node %q", what, p.Name, p.Node)
			}
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

// A picker that is withdrawn is no longer ready, and the other conditions stay. When it is restored it is as before.
func TestWithdrawAndRestore(t *testing.T) {
	p := pickerPod("a", "10.0.0.1")
	l, recorder := lost(t, p)
	silent := pickerwatch.Picker{Name: client.ObjectKeyFromObject(p), UID: p.UID, Address: netip.MustParseAddrPort("10.0.0.1:9002")}
	ready := func() corev1.PodCondition {
		t.Helper()
		var got corev1.Pod
		if err := l.client.Get(t.Context(), silent.Name, &got); err != nil {
			t.Fatal(err)
		}
		if got.Status.Conditions[0].Status != corev1.ConditionTrue || len(got.Status.Conditions) != 2 {
			t.Errorf("the conditions are %+v", got.Status.Conditions)
		}
		return got.Status.Conditions[1]
	}
	const why = "the controller had no answer from 10.0.0.1:9002 for 1.4s"
	if err := l.withdraw(t.Context(), silent, 1400*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if got := ready(); got.Status != corev1.ConditionFalse || got.Reason != "PickerUnreachable" || got.Message != why {
		t.Errorf("withdrawn, it is %+v", got)
	}
	if want := "Warning PickerUnreachable " + why + "; calls go on without it until it answers again"; <-recorder.Events != want {
		t.Errorf("the event is not %q", want)
	}
	if err := l.restore(t.Context(), silent); err != nil {
		t.Fatal(err)
	}
	if got := ready(); got.Status != corev1.ConditionTrue || got.Reason != "" || got.Message != "" {
		t.Errorf("restored, it is %+v", got)
	}
	if want := "Normal PickerReachable the picker answers the controller again"; <-recorder.Events != want {
		t.Errorf("the event is not %q", want)
	}
	silent.Name.Name = "gone"
	if err := errors.Join(l.withdraw(t.Context(), silent, time.Second), l.restore(t.Context(), silent)); err != nil {
		t.Errorf("a picker that is gone: %v", err)
	}
	var counted dto.Metric
	if err := l.withdrawn.Write(&counted); err != nil || counted.GetCounter().GetValue() != 1 || len(recorder.Events) > 0 {
		t.Errorf("counted: %v, %v, %d events more", counted.GetCounter(), err, len(recorder.Events))
	}
}

// The patch is for the picker that was silent, and for no pod that followed it.
func TestWithdrawNamesThePod(t *testing.T) {
	inner, _ := newClient(t, pickerPod("a", "10.0.0.1"))
	var sent []byte
	c := interceptor.NewClient(inner.(client.WithWatch), interceptor.Funcs{
		SubResourcePatch: func(_ context.Context, _ client.Client, _ string, o client.Object, patch client.Patch, _ ...client.SubResourcePatchOption) (err error) {
			sent, err = patch.Data(o)
			return err
		},
	})
	l := lostPickers{client: c, events: events.NewFakeRecorder(4), picker: *settings().DefaultPicker, withdrawn: pickerwatch.Withdrawn()}
	p := pickerwatch.Picker{Name: types.NamespacedName{Namespace: "inference-system", Name: "a"}, UID: "the-old-one"}
	if err := l.withdraw(t.Context(), p, time.Second); err != nil {
		t.Fatal(err)
	}
	if want := `"metadata":{"uid":"the-old-one"}`; !strings.Contains(string(sent), want) {
		t.Errorf("%s lacks %s", sent, want)
	}
}
