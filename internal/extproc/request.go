package extproc

import (
	"context"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/inference-waypoint/inference-waypoint/internal/fleet"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// poolHeader is the name of the pool as the stream's opener gave it, or "".
func poolHeader(ctx context.Context) string {
	if values := metadata.ValueFromIncomingContext(ctx, pool.NameHeader); len(values) > 0 {
		return values[0]
	}
	return ""
}

// header finds a header's value. Proxies put it into the bytes or, older ones, into the text.
func header(h *corev3.HeaderMap, key string) string {
	for _, v := range h.GetHeaders() {
		if v.GetKey() != key {
			continue
		}
		if len(v.GetRawValue()) > 0 {
			return string(v.GetRawValue())
		}
		return v.GetValue()
	}
	return ""
}

// readSubset reads the proxy's restriction into s: a list of texts, or one text with commas.
func readSubset(m *corev3.Metadata, s *fleet.Subset) {
	hint, ok := m.GetFilterMetadata()[subsetNamespace].GetFields()[subsetKey]
	if !ok {
		return
	}
	s.Given = true
	switch kind := hint.GetKind().(type) {
	case *structpb.Value_ListValue:
		for _, v := range kind.ListValue.GetValues() {
			s.Add(v.GetStringValue())
		}
	case *structpb.Value_StringValue:
		for text := range strings.SplitSeq(kind.StringValue, ",") {
			s.Add(text)
		}
	}
}

// served finds the name of the endpoint that answered: in the metadata, where the protocol has it, or else among the
// attributes, where a proxy is set to send it so. It is "" where neither is there.
func served(m *extprocv3.ProcessingRequest) string {
	if v := m.GetMetadataContext().GetFilterMetadata()[lbNamespace].GetFields()[servedKey]; v != nil {
		return v.GetStringValue()
	}
	for _, attributes := range m.GetAttributes() {
		for _, key := range [...]string{servedKey, "upstream.address"} {
			if v := attributes.GetFields()[key]; v != nil {
				return v.GetStringValue()
			}
		}
	}
	return ""
}
