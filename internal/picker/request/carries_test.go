package request

import "testing"

func TestCarriesPrompt(t *testing.T) {
	tests := map[string]struct {
		method, contentType string
		want                bool
	}{
		"JSON":                      {"POST", "application/json", true},
		"JSON with its charset":     {"POST", "Application/JSON ; charset=utf-8", true},
		"JSON of a kind":            {"POST", "application/vnd.api+json", true},
		"a form":                    {"POST", "multipart/form-data; boundary=x", true},
		"curl's default":            {"POST", "application/x-www-form-urlencoded", true},
		"nothing named":             {"POST", "", true},
		"a method that is unknown":  {"", "application/json", true},
		"gRPC":                      {"POST", "application/grpc", false},
		"gRPC of JSON messages":     {"POST", "application/grpc+json", false},
		"lines of JSON":             {"POST", "application/x-ndjson", false},
		"bytes":                     {"POST", "application/octet-stream", false},
		"audio":                     {"POST", "audio/wav", false},
		"JSON in a parameter alone": {"POST", "application/grpc; of=a/json", false},
		"a WebSocket":               {"GET", "", false},
		"a GET with a body":         {"GET", "application/json", false},
		"DELETE":                    {"DELETE", "", false},
		"PUT":                       {"PUT", "application/json", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := CarriesPrompt(tt.method, tt.contentType); got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
		})
	}
}
