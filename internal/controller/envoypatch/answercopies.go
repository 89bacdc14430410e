package envoypatch

import (
	"fmt"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	upstreamcodecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// closeAfter is how long a stream to the picker stays open after its call broke off. When a call ends normally, the stream
// ends with it.
const closeAfter = time.Second

// filters are the cluster's own HTTP filters, through which its calls and answers pass; none where no service gets copies
// of the answers. They belong to the cluster and not to a host. So they apply wherever routes lead to the pool, and see
// neither refused calls nor answers that a retry has replaced.
func (c Cluster) filters() ([]*hcmv3.HttpFilter, error) {
	if c.ShownTo == nil {
		return nil, nil
	}
	var out []*hcmv3.HttpFilter
	for _, f := range []struct {
		name   string
		config message
	}{
		{shownFilter, answersShownTo(*c.ShownTo)},
		{"envoy.filters.http.upstream_codec", &upstreamcodecv3.UpstreamCodec{}}, // the last one, as the router is elsewhere
	} {
		config, err := pack(f.config)
		if err != nil {
			return nil, fmt.Errorf("filter %s: %w", f.name, err)
		}
		out = append(out, &hcmv3.HttpFilter{Name: f.name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}})
	}
	return out, nil
}

// answersShownTo sends a copy of each piece of an answer's body to the picker and passes the piece on without waiting.
// The other modes of ext_proc hold every piece until the service replies, and one of them cuts the answer if the service
// stops in the middle of it.
func answersShownTo(p Picker) *extprocv3.ExternalProcessor {
	return &extprocv3.ExternalProcessor{
		GrpcService:       p.service(),
		ObservabilityMode: true,
		// A service that is missing or fails does not affect the call.
		FailureModeAllow: true,
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode: extprocv3.ProcessingMode_SKIP,
			// The picker does not use these headers, but without SEND Envoy 1.40 removes the answer's content-length.
			ResponseHeaderMode:  extprocv3.ProcessingMode_SEND,
			RequestBodyMode:     extprocv3.ProcessingMode_NONE,
			ResponseBodyMode:    extprocv3.ProcessingMode_STREAMED,
			RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
			ResponseTrailerMode: extprocv3.ProcessingMode_SEND, // the end of an answer that has them
		},
		DeferredCloseTimeout: durationpb.New(closeAfter),
	}
}
