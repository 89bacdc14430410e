// Package parentstatus merges one controller's entries into a status.parents list that several controllers write, as in
// InferencePools and routes. It must not know what the conditions of an entry say.
package parentstatus

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Max is the longest list of parents that the APIs take.
const Max = 32

// Merge makes the new list of parents: other controllers' entries unchanged, then our entries, which next makes from our
// old ones. Changed reports whether our entries differ; if not, there is nothing to write. Merge fails if other controllers'
// entries leave no room. The list may be empty and is never nil, as the APIs require the field.
func Merge[P any](current []P, ours func(P) bool, next func(before []P) []P) (merged []P, changed bool, err error) {
	var before []P
	others := []P{}
	for _, p := range current {
		if ours(p) {
			before = append(before, p)
		} else {
			others = append(others, p)
		}
	}
	after := next(before)
	if equality.Semantic.DeepEqual(before, after) {
		return current, false, nil
	}
	if len(others)+len(after) > Max && len(after) > 0 {
		return nil, false, fmt.Errorf("the status has room for %d parents, and other controllers hold %d", Max, len(others))
	}
	return append(others, after...), true, nil
}

// Stamp sets a condition's generation and time. It keeps the old time if the condition's status is unchanged.
func Stamp(c metav1.Condition, old []metav1.Condition, generation int64, now time.Time) metav1.Condition {
	c.ObservedGeneration = generation
	c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second)) // as the API server keeps it
	if was := meta.FindStatusCondition(old, c.Type); was != nil && was.Status == c.Status {
		c.LastTransitionTime = was.LastTransitionTime
	}
	return c
}
