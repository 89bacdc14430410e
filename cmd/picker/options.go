package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/pflag"
)

// Options are the program's settings.
type Options struct {
	Static          string
	Kubeconfig      string
	ExtprocAddress  string
	HealthAddress   string
	MetricsAddress  string
	DrainDelay      time.Duration
	DrainTimeout    time.Duration
	MaxMessageBytes int
	LogLevel        slog.Level
}

// parseOptions reads the command line. The error names all that is wrong with it; it is pflag.ErrHelp where the
// usage was asked for and has been written to stderr.
func parseOptions(args []string, stderr io.Writer) (Options, error) {
	var o Options
	var level string
	flags := pflag.NewFlagSet("picker", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.Static, "static", "", "read pools and endpoints from this YAML `file`, again whenever it changes, instead of from Kubernetes")
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server; if empty, $KUBECONFIG, ~/.kube/config or the pod's own service account")
	flags.StringVar(&o.ExtprocAddress, "extproc-address", ":9002", "serve ext_proc on this `address`")
	flags.StringVar(&o.HealthAddress, "health-address", ":9003", "serve gRPC health checks on this `address`")
	flags.StringVar(&o.MetricsAddress, "metrics-address", ":9090", "serve /metrics and /healthz on this `address`")
	flags.DurationVar(&o.DrainDelay, "drain-delay", 3*time.Second, "at the end, go on taking calls for so `long` after health says NOT_SERVING")
	flags.DurationVar(&o.DrainTimeout, "drain-timeout", 25*time.Second, "at the end, wait so `long` for calls in flight")
	flags.IntVar(&o.MaxMessageBytes, "max-message-bytes", 16<<20, "refuse ext_proc messages over this `size`, and with them longer bodies of proxies that buffer them whole")
	flags.StringVar(&level, "log-level", "info", "log at this `level` and above: debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	return o, o.validate(flags.Args(), level)
}

func (o *Options) validate(rest []string, level string) error {
	var wrong []error
	for _, arg := range rest {
		wrong = append(wrong, fmt.Errorf("%q is not a flag", arg))
	}
	if o.Static != "" && o.Kubeconfig != "" {
		wrong = append(wrong, errors.New("--static and --kubeconfig exclude each other"))
	}
	for _, a := range []struct{ flag, address string }{
		{"extproc-address", o.ExtprocAddress}, {"health-address", o.HealthAddress}, {"metrics-address", o.MetricsAddress},
	} {
		if _, err := net.ResolveTCPAddr("tcp", a.address); err != nil {
			wrong = append(wrong, fmt.Errorf("--%s: %w", a.flag, err))
		}
	}
	if o.DrainDelay < 0 {
		wrong = append(wrong, fmt.Errorf("--drain-delay is %s: want 0 or more", o.DrainDelay))
	}
	if o.DrainTimeout < 0 {
		wrong = append(wrong, fmt.Errorf("--drain-timeout is %s: want 0 or more", o.DrainTimeout))
	}
	if o.MaxMessageBytes <= 0 {
		wrong = append(wrong, fmt.Errorf("--max-message-bytes is %d: want more than 0", o.MaxMessageBytes))
	}
	if err := o.LogLevel.UnmarshalText([]byte(level)); err != nil {
		wrong = append(wrong, fmt.Errorf("--log-level is %q: want debug, info, warn or error", level))
	}
	return errors.Join(wrong...)
}
