package envoypatch

import (
	"strings"
	"testing"
)

// TestCheckRegex has a real Envoy compile the accepted expressions too. Envoy also refuses the refused expressions, or they
// are near its limit.
func TestCheckRegex(t *testing.T) {
	const gaps = `[acegikmoqsuwyACEGIKMOQSUWY02468]`
	tests := map[string]struct {
		value   string
		want    string // in the error; empty: none
		refused bool   // by Envoy
	}{
		"a version":                             {`/v[0-9]+(\.[0-9]+)*/.*`, "", false},
		"any characters":                        {`/.{1,900}`, "", false},
		"letters":                               {`/\pL+/\p{Greek}*`, "", false},
		"many alternatives":                     {strings.Repeat("/models/llama|", 500) + "/", "", false},
		"letters by Go's name":                  {`/\p{Letter}`, "does not know", true},
		"a character by its number":             {`/\x{100}`, "does not know", true},
		"no character by a number":              {`/\\x{100}`, "", false},
		"a byte by its number":                  {`/\x{e9}`, "", false},
		"not an expression":                     {`/(`, "missing closing", true},
		"repeated too often":                    {strings.Repeat(`.{1000}`, 20), "steps", true},
		"usual ones":                            {`^/v1/(models|engines|deployments)/[a-z0-9-]{1,63}/(chat|embed)[^/]*$`, "", false},
		"two merged classes":                    {`/([^\pL]|\pL){50}`, "", false},
		"characters of several bytes, repeated": {strings.Repeat(`[世界人民大学生活水火山石田土木日月金]{1000}`, 3), "steps", true},
		"a class with gaps, repeated":           {`/(` + gaps + `{1000})(` + gaps + `{1000})`, "steps", true},
		"merged classes, repeated":              {strings.Repeat(`(?:\PL|\PL|\pL){1000}`, 3), "steps", true},
		"letters, repeated":                     {strings.Repeat(`\pL{1000}`, 5), "steps", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := checkRegex(tt.value)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			chain := map[string]any{"filters": []any{map[string]any{
				"name": "envoy.filters.network.http_connection_manager",
				"typed_config": map[string]any{
					"@type":        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
					"stat_prefix":  "golden",
					"route_config": map[string]any{"virtual_hosts": []any{hostOf(tt.value)}},
					"http_filters": []any{map[string]any{
						"name":         "envoy.filters.http.router",
						"typed_config": map[string]any{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
					}},
				},
			}}}
			if err := validate(t, nil, []any{chain}); (err != nil) != tt.refused {
				t.Errorf("Envoy: %v, want it refused: %t", err, tt.refused)
			}
		})
	}
}

// hostOf is a virtual host with a route whose path is an expression.
func hostOf(expression string) map[string]any {
	return map[string]any{"name": "golden", "domains": []any{"*"}, "routes": []any{map[string]any{
		"match":           map[string]any{"safe_regex": map[string]any{"regex": expression}},
		"direct_response": map[string]any{"status": 200},
	}}}
}
