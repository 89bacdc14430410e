package pool

import (
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// Serves says which InferencePools of a cluster a picker serves. Those of other pickers get no state and no metrics, and
// their pods are not read.
type Serves struct {
	// Services are the picker's own. A pool names one by its endpointPickerRef.
	Services []types.NamespacedName
	// Unnamed adds the pools that name no picker.
	Unnamed bool
}

// Includes says whether the picker serves a pool.
func (s Serves) Includes(p Pool) bool {
	if p.Picker == nil {
		return s.Unnamed
	}
	return slices.Contains(s.Services, types.NamespacedName{Namespace: p.Name.Namespace, Name: p.Picker.Service})
}
