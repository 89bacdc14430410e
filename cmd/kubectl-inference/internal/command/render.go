package command

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/printers"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/render"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// The output formats of objects.
const (
	formatYAML = "yaml"
	formatJSON = "json"
)

type renderOptions struct {
	*options
	files         []string
	format        string
	waypoint      string
	defaultPicker string
	hostSuffix    string
	clusterDomain string
	allowHosts    []string
}

func newRender(shared *options) *cobra.Command {
	o := &renderOptions{options: shared}
	c := &cobra.Command{
		Use:   "render -f FILE",
		Short: "Print the Istio objects that the controller would make of pools, without a cluster",
		Long: "Print the ServiceEntries and EnvoyFilters that the controller would make of the InferencePools in files. The files\n" +
			"may also have objects that pools depend on: HTTPRoutes, Services, Namespaces, Gateways, ReferenceGrants,\n" +
			"ServiceEntries. The command assumes that missing objects exist, and names them on the standard error. The output has\n" +
			"no tokens of pools, as these derive from the cluster's key. The exit code is 1 if a pool\n" +
			"would not be served.",
		Example: examples(`
			# Print the objects of a pool
			kubectl inference render -f samples/quickstart/pool.yaml

			# The same with a waypoint in another namespace
			kubectl inference render -f pool.yaml --waypoint infra/shared`),
		Args:              cobra.NoArgs,
		ValidArgsFunction: noFiles,
		RunE:              func(*cobra.Command, []string) error { return o.run() },
	}
	c.Flags().StringVarP(&o.format, "output", "o", formatYAML, "output format: "+formatYAML+" or "+formatJSON)
	c.Flags().StringSliceVarP(&o.files, "filename", "f", nil, "`file` with objects; - is the standard input; may be repeated")
	c.Flags().StringVar(&o.waypoint, "waypoint", "waypoint", "`[namespace/]name` of the waypoint for pools that the files bind to no waypoint")
	c.Flags().StringVar(&o.defaultPicker, "default-picker", "inference-system/inference-picker:9002", "as the controller's flag: `namespace/service:port`, or empty for none")
	c.Flags().StringVar(&o.hostSuffix, "host-suffix", "inference.internal", "as the controller's flag: the `suffix` of pools' hosts")
	c.Flags().StringVar(&o.clusterDomain, "cluster-domain", "cluster.local", "as the controller's flag: the cluster's `domain`")
	c.Flags().StringArrayVar(&o.allowHosts, "allow-host", nil, "as the controller's flag: `namespace=host`; may be repeated")
	_ = c.MarkFlagRequired("filename") // cannot fail: the flags exist
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{formatYAML, formatJSON}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (o *renderOptions) run() error {
	settings, err := o.settings()
	if err != nil {
		return err
	}
	in := render.NewInputs()
	for _, file := range o.files {
		if err := o.add(in, file, settings.Namespace); err != nil {
			return err
		}
	}
	out, err := render.Render(in, settings)
	if err != nil {
		return err
	}
	if err := o.print(out); err != nil {
		return err
	}
	for _, note := range out.Notes {
		_, _ = fmt.Fprintln(o.ErrOut, note)
	}
	for _, refused := range out.Refused {
		_, _ = fmt.Fprintln(o.ErrOut, "not served:", refused)
	}
	if len(out.Refused) > 0 {
		return exitCode(exitFailed)
	}
	return nil
}

func (o *renderOptions) settings() (render.Options, error) {
	var out render.Options
	out.Settings.HostSuffix, out.Settings.ClusterDomain = o.hostSuffix, o.clusterDomain
	if o.defaultPicker != "" {
		picker, err := translate.ParseServicePort(o.defaultPicker)
		if err != nil {
			return out, fmt.Errorf("--default-picker: %w", err)
		}
		out.Settings.DefaultPicker = &picker
	}
	for _, text := range o.allowHosts {
		claim, err := translate.ParseHostClaim(text)
		if err != nil {
			return out, fmt.Errorf("--allow-host: %w", err)
		}
		out.Settings.HostClaims = append(out.Settings.HostClaims, claim)
	}
	namespace, name, ok := strings.Cut(o.waypoint, "/")
	if !ok {
		namespace, name = "", o.waypoint
	}
	out.Waypoint = types.NamespacedName{Namespace: namespace, Name: name}
	out.Namespace = "default" // not from the kubeconfig, so that the output is the same everywhere
	if *o.flags.Namespace != "" {
		out.Namespace = *o.flags.Namespace
	}
	return out, nil
}

func (o *renderOptions) add(in *render.Inputs, file, namespace string) error {
	stream := o.In
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("reading objects: %w", err)
		}
		defer func() { _ = opened.Close() }()
		stream = opened
	}
	if err := in.Add(stream, namespace); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

func (o *renderOptions) print(out render.Output) error {
	var printer printers.ResourcePrinter
	switch o.format {
	case formatYAML:
		printer = &printers.YAMLPrinter{}
	case formatJSON:
		printer = &printers.JSONPrinter{}
	default:
		return fmt.Errorf("--output is %q: want %s or %s", o.format, formatYAML, formatJSON)
	}
	for _, object := range out.Objects {
		if err := printer.PrintObj(object, o.Out); err != nil {
			return fmt.Errorf("writing %T %s: %w", object, object.GetName(), err)
		}
	}
	return nil
}
