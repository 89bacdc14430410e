package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
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

// reasonUnreachable is the reason of the condition Ready of a picker that was withdrawn, and of its event. reasonReachable
// is the reason of the event when it is restored.
const (
	reasonUnreachable = "PickerUnreachable"
	reasonReachable   = "PickerReachable"
)

// lostPickers withdraws pickers of the default picker's Service whose node has vanished. Kubernetes notices such a node
// after some 50 s, and then sets the condition Ready of its pods to False, so that nobody calls them. This does the same
// sooner. The node's kubelet, if it is there after all, sets the condition back.
type lostPickers struct {
	client    client.Client
	events    events.EventRecorder
	picker    translate.ServicePort
	withdrawn prometheus.Counter
}

// list returns the running pods of the picker's Service.
func (l lostPickers) list(ctx context.Context) ([]pickerwatch.Picker, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	var service corev1.Service
	if err := l.client.Get(ctx, l.picker.Service, &service); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("reading the picker's Service: %w", err)
	}
	// Other Services have no endpoints that the condition Ready decides, nor does one that is not there.
	if len(service.Spec.Selector) == 0 || service.Spec.Type == corev1.ServiceTypeExternalName || service.Spec.PublishNotReadyAddresses {
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
		if !runs || port == 0 {
			continue
		}
		out = append(out, pickerwatch.Picker{
			Name: client.ObjectKeyFromObject(p), UID: p.UID, Node: p.Spec.NodeName, Address: netip.AddrPortFrom(address, port),
			Ready: pool.Serving(p), Withdrawn: slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionFalse && c.Reason == reasonUnreachable
			}),
		})
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
			if own.Name == name && (own.Protocol == corev1.ProtocolTCP || own.Protocol == "") {
				return uint16(own.ContainerPort) //nolint:gosec // the API server admits ports only
			}
		}
	}
	return 0
}

// withdraw sets a picker's condition Ready to False.
func (l lostPickers) withdraw(ctx context.Context, p pickerwatch.Picker, silent time.Duration) error {
	why := fmt.Sprintf("the controller had no answer from %s for %s", p.Address, silent.Round(100*time.Millisecond))
	there, err := l.setReady(ctx, p, corev1.PodCondition{Status: corev1.ConditionFalse, Reason: reasonUnreachable, Message: why})
	if err != nil {
		return fmt.Errorf("withdrawing picker %s, which does not answer: %w", p.Name, err)
	}
	if there {
		l.withdrawn.Inc()
		l.tell(p, corev1.EventTypeWarning, reasonUnreachable, why+"; calls go on without it until it answers again")
	}
	return nil
}

// restore sets a picker's condition Ready back to True. Its kubelet would do so too, within ten seconds.
func (l lostPickers) restore(ctx context.Context, p pickerwatch.Picker) error {
	there, err := l.setReady(ctx, p, corev1.PodCondition{Status: corev1.ConditionTrue})
	if err != nil {
		return fmt.Errorf("restoring picker %s, which answers again: %w", p.Name, err)
	}
	if there {
		l.tell(p, corev1.EventTypeNormal, reasonReachable, "the picker answers the controller again")
	}
	return nil
}

// setReady writes a pod's condition Ready. It reports whether the pod is there.
func (l lostPickers) setReady(ctx context.Context, p pickerwatch.Picker, to corev1.PodCondition) (there bool, err error) {
	to.Type, to.LastTransitionTime = corev1.PodReady, metav1.Now()
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID}, // a pod of the same name may have followed
		"status": map[string]any{"conditions": []map[string]any{{
			"type": to.Type, "status": to.Status, "reason": to.Reason, "message": to.Message, "lastTransitionTime": to.LastTransitionTime,
		}}},
	})
	if err != nil {
		return false, fmt.Errorf("encoding a status: %w", err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Name.Namespace, Name: p.Name.Name}}
	err = l.client.Status().Patch(ctx, pod, client.RawPatch(types.StrategicMergePatchType, patch))
	return err == nil, client.IgnoreNotFound(err)
}

func (l lostPickers) tell(p pickerwatch.Picker, kind, reason, what string) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Name.Namespace, Name: p.Name.Name, UID: p.UID}}
	l.events.Eventf(pod, nil, kind, reason, "Watch", "%s", note(what))
}

// addLostPickers adds the watch over the default picker's pods. Without waypoints' counters it withdraws a picker only
// if another one answers.
func addLostPickers(m manager.Manager, recorder events.EventRecorder, picker translate.ServicePort, calls *waypointwatch.Watch, watch Watches) error {
	l := lostPickers{client: m.GetClient(), events: recorder, picker: picker, withdrawn: pickerwatch.Withdrawn()}
	if err := metrics.Registry.Register(l.withdrawn); err != nil {
		return fmt.Errorf("registering the metric of withdrawn pickers: %w", err)
	}
	log := m.GetLogger().WithName("picker-watch")
	failing := false
	world := pickerwatch.World{
		Node:     watch.Node,
		Leads:    func() bool { return closed(m.Elected()) },
		List:     l.list,
		Look:     func() {},
		Unpicked: func(time.Time) bool { return false },
		Withdraw: func(ctx context.Context, p pickerwatch.Picker, silent time.Duration) error {
			log.Info("withdrawing a picker that does not answer", "picker", p.Name.String(), "node", p.Node, "silent", silent.String())
			return l.withdraw(ctx, p, silent)
		},
		Restore: func(ctx context.Context, p pickerwatch.Picker) error {
			log.Info("restoring a picker that answers again", "picker", p.Name.String())
			return l.restore(ctx, p)
		},
		Failed: func(err error) {
			if err != nil && !failing {
				log.Error(err, "watching the pickers; a lost one stays until this succeeds or Kubernetes notices")
			}
			failing = err != nil
		},
	}
	if calls != nil {
		world.Look, world.Unpicked = calls.Look, calls.Unpicked
	}
	return m.Add(EveryReplica(func(ctx context.Context) error {
		pickerwatch.New(world).Run(ctx, watch.Pickers)
		return nil
	}))
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
