package request

import "strings"

// CarriesPrompt reports whether a request with this method and content type may carry a prompt that Read understands,
// so that the pick should wait for its body: a POST of JSON, of a form, or without a content type. Any other body may
// never end, such as a gRPC stream or WebSocket messages, and holds nothing for a pick. An empty method stands for an
// unknown one.
func CarriesPrompt(method, contentType string) bool {
	if method != "POST" && method != "" {
		return false
	}
	mediaType, _, _ := strings.Cut(contentType, ";")
	switch mediaType = strings.ToLower(strings.TrimSpace(mediaType)); {
	case mediaType == "", mediaType == "multipart/form-data", mediaType == "application/x-www-form-urlencoded":
		return true
	case strings.HasPrefix(mediaType, "application/grpc"): // with JSON in its messages, too
		return false
	default:
		return strings.HasSuffix(mediaType, "/json") || strings.HasSuffix(mediaType, "+json")
	}
}
