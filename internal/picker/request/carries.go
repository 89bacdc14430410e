package request

import "strings"

// CarriesPrompt reports whether a request of a method and a content type may carry a prompt that Read understands, so
// that its body is worth waiting for: a POST of JSON, of a form or of nothing that it names. Any other body, a stream
// of gRPC or the messages of a WebSocket among them, may never end, and there is nothing in it for a pick. An empty
// method is one that is not known.
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
