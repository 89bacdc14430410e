package envoypatch

import (
	"regexp"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestRewritePrefix holds the table of the Gateway API's HTTPPathModifier.replacePrefixMatch.
func TestRewritePrefix(t *testing.T) {
	tests := []struct{ path, prefix, with, want string }{
		{"/foo/bar", "/foo", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo", "/xyz/", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz/", "/xyz/bar"},
		{"/foo", "/foo", "/xyz", "/xyz"},
		{"/foo/", "/foo", "/xyz", "/xyz/"},
		{"/foo/bar", "/foo", "", "/bar"},
		{"/foo/", "/foo", "", "/"},
		{"/foo", "/foo", "", "/"},
		{"/foo/", "/foo", "/", "/"},
		{"/foo", "/foo", "/", "/"},
		{"/f.o/bar", "/f.o", "/", "/bar"},
		{"/bar", "/", "/xyz", "/xyz/bar"},
		{"/", "/", "/xyz", "/xyz/"},
		{"/bar", "/", "/", "/bar"},
	}
	for _, tt := range tests {
		t.Run(tt.path+" by "+tt.prefix+" with "+tt.with, func(t *testing.T) {
			route := Route{
				Match:   Match{Path: PathMatch{Value: tt.prefix}},
				To:      []Destination{{Cluster: "c", Weight: 1}},
				Rewrite: Rewrite{Path: PathRewrite{Prefix: &tt.with}},
			}
			built, err := route.build(front, Picker{}, all)
			if err != nil {
				t.Fatal(err)
			}
			if got := rewrite(t, built, tt.path); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// rewrite changes a path as Envoy does for a route that it matches.
func rewrite(t *testing.T, r *routev3.Route, path string) string {
	t.Helper()
	action := r.GetRoute()
	if by := action.GetRegexRewrite(); by != nil {
		with := strings.NewReplacer(`\1`, `${1}`).Replace(by.Substitution)
		return regexp.MustCompile(by.Pattern.Regex).ReplaceAllString(path, with)
	}
	prefix := r.GetMatch().GetPrefix() + r.GetMatch().GetPathSeparatedPrefix()
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		t.Fatalf("the route does not match %s", path)
	}
	return action.PrefixRewrite + rest
}

func TestCheck(t *testing.T) {
	to := []Destination{{Cluster: "c", Weight: 1}}
	tests := map[string]struct {
		route Route
		want  string // in the error; empty for none
	}{
		"plain":                     {Route{To: to}, ""},
		"a status":                  {Route{Status: 404}, ""},
		"per cent in a header":      {Route{To: to, Response: HeaderChanges{Set: []Header{{"x-a", "100%"}}}}, ""},
		"path expression":           {Route{To: to, Match: Match{Path: PathMatch{PathRegex, "/("}}}, "regular expression"},
		"empty path expression":     {Route{To: to, Match: Match{Path: PathMatch{PathRegex, ""}}}, "validating"},
		"header expression":         {Route{To: to, Match: Match{Headers: []ValueMatch{{"a", "[", true}}}}, "regular expression"},
		"query expression":          {Route{To: to, Match: Match{Query: []ValueMatch{{"a", "[", true}}}}, "regular expression"},
		"malformed prefix":          {Route{To: to, Match: Match{Path: PathMatch{Value: "/a?b"}}}, "validating"},
		"host header set":           {Route{To: to, Request: HeaderChanges{Set: []Header{{"HOST", "a"}}}}, "cannot be changed"},
		"pseudo header removed":     {Route{To: to, Request: HeaderChanges{Remove: []string{":path"}}}, "cannot be changed"},
		"host header of a backend":  {Route{To: []Destination{{Cluster: "c", Weight: 1, Request: HeaderChanges{Add: []Header{{"Host", "a"}}}}}}, "cannot be changed"},
		"line break in a header":    {Route{To: to, Request: HeaderChanges{Set: []Header{{"a", "b\nc"}}}}, "validating"},
		"neither action nor status": {Route{}, "validating"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := tt.route.Check()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// TestPickerOverride checks which picker a waypoint asks about a call, by the overrides of a route or its destination.
func TestPickerOverride(t *testing.T) {
	own := Picker{Host: "own", Port: 1, Metadata: map[string]string{"pool": "a"}}
	same, other := own, Picker{Host: "other", Port: 2, Protocol: Duplex, FailOpen: true}
	other.Metadata = map[string]string{"pool": "b"}
	three := Route{To: []Destination{
		{Cluster: "a", Weight: 1, Picker: &same}, {Cluster: "b", Weight: 1, Picker: &other}, {Weight: 1},
	}}
	tests := map[string]struct {
		route Route
		part  calls
		want  []string // of each destination, or of the route; "" for the front's own
	}{
		"the front's own":                {Route{To: []Destination{{Cluster: "a", Weight: 1, Picker: &same}}}, all, []string{""}},
		"three ways":                     {three, all, []string{"", "outbound|2||other pool=b open=true FULL_DUPLEX_STREAMED", "nobody"}},
		"three ways, short prompts":      {three, short, []string{"", "outbound|2||other pool=b open=true FULL_DUPLEX_STREAMED", "nobody"}},
		"three ways, prompts":            {three, prompts, []string{" FULL_DUPLEX_STREAMED", "outbound|2||other pool=b open=true FULL_DUPLEX_STREAMED", "nobody"}},
		"three ways, one message":        {three, messages, []string{" NONE", "outbound|2||other pool=b open=true FULL_DUPLEX_STREAMED", "nobody"}},
		"three ways, what may never end": {three, others, []string{" NONE", "outbound|2||other pool=b open=true NONE", "nobody"}},
		"a redirect":                     {Route{Redirect: &Redirect{}}, all, []string{"nobody"}},
		"a status":                       {Route{Status: 404}, all, []string{"nobody"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			built, err := tt.route.build(front, own, tt.part)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range built.GetRoute().GetWeightedClusters().GetClusters() {
				got = append(got, asked(t, c.TypedPerFilterConfig[pickerFilter]))
			}
			if got == nil {
				got = append(got, asked(t, built.TypedPerFilterConfig[pickerFilter]))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

func asked(t *testing.T, packed *anypb.Any) string {
	t.Helper()
	if packed == nil {
		return ""
	}
	per := &extprocv3.ExtProcPerRoute{}
	unpack(t, packed, per)
	if per.GetDisabled() {
		return "nobody"
	}
	o := per.GetOverrides()
	out := o.GetGrpcService().GetEnvoyGrpc().GetClusterName()
	for _, m := range o.GetGrpcService().GetInitialMetadata() {
		out += " " + m.Key + "=" + m.Value
	}
	if o.GetFailureModeAllow().GetValue() {
		out += " open=true"
	}
	return out + " " + o.GetProcessingMode().GetRequestBodyMode().String()
}

func TestRetry(t *testing.T) {
	built, err := Route{
		To: []Destination{{Cluster: "c", Weight: 1}}, Timeout: time.Minute, TryTimeout: time.Second,
		Retry: &Retry{Attempts: 5, Codes: []uint32{503}, Backoff: time.Millisecond},
	}.build(front, Picker{}, all)
	if err != nil {
		t.Fatal(err)
	}
	action, policy := built.GetRoute(), built.GetRoute().GetRetryPolicy()
	if got := action.GetTimeout().AsDuration(); got != time.Minute {
		t.Errorf("timeout %s", got)
	}
	if got := policy.GetPerTryTimeout().AsDuration(); got != time.Second {
		t.Errorf("timeout of a try %s", got)
	}
	if policy.GetNumRetries().GetValue() != 5 || !strings.HasSuffix(policy.RetryOn, ",retriable-status-codes") || len(policy.RetriableStatusCodes) != 1 {
		t.Errorf("retries %v", policy)
	}
	if len(policy.RetryHostPredicate) != 1 {
		t.Error("a retry may go to the endpoint that failed")
	}
}

// TestNamesServed checks that other projects' pickers get the endpoint that served as ip:port. Answers pass the virtual host
// first and then the chain's filters, from the last to the first.
func TestNamesServed(t *testing.T) {
	for name, tt := range map[string]struct {
		host VirtualHost
		want bool
	}{
		"our picker":                    {VirtualHost{Name: "pool", Picker: Picker{Host: "h", Port: 1}}, false},
		"another's":                     {VirtualHost{Name: "pool", Picker: Picker{Host: "h", Port: 1, Protocol: Duplex}}, true},
		"another's of a pool beside it": {VirtualHost{Name: "pool", Routes: []Route{{To: []Destination{{Cluster: "c", Weight: 1, Picker: &Picker{Protocol: Duplex}}}}}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			built, err := tt.host.build(front)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{servedKey}, built.ResponseHeadersToRemove); diff != "" {
				t.Errorf("what an endpoint says of who served is believed (-want +got):\n%s", diff)
			}
			if got := len(built.ResponseHeadersToAdd) == 1; got != tt.want {
				t.Errorf("the endpoint that served is named: %t, want %t", got, tt.want)
			}
		})
	}
	rule := endpointsToMetadata().ResponseRules[0]
	by := rule.GetOnHeaderPresent().GetRegexValueRewrite()
	if got := regexp.MustCompile(by.Pattern.Regex).ReplaceAllString("envoy://connect_originate/10.0.0.1:8000", by.Substitution); got != "10.0.0.1:8000" {
		t.Errorf("served endpoint %s", got)
	}
	if !rule.Remove {
		t.Error("the header reaches the caller")
	}
}
