package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	managerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	typePrefix    = "type.googleapis.com/envoy.config."
	clusterType   = typePrefix + "cluster.v3.Cluster"
	endpointsType = typePrefix + "endpoint.v3.ClusterLoadAssignment"
	listenerType  = typePrefix + "listener.v3.Listener"
	routeType     = typePrefix + "route.v3.RouteConfiguration"

	// pushes is the number of pool changes over which istiod's work is measured.
	pushes = 8
	// sharedApp is the label of the pods that all pools of one waypoint share here.
	sharedApp = "shared"
)

// askIstiod measures istiod's cost for one waypoint with few and with many pools. This program receives the waypoint's
// configuration instead of Envoy, as istiod's only client.
func (w *world) askIstiod(ctx context.Context) error {
	ctx, cancel := limited(ctx, "istiod")
	defer cancel()
	pools := w.waypoints * w.pools
	pod := pools * w.pods
	for i, n := range w.shared {
		namespace := fmt.Sprintf("shared-%d", n)
		if err := w.addWaypoint(ctx, namespace); err != nil {
			return err
		}
		if err := w.awaitWaypoints(ctx, w.waypoints+i+1); err != nil {
			return err
		}
		for range w.pods {
			if err := w.addPod(ctx, namespace, sharedApp, pod); err != nil {
				return err
			}
			pod++
		}
		if err := each(ctx, n, func(ctx context.Context, i int) error { return w.addPool(ctx, namespace, poolName(i), sharedApp) }); err != nil {
			return err
		}
		pools += n
		if err := w.awaitPools(ctx, pools); err != nil {
			return err
		}
		if _, err := w.settle(ctx); err != nil {
			return err
		}
		if err := w.measurePushes(ctx, namespace, n); err != nil {
			return err
		}
		w.say("istiod's pushes to a waypoint with %d pools are measured", n)
	}
	return nil
}

func (w *world) measurePushes(ctx context.Context, namespace string, n int) error {
	istiod, err := w.onePod(ctx, "istio-system", client.MatchingLabels{"app": "istiod"})
	if err != nil {
		return err
	}
	v, err := w.connect(ctx, istiod.Status.PodIP, namespace)
	if err != nil {
		return err
	}
	defer v.close()
	sizes, err := v.load(ctx)
	if err != nil {
		return err
	}
	pid, err := w.ProcessID(istiod.UID)
	if err != nil {
		return err
	}
	before, err := pushTime(ctx, istiod.Status.PodIP)
	if err != nil {
		return err
	}
	cpuBefore, err := cpuOf([]int{pid})
	if err != nil {
		return err
	}
	took, sent, err := w.push(ctx, v, namespace)
	if err != nil {
		return err
	}
	cpuAfter, err := cpuOf([]int{pid})
	if err != nil {
		return err
	}
	after, err := pushTime(ctx, istiod.Status.PodIP)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("istiod, a waypoint with %d pools: ", n)
	w.table.add(what+"listeners + routes", fmt.Sprintf("%s + %s KiB", kib(sizes[listenerType]), kib(sizes[routeType])))
	w.table.add(what+"clusters + endpoints", fmt.Sprintf("%s + %s KiB", kib(sizes[clusterType]), kib(sizes[endpointsType])))
	w.table.add(what+"sent for a change", kib(sent)+" KiB")
	w.table.add(what+"its own time of a push", round((after-before)/pushes).String())
	w.table.add(what+"CPU of a push", round((cpuAfter-cpuBefore)/pushes).String())
	w.table.add(what+"pool's change to waypoint", round(took).String())
	return nil
}

func kib(n int) string { return fmt.Sprintf("%.0f", float64(n)/1024) }

// push changes a pool several times, and waits each time until istiod has sent everything. It returns the median time until
// the last message and the median size in bytes.
func (w *world) push(ctx context.Context, v *view, namespace string) (time.Duration, int, error) {
	filters, err := w.watchFilters(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer filters.Stop()
	var took []time.Duration
	var sizes []int
	for range pushes {
		began := time.Now()
		if _, err := w.changePool(ctx, types.NamespacedName{Namespace: namespace, Name: poolName(0)}, filters); err != nil {
			return 0, 0, err
		}
		first, err := v.next(ctx)
		if err != nil {
			return 0, 0, err
		}
		size, last, err := v.drain(ctx)
		if err != nil {
			return 0, 0, err
		}
		if last.IsZero() {
			last = time.Now()
		}
		took, sizes = append(took, last.Sub(began)), append(sizes, size+sizeOf(first))
	}
	slices.Sort(took)
	slices.Sort(sizes)
	return took[len(took)/2], sizes[len(sizes)/2], nil
}

func (w *world) onePod(ctx context.Context, namespace string, labels client.MatchingLabels) (*corev1.Pod, error) {
	var pods corev1.PodList
	if err := w.Client.List(ctx, &pods, client.InNamespace(namespace), labels); err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	if len(pods.Items) != 1 {
		return nil, fmt.Errorf("%d pods of %v in %s, want 1", len(pods.Items), labels, namespace)
	}
	return &pods.Items[0], nil
}

// pushTime returns the time that istiod has spent on pushes of all types, by its own metrics.
func pushTime(ctx context.Context, istiod string) (time.Duration, error) {
	var seconds float64
	err := eachSample(ctx, http.DefaultClient, "http://"+net.JoinHostPort(istiod, "15014")+"/metrics", func(name string, _ map[string]string, value float64) {
		if name == "pilot_xds_push_time_sum" {
			seconds += value
		}
	})
	return time.Duration(seconds * float64(time.Second)), err
}

// view is a waypoint's connection to istiod.
type view struct {
	conn      *grpc.ClientConn
	stream    discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	responses chan *discoveryv3.DiscoveryResponse
	broken    chan error
	// asked holds, by type, the names of the endpoints and routes that were requested.
	asked map[string][]string
}

func (w *world) connect(ctx context.Context, istiod, namespace string) (*view, error) {
	pod, err := w.onePod(ctx, namespace, client.MatchingLabels{"gateway.networking.k8s.io/gateway-name": waypointName})
	if err != nil {
		return nil, err
	}
	node, err := nodeOf(pod)
	if err != nil {
		return nil, err
	}
	const most = 256 << 20 // bytes of a message
	conn, err := grpc.NewClient(net.JoinHostPort(istiod, "15010"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(most)))
	if err != nil {
		return nil, fmt.Errorf("connecting to istiod: %w", err)
	}
	v := &view{conn: conn, responses: make(chan *discoveryv3.DiscoveryResponse), broken: make(chan error, 1), asked: map[string][]string{}}
	if v.stream, err = discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx); err != nil {
		v.close()
		return nil, fmt.Errorf("connecting to istiod: %w", err)
	}
	go v.receive(ctx)
	for _, kind := range []string{clusterType, listenerType} {
		if err := v.stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: kind}); err != nil {
			v.close()
			return nil, fmt.Errorf("asking istiod: %w", err)
		}
	}
	return v, nil
}

// nodeOf returns the node that Istio's agent would send for a waypoint.
func nodeOf(pod *corev1.Pod) (*corev3.Node, error) {
	labels := map[string]any{}
	for k, v := range pod.Labels {
		labels[k] = v
	}
	metadata, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": pod.Namespace, "SERVICE_ACCOUNT": pod.Spec.ServiceAccountName, "NAME": pod.Name, "LABELS": labels,
		"CLUSTER_ID": "Kubernetes", "ENABLE_HBONE": "true", "ISTIO_VERSION": "1.29.1", "INSTANCE_IPS": pod.Status.PodIP,
	})
	if err != nil {
		return nil, fmt.Errorf("encoding a node's metadata: %w", err)
	}
	return &corev3.Node{
		Id:       fmt.Sprintf("waypoint~%s~%s.%s~%s.svc.cluster.local", pod.Status.PodIP, pod.Name, pod.Namespace, pod.Namespace),
		Metadata: metadata,
	}, nil
}

func (v *view) close() { _ = v.conn.Close() }

func (v *view) receive(ctx context.Context) {
	for {
		response, err := v.stream.Recv()
		if err != nil {
			v.broken <- fmt.Errorf("hearing istiod: %w", err)
			return
		}
		select {
		case v.responses <- response:
		case <-ctx.Done():
			return
		}
	}
}

// next acknowledges a response, and requests the resources that it names: the endpoints of clusters, the routes of
// listeners.
func (v *view) next(ctx context.Context) (*discoveryv3.DiscoveryResponse, error) {
	var r *discoveryv3.DiscoveryResponse
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for istiod: %w", context.Cause(ctx))
	case err := <-v.broken:
		return nil, err
	case r = <-v.responses:
	}
	yes := &discoveryv3.DiscoveryRequest{TypeUrl: r.GetTypeUrl(), VersionInfo: r.GetVersionInfo(), ResponseNonce: r.GetNonce(), ResourceNames: v.asked[r.GetTypeUrl()]}
	if err := v.stream.Send(yes); err != nil {
		return nil, fmt.Errorf("answering istiod: %w", err)
	}
	var (
		kind  string
		names []string
		err   error
	)
	switch r.GetTypeUrl() {
	case clusterType:
		kind = endpointsType
		names, err = endpointNames(r)
	case listenerType:
		kind = routeType
		names, err = routeNames(r)
	}
	if err != nil || len(names) == 0 || slices.Equal(names, v.asked[kind]) {
		return r, err
	}
	v.asked[kind] = names
	if err := v.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: kind, ResourceNames: names}); err != nil {
		return nil, fmt.Errorf("asking istiod: %w", err)
	}
	return r, nil
}

func endpointNames(r *discoveryv3.DiscoveryResponse) ([]string, error) {
	var out []string
	for _, resource := range r.GetResources() {
		c := &clusterv3.Cluster{}
		if err := resource.UnmarshalTo(c); err != nil {
			return nil, fmt.Errorf("reading a cluster: %w", err)
		}
		if c.GetType() == clusterv3.Cluster_EDS {
			out = append(out, cmp.Or(c.GetEdsClusterConfig().GetServiceName(), c.GetName()))
		}
	}
	return distinct(out), nil
}

// routeNames returns the route names in the filter chains of listeners.
func routeNames(r *discoveryv3.DiscoveryResponse) ([]string, error) {
	var out []string
	for _, resource := range r.GetResources() {
		l := &listenerv3.Listener{}
		if err := resource.UnmarshalTo(l); err != nil {
			return nil, fmt.Errorf("reading a listener: %w", err)
		}
		for _, chain := range l.GetFilterChains() {
			for _, f := range chain.GetFilters() {
				manager := &managerv3.HttpConnectionManager{}
				if !f.GetTypedConfig().MessageIs(manager) {
					continue
				}
				if err := f.GetTypedConfig().UnmarshalTo(manager); err != nil {
					return nil, fmt.Errorf("reading a connection manager: %w", err)
				}
				if name := manager.GetRds().GetRouteConfigName(); name != "" {
					out = append(out, name)
				}
			}
		}
	}
	return distinct(out), nil
}

func distinct(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

func sizeOf(r *discoveryv3.DiscoveryResponse) int {
	n := 0
	for _, resource := range r.GetResources() {
		n += len(resource.GetValue())
	}
	return n
}

// load receives the whole configuration and returns the size of each type's resources, in bytes.
func (v *view) load(ctx context.Context) (map[string]int, error) {
	sizes := map[string]int{}
	for sizes[listenerType] == 0 || sizes[clusterType] == 0 || len(sizes) < 2+len(v.asked) {
		r, err := v.next(ctx)
		if err != nil {
			return nil, err
		}
		sizes[r.GetTypeUrl()] = sizeOf(r)
	}
	_, _, err := v.drain(ctx)
	return sizes, err
}

// drain receives what istiod still sends, and returns its size in bytes and the time of the last message. istiod waits for
// 100 ms of quiet before it pushes.
func (v *view) drain(ctx context.Context) (size int, last time.Time, err error) {
	for {
		quiet, cancel := context.WithTimeout(ctx, 400*time.Millisecond)
		r, err := v.next(quiet)
		cancel()
		switch {
		case err == nil:
			size, last = size+sizeOf(r), time.Now()
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			return size, last, nil
		default:
			return size, last, err
		}
	}
}
