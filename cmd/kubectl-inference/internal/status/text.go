package status

import (
	"fmt"
	"strings"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/output"
)

// Text is a table of the pools, followed by the findings for each pool. For a single pool it has all details.
func (r Report) Text(wide bool) string {
	var out strings.Builder
	switch {
	case len(r.Pools) == 0 && len(r.Unread) == 0:
		out.WriteString("There are no InferencePools here.\n")
	case r.Detail && len(r.Pools) == 1:
		out.WriteString(r.Pools[0].detail())
	case len(r.Pools) > 0:
		out.WriteString(r.table(wide))
		for _, p := range r.Pools {
			if len(p.Findings) > 0 {
				fmt.Fprintf(&out, "\n%s/%s:\n%s", p.Namespace, p.Name, findings(p.Findings))
			}
		}
	}
	if len(r.Unread) > 0 {
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		out.WriteString("Not read, and so not checked:\n" + findings(r.Unread))
	}
	return out.String()
}

func (r Report) table(wide bool) string {
	head := []string{"NAMESPACE", "POOL", "STATE", "WAYPOINT", "PICKER", "PODS READY"}
	if wide {
		head = append(head, "FAILURE MODE", "HOSTS")
	}
	rows := [][]string{head}
	for _, p := range r.Pools {
		row := []string{p.Namespace, p.Name, string(p.State), output.OrDash(p.waypointNames()), p.pickerName(), p.ready()}
		if wide {
			row = append(row, string(p.FailureMode), output.OrDash(strings.Join(p.Hosts, ",")))
		}
		rows = append(rows, row)
	}
	return output.Columns(rows)
}

// ready is the number of ready pods and of all pods, or "?" if it is unknown.
func (p Pool) ready() string {
	if p.State == Unknown && len(p.Pods) == 0 {
		return "?"
	}
	return fmt.Sprintf("%d/%d", p.ReadyPods, len(p.Pods))
}

func (p Pool) waypointNames() string {
	var out []string
	for _, w := range p.Waypoints {
		out = append(out, w.Name)
	}
	return strings.Join(out, ",")
}

func (p Pool) pickerName() string {
	if p.Picker == nil {
		return "-"
	}
	return p.Picker.Service
}

func findings(all []Finding) string {
	var out strings.Builder
	for _, f := range all {
		fmt.Fprintf(&out, "  %s\n", f.What)
		if f.Next != "" {
			fmt.Fprintf(&out, "    next: %s\n", f.Next)
		}
	}
	return out.String()
}

func (p Pool) detail() string {
	rows := [][]string{{"Pool:", p.Namespace + "/" + p.Name}, {"State:", p.StateText()}}
	for _, host := range p.Hosts {
		rows = append(rows, []string{"Host:", "http://" + host})
	}
	for _, w := range p.Waypoints {
		rows = append(rows, []string{"Waypoint:", fmt.Sprintf("%s, %s, %d of %d pods ready", w.Name, programmed(w.Programmed), w.ReadyPods, w.Pods)})
	}
	if p.Picker != nil {
		whose := "another project's"
		if p.Picker.Ours {
			whose = "Inference Waypoint's own"
		}
		rows = append(rows, []string{"Picker:", fmt.Sprintf("%s, %s, %d of %d pods ready", p.Picker.Service, whose, p.Picker.ReadyPods, p.Picker.Pods)})
		for _, r := range p.Picker.Replicas {
			rows = append(rows, []string{"Replica:", r.text()})
		}
	}
	rows = append(rows, []string{"Failure mode:", string(p.FailureMode)})
	text := output.Columns(rows)
	if len(p.Pods) > 0 {
		rows = [][]string{{"POD", "ADDRESS", "READY", "IN THE MESH"}}
		for _, pod := range p.Pods {
			rows = append(rows, []string{pod.Name, output.OrDash(pod.Address), yes(pod.Ready), yes(pod.InMesh)})
		}
		text += "\n" + output.Columns(rows)
	}
	if len(p.Conditions) > 0 {
		rows = [][]string{{"WAYPOINT", "CONDITION", "STATUS", "REASON", "MESSAGE"}}
		for _, c := range p.Conditions {
			rows = append(rows, []string{c.Waypoint, c.Type, c.Status, c.Reason, c.Message})
		}
		text += "\n" + output.Columns(rows)
	}
	if len(p.Findings) > 0 {
		text += "\nWhat is wrong:\n" + findings(p.Findings)
	}
	return text
}

// By names the replicas of the picker that pick for the pool, as an addition to its state.
func (p Pool) By() string {
	var names []string
	if p.Picker != nil {
		for _, r := range p.Picker.Replicas {
			if r.Picks {
				names = append(names, r.Pod)
			}
		}
	}
	if len(names) == 0 {
		return ""
	}
	return " by " + strings.Join(names, ", ")
}

// StateText is the state with its detail.
func (p Pool) StateText() string {
	if p.StateDetail == "" {
		return string(p.State)
	}
	return string(p.State) + ", " + p.StateDetail
}

func programmed(is bool) string {
	if is {
		return "programmed"
	}
	return "not programmed"
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}
