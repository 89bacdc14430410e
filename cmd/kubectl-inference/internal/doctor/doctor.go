// Package doctor checks whether a cluster has what Inference Waypoint needs and whether it works there, and says for each
// failed check what to do. It must not read a cluster: it is pure and judges Facts, which package cluster read.
package doctor

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/output"
)

// Facts are the inputs of the checks.
type Facts struct {
	// Server is the API server's version. With ServerProblem all other fields are empty.
	Server        *version.Info
	ServerProblem *cluster.Problem
	// Served says for each of Kinds whether the API server has it; for a missing kind this is unknown.
	Served map[Kind]bool
	// Definitions have annotations with the versions of their releases.
	Definitions cluster.List[apiextensionsv1.CustomResourceDefinition]
	Istiods     cluster.List[appsv1.Deployment]
	// DaemonSets are the DaemonSets of istiod's namespace.
	DaemonSets cluster.List[appsv1.DaemonSet]
	// Rejects is how often proxies refused configuration since istiod started; RejectsErr is why that is unknown.
	Rejects    int
	RejectsErr error
	// Snapshot has the answers of all our pickers.
	Snapshot *cluster.Snapshot
}

// Kind is a kind of object that the product needs.
type Kind struct{ GroupVersion, Resource string }

// Result is a check's outcome.
type Result string

// The results. A warning does not change the exit code.
const (
	OK      Result = "ok"
	Warning Result = "warning"
	Failed  Result = "failed"
	Unknown Result = "unknown" // it could not be checked
)

// Check is the outcome of one check.
type Check struct {
	// Name is stable across versions, such as "istio-version".
	Name    string `json:"name"`
	Result  Result `json:"result"`
	Message string `json:"message"`
	// Next is what to do about a failure.
	Next string `json:"next,omitempty"`
}

// Report lists all checks in the order in which to fix their faults.
type Report struct {
	Checks []Check `json:"checks"`
}

// Examine makes all checks. It leaves out checks that make no sense after an earlier failure.
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

// ExitCode is the program's exit code for this report.
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

// Text has a line for each check, what to do under each check that is not ok, and the totals. Wide adds the checks' names.
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
