package envoypatch

import (
	"fmt"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	upstreamcodecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// closeAfter is how long a stream outlives a call that broke off. A call that ends is seen to end, and the stream ends
// with it.
const closeAfter = time.Second

// filters are the cluster's own filters, through which its calls go as they are sent and its answers as they come; none
// where they are to be shown to nobody. They are the cluster's, and not a host's, so that they follow the pool wherever
// routes lead to it, and see neither calls that are refused nor answers that a retry replaced before they passed.
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

// answersShownTo sends a copy of each piece of an answer's body and passes the piece on without waiting for anything.
// The other modes of ext_proc hold every piece until it is replied to, and one of them cuts the answer where the service
// ends in the middle of it.
func answersShownTo(p Picker) *extprocv3.ExternalProcessor {
	return &extprocv3.ExternalProcessor{
		GrpcService:       p.service(),
		ObservabilityMode: true,
		// A service that is not there, or breaks off, is no concern of the call's.
		FailureModeAllow: true,
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode: extprocv3.ProcessingMode_SKIP,
			// Nobody uses them, but where they are not shown Envoy 1.40 takes the answer's content-length away.
			ResponseHeaderMode:  extprocv3.ProcessingMode_SEND,
			RequestBodyMode:     extprocv3.ProcessingMode_NONE,
			ResponseBodyMode:    extprocv3.ProcessingMode_STREAMED,
			RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
			ResponseTrailerMode: extprocv3.ProcessingMode_SEND, // the end of an answer that has them
		},
		DeferredCloseTimeout: durationpb.New(closeAfter),
	}
}
