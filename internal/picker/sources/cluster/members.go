package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Members are the pods of a Service, ready or not.
type Members struct {
	informer cache.SharedIndexInformer
	synced   cache.InformerSynced
	port     uint16
	changed  chan struct{}
}

// MembersOf watches the pods of a Service. Their addresses get the given port.
func MembersOf(config *rest.Config, service types.NamespacedName, port uint16) (*Members, error) {
	scheme := runtime.NewScheme()
	if err := discoveryv1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("building the scheme: %w", err)
	}
	config = rest.CopyConfig(config)
	config.APIPath = "/apis"
	watch, err := watchOf(config, scheme, discoveryv1.SchemeGroupVersion, "endpointslices", service.Namespace, discoveryv1.LabelServiceName+"="+service.Name)
	if err != nil {
		return nil, err
	}
	return newMembers(watch, port)
}

func newMembers(watch cache.ListerWatcher, port uint16) (*Members, error) {
	m := &Members{
		informer: cache.NewSharedIndexInformer(watch, &discoveryv1.EndpointSlice{}, 0, cache.Indexers{}),
		port:     port,
		changed:  make(chan struct{}, 1),
	}
	registration, err := m.informer.AddEventHandler(signals(m.changed))
	if err != nil {
		return nil, fmt.Errorf("watching EndpointSlices: %w", err)
	}
	m.synced = registration.HasSynced
	return m, nil
}

// signals makes handlers that tell a channel with room for one that something has changed.
func signals(changed chan<- struct{}) cache.ResourceEventHandler {
	change := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { change() }, UpdateFunc: func(any, any) { change() }, DeleteFunc: func(any) { change() },
	}
}

// Run gives update all addresses, at first and whenever they change, until the context ends.
func (m *Members) Run(ctx context.Context, update func([]netip.AddrPort)) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.informer.RunWithContext(ctx)
	}()
	defer func() { <-ended }()
	if !cache.WaitForCacheSync(ctx.Done(), m.synced) {
		return // the context ended first
	}
	for {
		update(m.addresses())
		select {
		case <-ctx.Done():
			return
		case <-m.changed:
		}
	}
}

// addresses lists the addresses of all pods, each once. A pod that has ended is in no slice.
func (m *Members) addresses() []netip.AddrPort {
	var out []netip.AddrPort
	for _, object := range m.informer.GetStore().List() {
		for _, e := range object.(*discoveryv1.EndpointSlice).Endpoints {
			for _, text := range e.Addresses {
				if a, err := netip.ParseAddr(text); err == nil {
					out = append(out, netip.AddrPortFrom(a.Unmap(), m.port))
				}
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}
