package command

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/status"
)

func newStatus(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "status [POOL]",
		Short: "Show which waypoint and picker serve each pool, what is wrong, and what to do",
		Long: "Show for the InferencePools of a namespace, or of all, which waypoint and which picker serve them, how many of\n" +
			"their pods are ready, what is wrong and what to do. For a single pool it shows all details, and asks the pickers which\n" +
			"of them picks; that needs the right to get pods/proxy.",
		Example: examples(`
			# The pools of the current namespace
			kubectl inference status

			# The pools of all namespaces, with their hosts
			kubectl inference status -A -o wide

			# All about one pool
			kubectl inference status llama -n models`),
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: o.completePools,
		RunE:              func(c *cobra.Command, args []string) error { return o.runStatus(c, args) },
	}
	o.addFormat(c)
	c.Flags().BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "show the pools of all namespaces")
	return c
}

func (o *options) runStatus(c *cobra.Command, args []string) error {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	if name != "" && o.allNamespaces {
		return errors.New("--all-namespaces cannot be used with the name of a pool")
	}
	namespace, err := o.namespace()
	if err != nil {
		return err
	}
	if o.allNamespaces {
		namespace = ""
	}
	connection, err := o.connect()
	if err != nil {
		return err
	}
	found, err := connection.Read(c.Context(), namespace, name)
	switch {
	case err != nil:
		return err
	case found.Pools.Problem != nil:
		return found.Pools.Problem
	case name != "" && len(found.Pools.Items) == 0:
		return cluster.NoSuchPool(namespace, name)
	}
	if name != "" {
		if pods, reason := found.PickerPods(found.Pools.Items[0]); reason == "" {
			found.Answers = connection.AskPickers(c.Context(), pods, namespace+"/"+name)
		}
	}
	report := status.Of(found)
	report.Detail = name != ""
	return o.write(report)
}
