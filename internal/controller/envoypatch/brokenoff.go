package envoypatch

import (
	"fmt"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// grpcLogger is Envoy's access log that goes to a service of gRPC.
const grpcLogger = "envoy.access_loggers.http_grpc"

// brokenOffFlags are Envoy's response flags of calls whose answer did not come to its end. A caller who closes a connection
// of HTTP/1.1 is DC, one who resets a stream of HTTP/2 is DR. The others are a caller who breaks the protocol, the time limits
// for a call, for a stream that is idle and for an answer, an endpoint that closes, resets or breaks the protocol, a reset by
// the waypoint itself, and one for want of memory. Envoy's own answers, such as UH and NR, are no answers that began.
var brokenOffFlags = []string{"DC", "DR", "DPE", "DT", "SI", "UT", "UMSDR", "UC", "UR", "UPE", "LR", "OM"}

// brokenOff is the access log that tells the picker of calls that were broken off, and of no others: of ext_proc's stream a
// picker sees the end, which is the same for an answer that ended. Whom it names must not change with what users edit, as it
// stands in the chain. Envoy takes it where it has no such cluster, and then tells nobody.
func (p Picker) brokenOff() (*accesslogv3.AccessLog, error) {
	config, err := pack(&grpclogv3.HttpGrpcAccessLogConfig{CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
		LogName:             "broken-off",
		GrpcService:         p.service(),
		TransportApiVersion: corev3.ApiVersion_V3,
		BufferSizeBytes:     wrapperspb.UInt32(0), // it is told at once
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
