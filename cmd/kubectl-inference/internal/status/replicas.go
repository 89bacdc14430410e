package status

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// Replica is one of the pods of a pool's picker. Waypoints ask one of them about the pool, or each about a part of the callers where
// the pool is split. Each follows what the others decide, to take over.
type Replica struct {
	Pod string `json:"pod"` // namespace/name
	// Picks says that it picks for the pool, or did so in the last ten seconds.
	Picks bool `json:"picks"`
	// Part says that it picks for a part of the callers.
	Part bool `json:"part,omitempty"`
	// Behind is, of a replica that does not pick, for how many seconds at most it does not know what was decided; nil where it does
	// not follow the one that picks, or where none picks.
	Behind *float64 `json:"behindSeconds,omitempty"`
	// Problem is why nothing is known of the replica.
	Problem string `json:"problem,omitempty"`
}

// WhereApart says where to read on if a picker does not follow another one.
const WhereApart = `docs/runbook.md says under "InferencePickersApart" what to look at`

// replicas judges which replica of the picker picks, by what the replicas themselves answer. It says nothing where they were not
// asked.
func (j *judgement) replicas() {
	answers := j.answers()
	if len(answers) == 0 {
		return
	}
	var picking []livestate.PickedBy
	picks := make([]bool, len(answers))
	for i, a := range answers {
		if own := j.ownPicks(a); own != nil {
			picking, picks[i] = append(picking, *own), true
		}
	}
	slices.SortFunc(picking, func(a, b livestate.PickedBy) int { return cmp.Compare(a.Until, b.Until) })
	settings, _ := picksettings.Parse(j.api.Annotations)
	for i, a := range answers {
		r := j.replica(a, picks[i], picking)
		r.Part = r.Picks && settings.Split
		j.out.Picker.Replicas = append(j.out.Picker.Replicas, r)
	}
	if settings.Split {
		j.eachFollows(answers, picks, picking)
		return
	}
	if both := (livestate.Pool{PickedBy: picking}); len(both.Together()) > 0 {
		j.say(both.Picking(), `docs/troubleshooting.md says under "Several pickers" what to look at`)
	}
}

// eachFollows says which of the pickers that pick does not know what another one of them decides.
func (j *judgement) eachFollows(answers []cluster.Answer, picks []bool, picking []livestate.PickedBy) {
	for i, a := range answers {
		if !picks[i] {
			continue
		}
		for _, other := range picking {
			if other.Picker != a.State.Picker && behind(a, other.Picker) == nil {
				j.say(fmt.Sprintf("Picker %s does not follow %s, which picks too: both may send their calls to the same endpoint.", a.State.Picker, other.Picker), WhereApart)
			}
		}
	}
}

// answers are the answers of the pool's own picker.
func (j *judgement) answers() []cluster.Answer {
	pods, _ := j.PickerPods(j.api) // picker reports why there are none
	return slices.DeleteFunc(slices.Clone(j.Answers), func(a cluster.Answer) bool {
		for _, p := range pods {
			if a.Pod == (types.NamespacedName{Namespace: p.Namespace, Name: p.Name}) {
				return false
			}
		}
		return true
	})
}

// ownPicks is what a picker says of its own picks for the pool; nil where it did not pick of late.
func (j *judgement) ownPicks(a cluster.Answer) *livestate.PickedBy {
	for i := range a.State.Pools {
		if a.State.Pools[i].Name != j.api.Namespace+"/"+j.api.Name {
			continue
		}
		for _, by := range a.State.Pools[i].PickedBy {
			if by.Picker == a.State.Picker {
				return &by
			}
		}
	}
	return nil
}

// replica judges one replica, and whether it picks is told. picking are those that picked of late, the last one first.
func (j *judgement) replica(a cluster.Answer, picks bool, picking []livestate.PickedBy) Replica {
	out := Replica{Pod: a.Pod.String(), Picks: picks}
	if err := cmp.Or(a.Err, a.StateErr); err != nil {
		out.Problem = err.Error()
		return out
	}
	if a.State.Picker == "" {
		out.Problem = "it is of an earlier version"
		return out
	}
	if out.Picks || len(picking) == 0 {
		return out
	}
	to := picking[0].Picker
	if out.Behind = behind(a, to); out.Behind == nil {
		j.say(fmt.Sprintf("Picker %s does not follow %s, which picks: it would take the pool over without what that one knows.", a.State.Picker, to), WhereApart)
	}
	return out
}

// behind is how long ago a picker was last told what another one decides, in seconds; nil where it does not follow the other.
func behind(a cluster.Answer, other string) *float64 {
	for _, o := range a.State.Others {
		if o.Picker == other {
			return o.Silent
		}
	}
	return nil
}

// text says what a replica does.
func (r Replica) text() string {
	switch {
	case r.Problem != "":
		return r.Pod + ", not known: " + r.Problem
	case r.Part:
		return r.Pod + ", picks for a part of the callers"
	case r.Picks:
		return r.Pod + ", picks for the pool"
	case r.Behind != nil:
		return fmt.Sprintf("%s, stands by, at most %.1f s behind", r.Pod, *r.Behind)
	default:
		return r.Pod + ", stands by"
	}
}
