package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/reconcile"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// options are the values of the controller's flags.
type options struct {
	defaultPicker  string
	hostSuffix     string
	clusterDomain  string
	rootNamespace  string
	allowHosts     []string
	kubeconfig     string
	leaderElect    bool
	leaseNamespace string
	uninstall      bool
	drain          time.Duration
	watchWaypoints time.Duration
	watchPickers   time.Duration
	node           string
	metricsAddress string
	healthAddress  string
	logLevel       string

	// validate sets these from the flags above.
	picker *translate.ServicePort
	claims []translate.HostClaim
	level  slog.Level
}

// parseOptions reads the flags and reports all wrong values in one error.
func parseOptions(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	flags := pflag.NewFlagSet("controller", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.SortFlags = false
	flags.StringVar(&o.defaultPicker, "default-picker", "inference-system/inference-picker:9002",
		"`namespace/service:port` of the endpoint picker for pools that name none; empty for none")
	flags.StringVar(&o.hostSuffix, "host-suffix", "inference.internal",
		"the end of a pool's host: <pool>.<namespace>.`suffix`")
	flags.StringVar(&o.clusterDomain, "cluster-domain", "cluster.local", "the cluster's `domain` in DNS")
	flags.StringVar(&o.rootNamespace, "istio-root-namespace", "istio-system", "Istio's root `namespace`, meshConfig.rootNamespace")
	flags.StringArrayVar(&o.allowHosts, "allow-host", nil,
		"allow pools a host beside their own, as `namespace=host` or namespace=*.domain, where namespace may be *; may be repeated")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "",
		"`file` that says how to reach the API server; if empty, $KUBECONFIG, ~/.kube/config or the pod's own service account")
	flags.BoolVar(&o.leaderElect, "leader-elect", false, "write only while holding a lease, so that several replicas can run")
	flags.StringVar(&o.leaseNamespace, "leader-elect-namespace", "inference-system", "`namespace` of the lease")
	flags.BoolVar(&o.uninstall, "uninstall", false,
		"delete all objects and status entries that the controller wrote, and exit; waits until no controller holds the lease")
	flags.DurationVar(&o.drain, "drain", time.Minute,
		"how `long` replaced configuration stays at a waypoint, so that calls in flight can end; Istio's default drainDuration is 45s")
	flags.DurationVar(&o.watchWaypoints, "watch-waypoints", 5*time.Second,
		"`interval` at which the counters of waypoints are read, to see whether calls to pools are picked, from 1s to 10s; 0 for never")
	flags.DurationVar(&o.watchPickers, "watch-pickers", 500*time.Millisecond,
		"`interval` at which the default picker's pods are asked for a sign of life, from 200ms to 10s; one whose node has vanished is set "+
			"to not ready, as Kubernetes does 50 s later; 0 for never")
	flags.StringVar(&o.node, "node", "", "`name` of the node on which the controller runs; pickers there do not count as signs of life of the network")
	flags.StringVar(&o.metricsAddress, "metrics-address", ":9090", "`host:port` of Prometheus metrics; 0 for none")
	flags.StringVar(&o.healthAddress, "health-address", ":8081", "`host:port` of /healthz and /readyz; 0 for none")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected arguments: %s", strings.Join(flags.Args(), " "))
	}
	return o, o.validate()
}

func (o *options) validate() error {
	var errs []error
	invalid := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if o.defaultPicker != "" {
		picker, err := translate.ParseServicePort(o.defaultPicker)
		if err != nil {
			invalid("default-picker", "%v", err)
		}
		o.picker = &picker
	}
	for _, text := range o.allowHosts {
		claim, err := translate.ParseHostClaim(text)
		if err != nil {
			invalid("allow-host", "%v", err)
		}
		o.claims = append(o.claims, claim)
	}
	domain := func(flag, value string) {
		if problems := validation.IsDNS1123Subdomain(value); len(problems) > 0 {
			invalid(flag, "%q: %s", value, strings.Join(problems, "; "))
		}
	}
	domain("host-suffix", o.hostSuffix)
	domain("cluster-domain", o.clusterDomain)
	address := func(flag, value string) {
		if _, _, err := net.SplitHostPort(value); err != nil && value != "0" {
			invalid(flag, "%v", err)
		}
	}
	address("metrics-address", o.metricsAddress)
	address("health-address", o.healthAddress)
	if problems := validation.IsDNS1123Label(o.leaseNamespace); (o.leaderElect || o.uninstall) && len(problems) > 0 {
		invalid("leader-elect-namespace", "%q: %s", o.leaseNamespace, strings.Join(problems, "; "))
	}
	if o.drain < 0 {
		invalid("drain", "%s: want 0 or more", o.drain)
	}
	if o.watchWaypoints != 0 && (o.watchWaypoints < minWatch || o.watchWaypoints > maxWatch) {
		invalid("watch-waypoints", "%s: want 0, or between %s and %s", o.watchWaypoints, minWatch, maxWatch)
	}
	if o.watchPickers != 0 && (o.watchPickers < minPickerWatch || o.watchPickers > maxWatch) {
		invalid("watch-pickers", "%s: want 0, or between %s and %s", o.watchPickers, minPickerWatch, maxWatch)
	}
	if err := o.level.UnmarshalText([]byte(o.logLevel)); err != nil {
		invalid("log-level", "%q is none of debug, info, warn, error", o.logLevel)
	}
	return errors.Join(errs...)
}

// The bounds of --watch-waypoints. Readings more often than each second load a waypoint more than its calls do. A verdict
// covers the calls of the last 30 s, so readings must come more often than that.
const (
	minWatch = time.Second
	maxWatch = 10 * time.Second
	// minPickerWatch is the lower bound of --watch-pickers.
	minPickerWatch = 200 * time.Millisecond
)

func (o *options) watches() reconcile.Watches {
	return reconcile.Watches{Waypoints: o.watchWaypoints, Pickers: o.watchPickers, Node: o.node}
}

func (o *options) settings() translate.Settings {
	return translate.Settings{HostSuffix: o.hostSuffix, ClusterDomain: o.clusterDomain, RootNamespace: o.rootNamespace, DefaultPicker: o.picker, HostClaims: o.claims}
}

// pickerNamespace is the namespace of the objects that the controller makes for the picker, or made for an earlier one.
func (o *options) pickerNamespace() string {
	if o.picker == nil {
		return o.leaseNamespace
	}
	return o.picker.Service.Namespace
}

// settle is how long after its write a cluster is ready at a waypoint. istiod debounces changes for 100 ms, builds the
// configuration in up to 1 s where there are thousands of Services, and then sends the cluster's endpoints on request.
const settle = 2 * time.Second

func (o *options) times() handover.Times { return handover.Times{Settle: settle, Drain: o.drain} }
