package pool

import (
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// ParseName reads a pool's name in the form "namespace/name", which gRPC metadata and static files use.
func ParseName(text string) (types.NamespacedName, bool) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: namespace, Name: name}, true
}
