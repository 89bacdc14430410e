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
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// options are all that the controller can be told.
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
	metricsAddress string
	healthAddress  string
	logLevel       string

	// Set from the above when they are validated.
	picker *translate.ServicePort
	claims []translate.HostClaim
	level  slog.Level
}

// parseOptions reads the flags and says all that is wrong with them in one error.
func parseOptions(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	flags := pflag.NewFlagSet("controller", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.SortFlags = false
	flags.StringVar(&o.defaultPicker, "default-picker", "inference-system/inference-picker:9002",
		"`namespace/service:port` of the endpoint picker for pools that name none; empty for none")
	flags.StringVar(&o.hostSuffix, "host-suffix", "inference.internal",
		"what a pool's host ends in: <pool>.<namespace>.`suffix`")
	flags.StringVar(&o.clusterDomain, "cluster-domain", "cluster.local", "the cluster's `domain` in DNS")
	flags.StringVar(&o.rootNamespace, "istio-root-namespace", "istio-system", "Istio's root `namespace`, meshConfig.rootNamespace")
	flags.StringArrayVar(&o.allowHosts, "allow-host", nil,
		"allow pools a host beside their own, as `namespace=host` or namespace=*.domain, where namespace may be *; may be given often")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "",
		"`file` that says how to reach the API server; if empty, $KUBECONFIG, ~/.kube/config or the pod's own service account")
	flags.BoolVar(&o.leaderElect, "leader-elect", false, "act only while holding a lease, so that several replicas can run")
	flags.StringVar(&o.leaseNamespace, "leader-elect-namespace", "inference-system", "`namespace` of the lease")
	flags.BoolVar(&o.uninstall, "uninstall", false,
		"take back all that the controller wrote and end; waits until no controller holds the lease")
	flags.DurationVar(&o.drain, "drain", time.Minute,
		"how `long` what calls in flight go by stays at a waypoint after it was replaced; Istio's default drainDuration is 45s")
	flags.DurationVar(&o.watchWaypoints, "watch-waypoints", 5*time.Second,
		"`interval` at which waypoints are read for whether the calls to pools are picked, from 1s to 10s; 0 for never")
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
	if err := o.level.UnmarshalText([]byte(o.logLevel)); err != nil {
		invalid("log-level", "%q is none of debug, info, warn, error", o.logLevel)
	}
	return errors.Join(errs...)
}

// Waypoints that are read more often than each second have more to do with that than with calls. Calls are judged by
// the last 30 s, so readings must be closer than that.
const (
	minWatch = time.Second
	maxWatch = 10 * time.Second
)

func (o *options) settings() translate.Settings {
	return translate.Settings{HostSuffix: o.hostSuffix, ClusterDomain: o.clusterDomain, RootNamespace: o.rootNamespace, DefaultPicker: o.picker, HostClaims: o.claims}
}

// pickerNamespace is where what the controller makes for the picker is, with a picker or from when there was one.
func (o *options) pickerNamespace() string {
	if o.picker == nil {
		return o.leaseNamespace
	}
	return o.picker.Service.Namespace
}

// settle is how long a cluster that was written takes to be ready at a waypoint. istiod gathers changes for 100 ms after
// the last one, makes the configuration in up to a second where there are thousands of Services, and is asked once more.
const settle = 2 * time.Second

func (o *options) times() handover.Times { return handover.Times{Settle: settle, Drain: o.drain} }
