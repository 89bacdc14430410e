package envoypatch

import (
	"regexp"
	"slices"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
)

// A picker is shown the body of a call that may carry a prompt for it, and of any other call the headers alone, so that
// no call waits for a body that may never end.
func TestBodiesThatAreShown(t *testing.T) {
	const (
		own    = "own" // the front's own mode
		none   = "NONE"
		duplex = "FULL_DUPLEX_STREAMED"
	)
	tests := map[string]struct {
		method, path, contentType string // no content type is none at all
		ours, theirs              string
	}{
		"JSON":                    {"POST", "/v1/completions", "application/json", own, duplex},
		"JSON with its charset":   {"POST", "/v1/completions", "Application/JSON ; charset=utf-8", own, duplex},
		"JSON of a kind":          {"POST", "/v1/completions", "application/vnd.api+json", own, duplex},
		"a form":                  {"POST", "/v1/audio/transcriptions", "multipart/form-data; boundary=x", own, duplex},
		"curl's default":          {"POST", "/v1/completions", "application/x-www-form-urlencoded", own, duplex},
		"nothing named":           {"POST", "/v1/completions", "", own, duplex},
		"a WebSocket":             {"GET", "/v1/realtime", "", none, none},
		"a GET with a body":       {"GET", "/", "application/json", none, none},
		"DELETE":                  {"DELETE", "/v1/responses/1", "", none, none},
		"bytes":                   {"POST", "/v1/completions", "application/octet-stream", none, none},
		"lines of JSON":           {"POST", "/v1/completions", "application/x-ndjson", none, none},
		"JSON in a parameter":     {"POST", "/v1/completions", "text/plain; of=a/json", none, none},
		"Triton's stream":         {"POST", "/inference.GRPCInferenceService/ModelStreamInfer", "application/grpc", none, none},
		"a stream of JSON":        {"POST", "/inference.GRPCInferenceService/ModelStreamInfer", "application/grpc+json", none, none},
		"Triton's single request": {"POST", "/inference.GRPCInferenceService/ModelInfer", "application/grpc", none, duplex},
		"vLLM's gRPC":             {"POST", "/vllm.grpc.engine.VllmEngine/Generate", "application/grpc+proto", none, duplex},
		"SGLang's gRPC":           {"POST", "/sglang.grpc.scheduler.SglangScheduler/Generate", "application/grpc", none, duplex},
		"vLLM's path, not gRPC":   {"POST", "/vllm.grpc.engine.VllmEngine/Generate", "application/octet-stream", none, none},
	}
	ours := Picker{Host: "own", Port: 1}
	theirs := Picker{Host: "other", Port: 2, Protocol: Duplex}
	host, err := VirtualHost{Name: "both", Picker: ours, Routes: []Route{
		{Match: Match{Headers: []ValueMatch{{Name: "to", Value: "ours"}}}, To: []Destination{{Cluster: "a", Weight: 1, Picker: &ours}}},
		{Match: Match{Headers: []ValueMatch{{Name: "to", Value: "theirs"}}}, To: []Destination{{Cluster: "b", Weight: 1, Picker: &theirs}}},
	}}.build(front)
	if err != nil {
		t.Fatal(err)
	}
	routes := host.GetRoutes()
	for name, tt := range tests {
		for to, want := range map[string]string{"ours": tt.ours, "theirs": tt.theirs} {
			t.Run(name+", "+to, func(t *testing.T) {
				headers := map[string]string{":method": tt.method, ":path": tt.path, "to": to}
				if tt.contentType != "" {
					headers["content-type"] = tt.contentType
				}
				i := slices.IndexFunc(routes, func(r *routev3.Route) bool { return takes(r.Match.Headers, headers) })
				if i < 0 {
					t.Fatal("no route takes it")
				}
				got := own
				if packed := routes[i].GetRoute().GetWeightedClusters().Clusters[0].TypedPerFilterConfig[pickerFilter]; packed != nil {
					per := &extprocv3.ExtProcPerRoute{}
					unpack(t, packed, per)
					mode := per.GetOverrides().GetProcessingMode()
					if got = mode.RequestBodyMode.String(); got != mode.ResponseBodyMode.String() {
						t.Errorf("the mode is %v", mode)
					}
				}
				if got != want {
					t.Errorf("its body is shown as %s, want %s", got, want)
				}
			})
		}
	}
}

// takes does as Envoy does with the matchers of a route's headers.
func takes(matchers []*routev3.HeaderMatcher, headers map[string]string) bool {
	for _, m := range matchers {
		value, there := headers[m.Name]
		if !there && !m.TreatMissingHeaderAsEmpty {
			return false
		}
		matches := value == m.GetStringMatch().GetExact()
		if by := m.GetStringMatch().GetSafeRegex(); by != nil {
			matches = regexp.MustCompile("^(?:" + by.Regex + ")$").MatchString(value)
		}
		if matches == m.InvertMatch {
			return false
		}
	}
	return true
}

// The routes of a call that only some methods can make, or that nobody is asked for, are no more than they need be.
func TestPartsOfARoute(t *testing.T) {
	asked, nobody := &Picker{Host: "own", Port: 1}, &Picker{}
	for name, tt := range map[string]struct {
		route Route
		want  int
	}{
		"a pool":               {Route{To: []Destination{{Picker: asked}}}, 2},
		"a pool and a Service": {Route{To: []Destination{{}, {Picker: asked}}}, 2},
		"another's picker":     {Route{To: []Destination{{Picker: &Picker{Host: "other", Port: 1, Protocol: Duplex}}}}, 3},
		"nobody to ask":        {Route{To: []Destination{{Picker: nobody}}}, 1},
		"a Service":            {Route{To: []Destination{{}}}, 1},
		"a status":             {Route{Status: 404}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := len(tt.route.parts()); got != tt.want {
				t.Errorf("%d routes, want %d", got, tt.want)
			}
		})
	}
}
