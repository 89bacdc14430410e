package pool

import (
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// Serves says which InferencePools of a cluster a picker serves. The picker keeps no state and no metrics of other pools,
// and does not read their pods.
type Serves struct {
	// Services are the picker's own Services. A pool names one of them in its endpointPickerRef.
	Services []types.NamespacedName
	// Unnamed says that the picker also serves pools that name no picker.
	Unnamed bool
}

// Includes says whether the picker serves a pool.
func (s Serves) Includes(p Pool) bool {
	if p.Picker == nil {
		return s.Unnamed
	}
	return slices.Contains(s.Services, types.NamespacedName{Namespace: p.Name.Namespace, Name: p.Picker.Service})
}
