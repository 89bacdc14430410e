// Package machine drives the mesh's controllers and kubelet: at each event it lists the cluster's objects and lets both act
// on them. It decides nothing itself.
package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/controllers"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/kubelet"
)

// Machine runs controllers and a kubelet. It is level-triggered: any event makes it list everything again, which is cheap
// at a test's size.
type Machine struct {
	client      client.WithWatch
	controllers *controllers.Controllers
	kubelet     *kubelet.Kubelet
	log         *slog.Logger

	kick chan struct{}
	wait sync.WaitGroup
}

// New makes a machine that has not listed anything yet.
func New(c client.WithWatch, k *kubelet.Kubelet, log *slog.Logger) *Machine {
	return &Machine{client: c, controllers: controllers.New(c, k.Runs), kubelet: k, log: log, kick: make(chan struct{}, 1)}
}

// Run works until ctx ends. It then stops all pods, model servers and waypoints before the parts that they depend on.
func (m *Machine) Run(ctx context.Context) error {
	defer m.stop()
	watches := []client.ObjectList{
		&appsv1.DeploymentList{}, &corev1.PodList{}, &corev1.ServiceList{}, &corev1.NamespaceList{}, &gatewayv1.GatewayList{},
	}
	for _, list := range watches {
		w, err := m.client.Watch(ctx, list)
		if err != nil {
			return fmt.Errorf("watching %T: %w", list, err)
		}
		defer w.Stop()
		m.wait.Go(func() { m.forward(ctx, w) })
	}
	for {
		if err := m.sync(ctx); err != nil && ctx.Err() == nil {
			// A conflict with another writer is normal; the next sync resolves it.
			if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
				m.log.Error("looking after the machine", "error", err)
			}
			m.again()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.kick:
		}
	}
}

func (m *Machine) stop() {
	m.kubelet.StopAll()
	m.wait.Wait()
}

func (m *Machine) forward(ctx context.Context, w watch.Interface) {
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-w.ResultChan():
			if !open {
				return
			}
			m.again()
		}
	}
}

func (m *Machine) again() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}

// sync acts on one State.
func (m *Machine) sync(ctx context.Context) error {
	s, err := m.controllers.Look(ctx)
	if err != nil {
		return err
	}
	return errors.Join(
		m.controllers.CollectGarbage(ctx, s),
		m.controllers.ServiceAccounts(ctx, s),
		m.controllers.Deployments(ctx, s),
		m.kubelet.Sync(ctx, s.Pods, s.Namespaces),
		m.controllers.EndpointSlices(ctx, s),
	)
}
