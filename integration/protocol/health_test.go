package protocol

import (
	"context"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

const extprocService = "envoy.service.ext_proc.v3.ExternalProcessor"

// healthServices are the services of the protocol, and gRPC's name for the whole server.
var healthServices = []string{"liveness", "readiness", extprocService, ""}

func TestHealth(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, server := range []string{"health", "extproc"} {
		client := healthv1.NewHealthClient(the.pickers["main"].dial(t, server))
		for _, service := range healthServices {
			t.Run("implement health checking: "+service+" on "+server, func(t *testing.T) {
				r, err := client.Check(ctx, &healthv1.HealthCheckRequest{Service: service})
				if err != nil || r.GetStatus() != healthv1.HealthCheckResponse_SERVING {
					t.Errorf("the health is %v, %v", r, err)
				}
			})
		}
		t.Run("a service that is unknown on "+server, func(t *testing.T) {
			if _, err := client.Check(ctx, &healthv1.HealthCheckRequest{Service: "nonsense"}); status.Code(err) != codes.NotFound {
				t.Errorf("the answer is %v, want NotFound", err)
			}
		})
	}
}

// Envoy's health checks find the picker healthy. Otherwise this door would not ask the picker.
func TestEnvoyChecksHealth(t *testing.T) {
	checkDestination(t, served(t, "checked", ask("health")))
}

// A person finds the picker's gRPC services and their messages by reflection.
func TestReflection(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := reflectionv1.NewServerReflectionClient(the.pickers["main"].dial(t, "extproc")).ServerReflectionInfo(ctx)
	must(t, err)
	must(t, stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}))
	r, err := stream.Recv()
	must(t, err)
	var names []string
	for _, s := range r.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	for _, want := range []string{extprocService, "grpc.health.v1.Health"} {
		if !slices.Contains(names, want) {
			t.Errorf("the services are %v, without %s", names, want)
		}
	}
	must(t, stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{
		FileContainingSymbol: extprocService,
	}}))
	r, err = stream.Recv()
	must(t, err)
	files := r.GetFileDescriptorResponse().GetFileDescriptorProto()
	if len(files) == 0 {
		t.Fatalf("no file describes the service: %v", r)
	}
	var file descriptorpb.FileDescriptorProto
	must(t, proto.Unmarshal(files[0], &file))
	if len(file.GetService()) != 1 || file.GetService()[0].GetMethod()[0].GetName() != "Process" {
		t.Errorf("the file describes %v", file.GetService())
	}
}
