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

// invalidSettings is the reason of the event that tells of wrong annotations for the picker.
const invalidSettings = "InvalidPickerSettings"

// tellSettings tells in an event what is wrong with a pool's annotations for the picker. The picker, which goes by them
// and has defaults in the place of the wrong ones, only reads the API. That a pool is served is not in doubt, so its
// status does not speak of them.
func (r *Reconciler) tellSettings(pool *inferencev1.InferencePool) {
	_, wrong := picksettings.Parse(pool.Annotations)
	text := oneLine(wrong)
	if r.complaints.isNew(client.ObjectKeyFromObject(pool), text) {
		r.events.Eventf(pool, nil, corev1.EventTypeWarning, invalidSettings, "Validate", "%s",
			note(fmt.Sprintf("defaults are used in the place of what is wrong: %s", text)))
	}
}

func oneLine(errs []error) string {
	if len(errs) == 0 {
		return ""
	}
	return strings.ReplaceAll(errors.Join(errs...).Error(), "\n", "; ")
}

// complaints is what was last told of each pool's settings, so that it is told when it changes, and not at each of the
// many occasions on which a pool is looked at. A controller that starts tells all once more: events last an hour.
type complaints struct {
	mu   sync.Mutex
	told map[types.NamespacedName]string
}

// isNew notes what there is to tell of a pool and reports whether it is to be told. No text is nothing to tell.
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

// forget drops a pool that is gone.
func (c *complaints) forget(pool types.NamespacedName) { c.isNew(pool, "") }
