// Package nothing is an ext_proc server that lets everything pass, built with plain grpc-go and go-control-plane. What
// another server costs more is that server's own cost.
package nothing

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Serve serves ext_proc streams on one listener, and the process's memory metrics at /metrics on the other, until ctx ends.
func Serve(ctx context.Context, streams, metrics net.Listener) error {
	s := grpc.NewServer()
	extprocv3.RegisterExternalProcessorServer(s, server{})
	pages := &http.Server{Handler: promhttp.Handler(), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() {
		s.Stop()
		_ = pages.Close()
	})
	defer stop()
	failed := make(chan error, 1)
	go func() { failed <- pages.Serve(metrics) }()
	if err := s.Serve(streams); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type server struct {
	extprocv3.UnimplementedExternalProcessorServer
}

// Process replies to each message with CONTINUE, or with the received bytes where the proxy leaves bodies to it.
func (server) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	duplex := false
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
			return nil
		}
		if err != nil {
			return err
		}
		if c := m.GetProtocolConfig(); c != nil {
			duplex = c.GetRequestBodyMode() == procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED
		}
		if err := stream.Send(reply(m, duplex)); err != nil {
			return err
		}
	}
}

func reply(m *extprocv3.ProcessingRequest, duplex bool) *extprocv3.ProcessingResponse {
	switch r := m.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}}
	case *extprocv3.ProcessingRequest_RequestBody:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: body(r.RequestBody, duplex)}}
	case *extprocv3.ProcessingRequest_RequestTrailers:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}}
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}
	case *extprocv3.ProcessingRequest_ResponseBody:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: body(r.ResponseBody, duplex)}}
	default:
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}}
	}
}

func body(b *extprocv3.HttpBody, duplex bool) *extprocv3.BodyResponse {
	if !duplex {
		return &extprocv3.BodyResponse{}
	}
	return &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
		Mutation: &extprocv3.BodyMutation_StreamedResponse{StreamedResponse: &extprocv3.StreamedBodyResponse{
			Body: b.GetBody(), EndOfStream: b.GetEndOfStream(),
		}},
	}}}
}
