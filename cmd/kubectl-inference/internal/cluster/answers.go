package cluster

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

// Answer is what one of our pickers answers.
type Answer struct {
	Pod types.NamespacedName
	// Err is why the picker cannot be reached; nil if it answers.
	Err error
	// State is the picker's state of the pools that it was asked about; StateErr is why it could not be read.
	State    livestate.State
	StateErr error
}

// answerPatience is how long pickers may take to answer.
const answerPatience = 5 * time.Second

// AskPickers asks pickers about a pool, namespace/name, or about all pools if the name is empty. The answers are in the order of
// the pods.
func (c *Cluster) AskPickers(ctx context.Context, pods []*corev1.Pod, pool string) []Answer {
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	out := make([]Answer, len(pods))
	var all sync.WaitGroup
	for i, pod := range pods {
		all.Go(func() {
			picker := c.PickerIn(pod)
			out[i] = Answer{Pod: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, Err: picker.Healthy(ctx)}
			if out[i].Err == nil {
				out[i].State, out[i].StateErr = picker.State(ctx, pool)
			}
		})
	}
	all.Wait()
	return out
}
