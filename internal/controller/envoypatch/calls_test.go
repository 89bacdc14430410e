package envoypatch

import (
	"regexp"
	"slices"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
)

// A picker gets the body of a call that may carry a prompt, and only the headers of any other call. So no call waits for a
// body that may never end.
func TestBodiesThatAreShown(t *testing.T) {
	const (
		own    = "own" // the front's own mode
		none   = "NONE"
		duplex = "FULL_DUPLEX_STREAMED"
		// streamed is a request's body that goes through our picker, and an answer's that does not.
		streamed = duplex + " and " + none
	)
	tests := map[string]struct {
		method, path, contentType string // no content type is none at all
		ours, theirs              string // of a body whose length is not known
	}{
		"JSON":                    {"POST", "/v1/completions", "application/json", streamed, duplex},
		"JSON with its charset":   {"POST", "/v1/completions", "Application/JSON ; charset=utf-8", streamed, duplex},
		"JSON of a kind":          {"POST", "/v1/completions", "application/vnd.api+json", streamed, duplex},
		"a form":                  {"POST", "/v1/audio/transcriptions", "multipart/form-data; boundary=x", streamed, duplex},
		"curl's default":          {"POST", "/v1/completions", "application/x-www-form-urlencoded", streamed, duplex},
		"nothing named":           {"POST", "/v1/completions", "", streamed, duplex},
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
		short := tt.ours
		if short == streamed || tt.contentType == "application/grpc+json" { // what has a length is no stream
			short = own
		}
		for _, of := range []struct{ to, length, want string }{
			{"ours", "", tt.ours}, {"ours", "1000000", tt.ours}, {"ours", "999999", short}, {"ours", "0", short},
			{"theirs", "", tt.theirs}, {"theirs", "1000000", tt.theirs},
		} {
			to, want := of.to, of.want
			t.Run(name+", "+to+" "+of.length, func(t *testing.T) {
				headers := map[string]string{":method": tt.method, ":path": tt.path, "to": to}
				if tt.contentType != "" {
					headers["content-type"] = tt.contentType
				}
				if of.length != "" {
					headers["content-length"] = of.length
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
						got += " and " + mode.ResponseBodyMode.String()
					}
				}
				if got != want {
					t.Errorf("its body is shown as %s, want %s", got, want)
				}
			})
		}
	}
}

// takes matches a route's headers as Envoy does.
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

// A route that matches only some methods, or that asks no picker, is not divided into more parts than it needs.
func TestPartsOfARoute(t *testing.T) {
	asked, nobody := &Picker{Host: "own", Port: 1}, &Picker{}
	for name, tt := range map[string]struct {
		route Route
		want  int
	}{
		"a pool":               {Route{To: []Destination{{Picker: asked}}}, 3},
		"a pool and a Service": {Route{To: []Destination{{}, {Picker: asked}}}, 3},
		"another's picker":     {Route{To: []Destination{{Picker: &Picker{Host: "other", Port: 1, Protocol: Duplex}}}}, 3},
		"ours and another's":   {Route{To: []Destination{{Picker: asked}, {Picker: &Picker{Host: "other", Port: 1, Protocol: Duplex}}}}, 4},
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
