// Package doctor checks whether a cluster has what Inference Waypoint needs and whether it works there, and says of
// each failing check what to do. It is pure: it judges Facts, which package cluster read, and asks nothing itself.
package doctor

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/version"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/output"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

// Facts are all that the checks go by.
type Facts struct {
	// Server is the API server's version. With ServerProblem there is nothing else.
	Server        *version.Info
	ServerProblem *cluster.Problem
	// Served says of each of Kinds whether the API server knows it; a kind that is absent could not be asked for.
	Served map[Kind]bool
	// Definitions are read for the versions that their annotations tell.
	Definitions cluster.List[apiextensionsv1.CustomResourceDefinition]
	Istiods     cluster.List[appsv1.Deployment]
	// DaemonSets are those of istiod's namespace.
	DaemonSets cluster.List[appsv1.DaemonSet]
	// Rejects are how often proxies refused configuration since istiod started; RejectsErr is why that is not known.
	Rejects    int
	RejectsErr error
	Snapshot   *cluster.Snapshot
	// Pickers are the pods that run ours.
	Pickers []PickerFact
}

// PickerFact is what a picker answered.
type PickerFact struct {
	Pod types.NamespacedName
	// Err is why it cannot be reached; nil where it answers.
	Err error
	// State is what it knows of its pools; StateErr is why it does not tell.
	State    livestate.State
	StateErr error
}

// Kind is a kind of object that is needed.
type Kind struct{ GroupVersion, Resource string }

// Result is a check's outcome.
type Result string

// The results. A warning fails nothing.
const (
	OK      Result = "ok"
	Warning Result = "warning"
	Failed  Result = "failed"
	Unknown Result = "unknown" // it could not be checked
)

// Check is one thing that was looked at.
type Check struct {
	// Name stays the same from version to version, such as "istio-version".
	Name    string `json:"name"`
	Result  Result `json:"result"`
	Message string `json:"message"`
	// Next is what to do about it.
	Next string `json:"next,omitempty"`
}

// Report lists all checks in the order in which their faults are best mended.
type Report struct {
	Checks []Check `json:"checks"`
}

// Examine makes all checks. Those that an earlier one makes pointless are left out.
func Examine(f Facts) Report {
	e := &examination{Facts: f}
	if e.server() {
		e.kinds()
		if e.istio() {
			e.ambientMode()
			e.rejects()
		}
		if f.Snapshot != nil {
			e.product()
			e.pools()
		}
	}
	return Report{e.checks}
}

type examination struct {
	Facts
	checks []Check
}

func (e *examination) add(name string, r Result, next, format string, args ...any) {
	e.checks = append(e.checks, Check{Name: name, Result: r, Message: fmt.Sprintf(format, args...), Next: next})
}

// unread adds a check that could not be made.
func (e *examination) unread(name, title string, p *cluster.Problem) {
	e.add(name, Unknown, p.Next(), "%s: %s", title, p.Text)
}

// Exit codes, for CI.
const (
	ExitOK      = 0
	ExitFailed  = 1 // a check failed
	ExitUnknown = 2 // none failed, but one could not be made
)

// ExitCode is the program's for this report.
func (r Report) ExitCode() int {
	switch {
	case r.count(Failed) > 0:
		return ExitFailed
	case r.count(Unknown) > 0:
		return ExitUnknown
	default:
		return ExitOK
	}
}

func (r Report) count(result Result) int {
	n := 0
	for _, c := range r.Checks {
		if c.Result == result {
			n++
		}
	}
	return n
}

// Text has a line for each check, what to do under those that are not well, and a sum. Wide names the checks.
func (r Report) Text(wide bool) string {
	var out strings.Builder
	for _, c := range r.Checks {
		name := ""
		if wide {
			name = fmt.Sprintf("%-20s ", c.Name)
		}
		fmt.Fprintf(&out, "%-8s %s%s\n", c.Result, name, c.Message)
		if c.Next != "" && c.Result != OK {
			fmt.Fprintf(&out, "%-8s next: %s\n", "", c.Next)
		}
	}
	fmt.Fprintf(&out, "\nok: %d, warnings: %d, failed: %d, not checked: %d\n", r.count(OK), r.count(Warning), r.count(Failed), r.count(Unknown))
	return out.String()
}

var _ output.Report = Report{}
