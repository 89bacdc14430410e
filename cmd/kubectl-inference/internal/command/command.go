// Package command is the command line of kubectl inference: its commands, their flags, help and completion. It must not
// read or judge a cluster: package cluster reads, and the package with a command's name judges and formats.
package command

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/output"
)

// Exit codes beside those of doctor.
const (
	exitOK     = 0
	exitFailed = 1
)

// exitCode is an error whose text has already been printed.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Run runs one command line and returns the program's exit code. It prints an error as one line on the error stream, with
// what to do next.
func Run(ctx context.Context, args []string, streams genericiooptions.IOStreams) int {
	root := newRoot(streams)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var code exitCode
	var problem *cluster.Problem
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, context.Canceled):
		return exitFailed
	}
	_, _ = fmt.Fprintln(streams.ErrOut, "kubectl inference:", err)
	if errors.As(err, &problem) && problem.Next() != "" {
		_, _ = fmt.Fprintln(streams.ErrOut, "next:", problem.Next())
	}
	return exitFailed
}

// options are the flags that all commands share.
type options struct {
	genericiooptions.IOStreams
	flags           *genericclioptions.ConfigFlags
	systemNamespace string
	format          output.Format
	allNamespaces   bool
}

func newRoot(streams genericiooptions.IOStreams) *cobra.Command {
	o := &options{IOStreams: streams, flags: genericclioptions.NewConfigFlags(true), format: output.Table}
	root := &cobra.Command{
		Use:   "kubectl-inference",
		Short: "Show how the InferencePools of a cluster are served, what is wrong, and to which endpoint a request would go",
		Example: examples(`
			# Is all well?
			kubectl inference doctor

			# Which waypoints and pickers serve the pools of all namespaces, and what is wrong?
			kubectl inference status -A`),
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl inference"},
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.ErrOut)
	o.flags.AddFlags(root.PersistentFlags())
	root.PersistentFlags().StringVar(&o.systemNamespace, "system-namespace", "inference-system", "`namespace` that Inference Waypoint is installed in")
	_ = root.RegisterFlagCompletionFunc("namespace", noFiles) // cannot fail: the flag exists
	root.AddCommand(newStatus(o), newDoctor(o), newExplain(o), newTop(o), newPage(o), newRender(o))
	return root
}

// addFormat adds the flag -o to a command that writes a report.
func (o *options) addFormat(c *cobra.Command) {
	c.Flags().VarP(&o.format, "output", "o", "output format: "+strings.Join(output.Formats, ", "))
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(output.Formats, cobra.ShellCompDirectiveNoFileComp)) // cannot fail: the flag exists
}

func (o *options) write(r output.Report) error { return output.Write(o.Out, o.format, r) }

func (o *options) connect() (*cluster.Cluster, error) {
	return cluster.Connect(o.flags, o.systemNamespace)
}

// namespace is the namespace from the flags or the kubeconfig.
func (o *options) namespace() (string, error) {
	namespace, _, err := o.flags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return "", cluster.ProblemOf(err)
	}
	return namespace, nil
}

// completePools offers the names of the namespace's pools.
func (o *options) completePools(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	connection, err := o.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	namespace, err := o.namespace()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, err := connection.PoolNames(c.Context(), namespace)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func noFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// examples indents a command's examples by two spaces, as kubectl does.
func examples(text string) string {
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight("  "+strings.TrimLeft(line, "\t"), " ")
	}
	return strings.Join(lines, "\n")
}
