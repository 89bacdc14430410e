package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/extproc"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Options are the program's settings.
type Options struct {
	Static          string
	Kubeconfig      string
	Serves          pool.Serves
	ExtprocAddress  string
	HealthAddress   string
	DebugAddress    string
	PeersAddress    string
	MetricsAddress  string
	DrainDelay      time.Duration
	DrainTimeout    time.Duration
	MaxStreams      int
	MaxIndexBytes   int
	MaxMessageBytes int
	MaxHeldBytes    int
	MaxWaitingBytes int
	TLSCertFile     string
	TLSKeyFile      string
	TLSClientCAFile string
	Profiles        bool
	LogLevel        slog.Level
}

// parseOptions parses the command line. The error names all that is wrong with it. It is pflag.ErrHelp if the usage was
// asked for, which is then written to stderr.
func parseOptions(args []string, stderr io.Writer) (Options, error) {
	var o Options
	var level string
	var services []string
	flags := pflag.NewFlagSet("picker", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.Static, "static", "", "read pools and endpoints from this YAML `file` instead of from Kubernetes, and again whenever it changes")
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server; if empty, $KUBECONFIG, ~/.kube/config or the pod's own service account")
	flags.StringSliceVar(&services, "service", []string{ownNamespace() + "/inference-picker"}, "this picker's own Service, as `namespace/name`. The picker serves the pools whose endpointPickerRef names it, and leaves those of other pickers alone. The namespace is $POD_NAMESPACE by default. May be given several times")
	flags.BoolVar(&o.Serves.Unnamed, "unnamed-pools", true, "also serve the pools that name no picker, to match the controller's --default-picker")
	flags.StringVar(&o.ExtprocAddress, "extproc-address", ":9002", "serve ext_proc on this `address`")
	flags.StringVar(&o.HealthAddress, "health-address", ":9003", "serve gRPC health checks on this `address`")
	flags.StringVar(&o.MetricsAddress, "metrics-address", ":9090", "serve /metrics and /healthz on this `address`")
	flags.StringVar(&o.DebugAddress, "debug-address", ":9091", "serve the page, /debug/pools and /debug/explain on this `address`, to users whom the API server allows to read the pools. With --static everybody may read, and the default is 127.0.0.1:9091")
	flags.StringVar(&o.PeersAddress, "peers-address", ":9004", "tell the other pickers of the first --service on this `address` what this picker decides, and follow at the same port what they decide, so that each can take over the pools of another. Empty: neither. With --static there are no others")
	flags.DurationVar(&o.DrainDelay, "drain-delay", 3*time.Second, "at shutdown, go on taking calls for so `long` after health checks say NOT_SERVING")
	flags.DurationVar(&o.DrainTimeout, "drain-timeout", 25*time.Second, "at shutdown, wait so `long` for calls in flight; calls that last longer go on without the picker")
	flags.IntVar(&o.MaxStreams, "max-streams", 50_000, "leave calls above this `number` in flight to their pool's failure mode. The pools of one namespace may have four times as many as are free. 0 sets no limit. A call that waits for its answer takes some 10 KB, and as much again if its usage is counted")
	flags.IntVar(&o.MaxMessageBytes, "max-message-bytes", extproc.LargestMessage, "refuse ext_proc messages above this `size`. Proxies that buffer longer bodies whole need more")
	flags.IntVar(&o.MaxHeldBytes, "max-held-bytes", 256<<20, "hold at most so many `bytes` of streamed bodies before their picks, of each body at most 1 MiB and for one namespace four times what is free. Above that, pick on the part of the body that has come. An encoded body takes 10 MiB while it is decoded, and without room is not read. As many more bytes may be on their way back to proxies. 0 sets no limit")
	flags.IntVar(&o.MaxWaitingBytes, "max-waiting-bytes", 512<<20, "let calls that wait for a server have at most so many `bytes`: their bodies and some 16 KiB each. The pools of one namespace may have four times as many as are free. Above that, the last call in the pool's line of the calling namespace with the most of them is refused. 0 sets no limit")
	flags.IntVar(&o.MaxIndexBytes, "max-index-bytes", 512<<20, "remember at most so many `bytes` of prefix blocks in model servers' caches, of all pools together. The pools of one namespace may have four times as many as are free, and forget the least recently used blocks first. 0 sets no limit")
	flags.StringVar(&o.TLSCertFile, "tls-cert-file", "", "serve ext_proc over TLS with the certificate in this PEM `file`, and read it again when it changes. Without it, serve in the clear, for a mesh that does mTLS itself")
	flags.StringVar(&o.TLSKeyFile, "tls-key-file", "", "the certificate's key, a PEM `file`")
	flags.StringVar(&o.TLSClientCAFile, "tls-client-ca-file", "", "require a client certificate by one of the authorities in this PEM `file`")
	flags.BoolVar(&o.Profiles, "pprof", false, "serve Go's profiles under /debug/pprof/ on the metrics address")
	flags.StringVar(&level, "log-level", "info", "log at this `level` and above: debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if len(services) == 0 {
		o.PeersAddress = ""
	}
	if o.Static != "" {
		o.PeersAddress = ""
		if !flags.Changed("debug-address") {
			o.DebugAddress = "127.0.0.1:9091"
		}
	}
	return o, errors.Join(o.readServices(services), o.validate(flags.Args(), level))
}

// ownNamespace returns the pod's namespace, or the manifests' default.
func ownNamespace() string {
	return cmp.Or(os.Getenv("POD_NAMESPACE"), "inference-system")
}

// ownName returns the pod's name, by which other pickers and people know this one. Outside Kubernetes it is the host's name.
func ownName() string {
	host, _ := os.Hostname() // without a name this picker is known by its address
	return cmp.Or(os.Getenv("POD_NAME"), host)
}

func (o *Options) readServices(services []string) error {
	var wrong []error
	for _, service := range services {
		name, ok := pool.ParseName(service)
		if !ok {
			wrong = append(wrong, fmt.Errorf("--service is %q: want namespace/name", service))
		}
		o.Serves.Services = append(o.Serves.Services, name)
	}
	return errors.Join(wrong...)
}

func (o *Options) validate(rest []string, level string) error {
	var wrong []error
	for _, arg := range rest {
		wrong = append(wrong, fmt.Errorf("the argument %q is not a flag", arg))
	}
	if o.Static != "" && o.Kubeconfig != "" {
		wrong = append(wrong, errors.New("--static and --kubeconfig exclude each other"))
	}
	for _, a := range []struct{ flag, address string }{
		{"extproc-address", o.ExtprocAddress}, {"health-address", o.HealthAddress}, {"metrics-address", o.MetricsAddress}, {"debug-address", o.DebugAddress}, {"peers-address", o.PeersAddress},
	} {
		if a.flag == "peers-address" && a.address == "" {
			continue
		}
		if _, err := net.ResolveTCPAddr("tcp", a.address); err != nil {
			wrong = append(wrong, fmt.Errorf("--%s: %w", a.flag, err))
		}
	}
	wrong = append(wrong, o.validateLimits(), o.validateTLS())
	if err := o.LogLevel.UnmarshalText([]byte(level)); err != nil {
		wrong = append(wrong, fmt.Errorf("--log-level is %q: want debug, info, warn or error", level))
	}
	return errors.Join(wrong...)
}

func (o *Options) validateLimits() error {
	var wrong []error
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"drain-delay", o.DrainDelay}, {"drain-timeout", o.DrainTimeout}} {
		if d.value < 0 {
			wrong = append(wrong, fmt.Errorf("--%s is %s: want 0 or more", d.flag, d.value))
		}
	}
	for _, n := range []struct {
		flag       string
		value, min int
	}{{"max-streams", o.MaxStreams, 0}, {"max-message-bytes", o.MaxMessageBytes, 1}, {"max-held-bytes", o.MaxHeldBytes, 0}, {"max-waiting-bytes", o.MaxWaitingBytes, 0}, {"max-index-bytes", o.MaxIndexBytes, 0}} {
		if n.value < n.min {
			wrong = append(wrong, fmt.Errorf("--%s is %d: want %d or more", n.flag, n.value, n.min))
		}
	}
	return errors.Join(wrong...)
}

func (o *Options) validateTLS() error {
	if (o.TLSCertFile == "") != (o.TLSKeyFile == "") {
		return errors.New("--tls-cert-file and --tls-key-file go together")
	}
	if o.TLSClientCAFile != "" && o.TLSCertFile == "" {
		return errors.New("--tls-client-ca-file needs --tls-cert-file")
	}
	return nil
}
