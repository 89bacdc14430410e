package pool

import (
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// ParseName reads a pool's name as "namespace/name", the form in which streams and files give it.
func ParseName(text string) (types.NamespacedName, bool) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: namespace, Name: name}, true
}
