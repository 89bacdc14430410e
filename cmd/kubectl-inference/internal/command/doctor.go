package command

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/doctor"
)

func newDoctor(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check the cluster, and show what to do about each failed check",
		Long: "Check that the cluster has what Inference Waypoint needs (Kubernetes, the Gateway API, the Inference Extension,\n" +
			"Istio in ambient mode), that the controller and the picker run, and that every pool is served: its namespace\n" +
			"is in the mesh, its waypoint is programmed, its host has an address, the picker reads its pods' metrics.\n\n" +
			"It only reads. Exit code 0: all checks passed; 1: a check failed; 2: none failed, but one could not be made.",
		Example: examples(`
			# Check all
			kubectl inference doctor

			# In CI: the failed checks, as JSON
			kubectl inference doctor -o json | jq '.checks[] | select(.result == "failed")'`),
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			connection, err := o.connect()
			if err != nil {
				return o.reportDoctor(doctor.Examine(doctor.Facts{ServerProblem: cluster.ProblemOf(err)}))
			}
			return o.reportDoctor(doctor.Examine(gather(c.Context(), connection)))
		},
		ValidArgsFunction: noFiles,
	}
	o.addFormat(c)
	return c
}

func (o *options) reportDoctor(r doctor.Report) error {
	if err := o.write(r); err != nil {
		return err
	}
	if code := r.ExitCode(); code != doctor.ExitOK {
		return exitCode(code)
	}
	return nil
}

// gather reads everything that the checks need.
func gather(ctx context.Context, c *cluster.Cluster) doctor.Facts {
	f := doctor.Facts{Served: map[doctor.Kind]bool{}}
	if f.Server, f.ServerProblem = c.Version(); f.ServerProblem != nil {
		return f
	}
	for _, k := range doctor.Kinds() {
		if served, problem := c.Serves(k.GroupVersion, k.Resource); problem == nil {
			f.Served[k] = served
		}
	}
	f.Definitions = c.Definitions(ctx)
	f.Istiods = c.Istiods(ctx)
	if len(f.Istiods.Items) > 0 {
		f.DaemonSets = c.DaemonSets(ctx, f.Istiods.Items[0].Namespace)
		f.Rejects, f.RejectsErr = c.Rejects(ctx, f.Istiods.Items[0])
	}
	snapshot, err := c.Read(ctx, "", "")
	if err != nil {
		f.ServerProblem = cluster.ProblemOf(err)
		return f
	}
	f.Snapshot = snapshot
	snapshot.Answers = c.AskPickers(ctx, snapshot.OwnPickers(), "")
	return f
}
