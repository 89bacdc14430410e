package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/cluster"
	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/explain"
)

type explainOptions struct {
	*options
	file, path, session, pickerURL string
}

func newExplain(shared *options) *cobra.Command {
	o := &explainOptions{options: shared}
	c := &cobra.Command{
		Use:   "explain -f FILE POOL",
		Short: "Show to which endpoint a request would go, and why",
		Long: "Ask the picker of a pool to which endpoint it would send a request now, and why. The command sends nothing to a\n" +
			"model and reserves nothing. It reaches the picker through the API server, which needs the right to create pods/proxy.",
		Example: examples(`
			# Where would this request go?
			kubectl inference explain -f request.json llama -n models

			# The same for a request on the command line, with all terms of the costs
			echo '{"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "Hello"}]}' |
			  kubectl inference explain -f - llama -n models -o wide

			# Ask a picker without a cluster
			kubectl inference explain -f request.json llama -n models --picker-url http://127.0.0.1:9091`),
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: o.completePools,
		RunE:              func(c *cobra.Command, args []string) error { return o.run(c.Context(), args[0]) },
	}
	o.addFormat(c)
	c.Flags().StringVarP(&o.file, "filename", "f", "", "`file` with the request's body; - is the standard input")
	c.Flags().StringVar(&o.path, "path", "/v1/chat/completions", "the request's `path`")
	c.Flags().StringVar(&o.session, "session", "", "`value` of the pool's session header")
	addPickerURL(c, &o.pickerURL)
	_ = c.MarkFlagRequired("filename") // cannot fail: the flag exists
	return c
}

func addPickerURL(c *cobra.Command, into *string) {
	c.Flags().StringVar(into, "picker-url", "", "ask the picker at this `address`, such as http://127.0.0.1:9091, and no cluster")
}

func (o *explainOptions) run(ctx context.Context, pool string) error {
	body, err := o.body()
	if err != nil {
		return err
	}
	namespace, err := o.namespace()
	if err != nil {
		return err
	}
	picker, connection, err := o.picker(ctx, o.pickerURL, namespace, pool)
	if err != nil {
		return err
	}
	report := explain.Report{Picker: picker.Name}
	query := url.Values{"pool": {namespace + "/" + pool}, "path": {o.path}}
	if o.session != "" {
		query.Set("session", o.session)
	}
	if err := picker.Ask(ctx, http.MethodPost, "debug/explain", query, body, &report.Explanation); err != nil {
		return err
	}
	if connection != nil {
		var endpoints []string
		for _, c := range report.Candidates {
			endpoints = append(endpoints, c.Endpoint)
		}
		report.Names = connection.EndpointNames(ctx, namespace, endpoints)
	}
	return o.write(report)
}

func (o *explainOptions) body() ([]byte, error) {
	var body []byte
	var err error
	if o.file == "-" {
		body, err = io.ReadAll(o.In)
	} else {
		body, err = os.ReadFile(o.file)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the request: %w", err)
	}
	if len(body) == 0 {
		return nil, errors.New("reading the request: it is empty")
	}
	return body, nil
}

// picker finds the picker to ask; the cluster is nil if there is an address.
func (o *options) picker(ctx context.Context, address, namespace, pool string) (*cluster.Picker, *cluster.Cluster, error) {
	if address != "" {
		connection, err := o.connect()
		if err != nil { // a picker without Kubernetes needs no token
			connection = nil
		}
		picker, err := cluster.PickerAt(address, connection)
		if err != nil {
			return nil, nil, fmt.Errorf("--picker-url: %w", err)
		}
		return picker, nil, nil
	}
	connection, err := o.connect()
	if err != nil {
		return nil, nil, err
	}
	picker, err := connection.Picker(ctx, namespace, pool)
	return picker, connection, err
}
