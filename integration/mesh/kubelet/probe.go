package kubelet

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
)

const (
	probeWhileDown = 50 * time.Millisecond // between probes of a pod that is not ready
	probeWhileUp   = time.Second           // between probes of a ready pod
	failuresToDown = 3                     // failed probes in a row that make a ready pod unready, by default
)

// probeOf returns the readiness check of a pod. A pod without a probe is ready as soon as its program runs.
func probeOf(p *corev1.Pod, image Image) func(context.Context) error {
	probe := p.Spec.Containers[0].ReadinessProbe
	if image.Ready != nil {
		probe = image.Ready
	}
	timeout := func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, 2*time.Second)
	}
	switch {
	case probe != nil && probe.HTTPGet != nil:
		url := "http://" + net.JoinHostPort(p.Status.PodIP, portOf(p, probe.HTTPGet.Port.String())) + probe.HTTPGet.Path
		check := process.Answers(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, url)
		return func(ctx context.Context) error {
			ctx, cancel := timeout(ctx)
			defer cancel()
			return check(ctx)
		}
	case probe != nil && probe.GRPC != nil:
		return func(ctx context.Context) error {
			ctx, cancel := timeout(ctx)
			defer cancel()
			return checkGRPC(ctx, net.JoinHostPort(p.Status.PodIP, strconv.Itoa(int(probe.GRPC.Port))), probe.GRPC.Service)
		}
	default:
		return func(context.Context) error { return nil }
	}
}

// portOf returns the number of a port, given by its name in a container or by its number.
func portOf(p *corev1.Pod, port string) string {
	for _, c := range p.Spec.Containers[0].Ports {
		if c.Name == port {
			return strconv.Itoa(int(c.ContainerPort))
		}
	}
	return port
}

func checkGRPC(ctx context.Context, address string, service *string) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	request := &grpc_health_v1.HealthCheckRequest{}
	if service != nil {
		request.Service = *service
	}
	response, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, request)
	if err == nil && response.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		err = fmt.Errorf("health is %s", response.GetStatus())
	}
	return err
}
