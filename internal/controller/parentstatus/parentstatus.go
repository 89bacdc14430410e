// Package parentstatus keeps one controller's part of a status that several controllers write to, as those of
// InferencePools and of routes: a list of parents, each with conditions. It does not know what the conditions say.
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

// Merge makes the list of parents that the status should have: other controllers' entries as they are, then those that
// next makes of ours as they were before. Changed reports whether ours differ; if not, there is nothing to write. Merge
// fails where other controllers' entries leave no room. The list may be empty and is never nil, as the APIs require the field.
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

// Stamp completes a condition. It keeps the time of the old one of its type where the status is the same.
func Stamp(c metav1.Condition, old []metav1.Condition, generation int64, now time.Time) metav1.Condition {
	c.ObservedGeneration = generation
	c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second)) // as the API server keeps it
	if was := meta.FindStatusCondition(old, c.Type); was != nil && was.Status == c.Status {
		c.LastTransitionTime = was.LastTransitionTime
	}
	return c
}
