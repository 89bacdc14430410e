package envoypatch

import (
	"fmt"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// grpcLogger is Envoy's access logger that sends entries to a gRPC service.
const grpcLogger = "envoy.access_loggers.http_grpc"

// brokenOffFlags are Envoy's response flags of calls whose answer did not reach its end. DC: the caller closed an HTTP/1.1
// connection. DR: the caller reset an HTTP/2 stream. DPE: the caller broke the protocol. DT, SI, UT, UMSDR: a time limit
// passed. UC, UR, UPE: the endpoint closed, reset or broke the protocol. LR: the waypoint reset the stream. OM: out of
// memory. Envoy's own answers, such as UH and NR, are not here, as no endpoint began an answer.
var brokenOffFlags = []string{"DC", "DR", "DPE", "DT", "SI", "UT", "UMSDR", "UC", "UR", "UPE", "LR", "OM"}

// brokenOff is the access log that reports broken-off calls, and no others, to the picker. The picker cannot tell from its
// ext_proc stream whether an answer was complete. The log is in the chain, so no user's edit may change its address. Envoy
// accepts an address for which it has no cluster, and then sends nothing.
func (p Picker) brokenOff() (*accesslogv3.AccessLog, error) {
	config, err := pack(&grpclogv3.HttpGrpcAccessLogConfig{CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
		LogName:             "broken-off",
		GrpcService:         p.service(),
		TransportApiVersion: corev3.ApiVersion_V3,
		BufferSizeBytes:     wrapperspb.UInt32(0), // send each entry at once
	}})
	if err != nil {
		return nil, fmt.Errorf("access log: %w", err)
	}
	log := &accesslogv3.AccessLog{
		Name: grpcLogger,
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: brokenOffFlags},
		}},
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: config},
	}
	return log, log.ValidateAll()
}
