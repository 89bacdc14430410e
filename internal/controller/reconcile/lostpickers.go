package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/pickerwatch"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/waypointwatch"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// withdrawTimeout is how long the API server may take to write a picker's status.
const withdrawTimeout = 5 * time.Second

// reasonUnreachable is the reason of the condition Ready of a picker that was withdrawn, and of its event.
const reasonUnreachable = "PickerUnreachable"

// lostPickers withdraws pickers of the default picker's Service whose node has vanished. Kubernetes notices such a node
// after some 50 s, and then sets the condition Ready of its pods to False, so that nobody calls them. This does the same
// sooner. The node's kubelet, if it is there after all, sets the condition back.
type lostPickers struct {
	client    client.Client
	events    events.EventRecorder
	picker    translate.ServicePort
	withdrawn prometheus.Counter
}

// list returns the pods of the picker's Service that are ready.
func (l lostPickers) list(ctx context.Context) ([]pickerwatch.Picker, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	var service corev1.Service
	if err := l.client.Get(ctx, l.picker.Service, &service); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading the picker's Service: %w", err)
	}
	if len(service.Spec.Selector) == 0 { // nor does a Service that is not there have one
		return nil, nil
	}
	var pods corev1.PodList
	if err := l.client.List(ctx, &pods, client.InNamespace(service.Namespace), client.UnsafeDisableDeepCopy,
		client.MatchingLabelsSelector{Selector: labels.SelectorFromSet(service.Spec.Selector)}); err != nil {
		return nil, fmt.Errorf("listing the pickers: %w", err)
	}
	var out []pickerwatch.Picker
	for i := range pods.Items {
		p := &pods.Items[i]
		address, runs := podAddress(p)
		port := askedPort(&service, l.picker.Port, p)
		if runs && port != 0 && pool.Serving(p) {
			out = append(out, pickerwatch.Picker{Name: client.ObjectKeyFromObject(p), UID: p.UID, Address: netip.AddrPortFrom(address, port)})
		}
	}
	return out, nil
}

// metricsPort is the name of the port that the picker's NetworkPolicy opens to the whole cluster. To the port of the
// Service it admits only waypoints, by HBONE.
const metricsPort = "metrics"

// askedPort is the port at which a pod is asked: that of its metrics, else the one that the Service's port leads to; 0 if
// there is none.
func askedPort(service *corev1.Service, port int32, p *corev1.Pod) uint16 {
	if number := portNamed(p, metricsPort); number != 0 {
		return number
	}
	for _, s := range service.Spec.Ports {
		switch {
		case s.Port != port:
		case s.TargetPort.StrVal != "":
			return portNamed(p, s.TargetPort.StrVal)
		default:
			return uint16(s.TargetPort.IntVal) //nolint:gosec // the API server admits ports only
		}
	}
	return 0
}

func portNamed(p *corev1.Pod, name string) uint16 {
	for _, c := range p.Spec.Containers {
		for _, own := range c.Ports {
			if own.Name == name {
				return uint16(own.ContainerPort) //nolint:gosec // the API server admits ports only
			}
		}
	}
	return 0
}

// withdraw sets a picker's condition Ready to False.
func (l lostPickers) withdraw(ctx context.Context, p pickerwatch.Picker, silent time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, withdrawTimeout)
	defer cancel()
	why := fmt.Sprintf("the controller had no answer from %s for %s", p.Address, silent.Round(100*time.Millisecond))
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID}, // a pod of the same name may have followed
		"status": corev1.PodStatus{Conditions: []corev1.PodCondition{{
			Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: reasonUnreachable, Message: why, LastTransitionTime: metav1.Now(),
		}}},
	})
	if err != nil {
		return fmt.Errorf("encoding the status of picker %s: %w", p.Name, err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Name.Namespace, Name: p.Name.Name, UID: p.UID}}
	if err := l.client.Status().Patch(ctx, pod, client.RawPatch(types.StrategicMergePatchType, patch)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("withdrawing picker %s, which does not answer: %w", p.Name, err)
	}
	l.withdrawn.Inc()
	l.events.Eventf(pod, nil, corev1.EventTypeWarning, reasonUnreachable, "Withdraw", "%s", note(why+"; calls go on without it until its kubelet says that it is ready"))
	return nil
}

// addLostPickers adds the watch over the default picker's pods. Without waypoints' counters it withdraws a picker only
// if another one answers.
func addLostPickers(m manager.Manager, recorder events.EventRecorder, picker translate.ServicePort, calls *waypointwatch.Watch, interval time.Duration) error {
	l := lostPickers{client: m.GetClient(), events: recorder, picker: picker, withdrawn: pickerwatch.Withdrawn()}
	if err := metrics.Registry.Register(l.withdrawn); err != nil {
		return fmt.Errorf("registering the metric of withdrawn pickers: %w", err)
	}
	witnesses := pickerwatch.Witnesses{List: l.list, Look: func() {}, Unpicked: func(time.Time) bool { return false }}
	if calls != nil {
		witnesses.Look, witnesses.Unpicked = calls.Look, calls.Unpicked
	}
	log := m.GetLogger().WithName("picker-watch")
	last := ""
	watch := pickerwatch.New(witnesses,
		func(ctx context.Context, p pickerwatch.Picker, silent time.Duration) error {
			err := l.withdraw(ctx, p, silent)
			if err == nil {
				log.Info("withdrew a picker whose node does not answer", "picker", p.Name.String(), "silent", silent.String())
			}
			return err
		},
		func(err error) {
			if text := err.Error(); text != last {
				log.Error(err, "watching the pickers")
				last = text
			}
		},
	)
	return m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		watch.Run(ctx, interval)
		return nil
	}))
}
