package reconcile

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// invalidSettings is the reason of the event about wrong picker settings of a pool.
const invalidSettings = "InvalidPickerSettings"

// reportSettings reports wrong picker settings of a pool in an event. The picker itself uses defaults for the wrong ones, and
// cannot write events, as it only reads the API. The pool is served all the same, so its status does not mention them.
func (r *Reconciler) reportSettings(pool *inferencev1.InferencePool) {
	_, wrong := picksettings.Parse(pool.Annotations)
	text := oneLine(wrong)
	if r.complaints.isNew(client.ObjectKeyFromObject(pool), text) {
		r.events.Eventf(pool, nil, corev1.EventTypeWarning, invalidSettings, "Validate", "%s",
			note(fmt.Sprintf("the defaults apply instead of wrong annotations: %s", text)))
	}
}

func oneLine(errs []error) string {
	if len(errs) == 0 {
		return ""
	}
	return strings.ReplaceAll(errors.Join(errs...).Error(), "\n", "; ")
}

// complaints is the last event text about each pool's settings, so that an event is emitted only when the text changes, and
// not at each reconcile. A controller that starts emits all events again, as events last an hour.
type complaints struct {
	mu   sync.Mutex
	told map[types.NamespacedName]string
}

// isNew records the text for a pool and reports whether it needs an event: whether it is new and not empty.
func (c *complaints) isNew(pool types.NamespacedName, text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if text == "" {
		delete(c.told, pool)
		return false
	}
	if c.told[pool] == text {
		return false
	}
	if c.told == nil {
		c.told = map[types.NamespacedName]string{}
	}
	c.told[pool] = text
	return true
}

// forget drops a deleted pool.
func (c *complaints) forget(pool types.NamespacedName) { c.isNew(pool, "") }
