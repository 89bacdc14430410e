// Package cluster reads the objects that concern InferencePools from the API server, for all commands, and calls pickers
// through the API server. It must not write or judge anything. If it cannot read objects, it returns a Problem instead, so
// that a command can name what it does not know and go on.
package cluster

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/go-logr/logr"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Cluster is a connection to an API server.
type Cluster struct {
	// SystemNamespace is where Inference Waypoint itself is installed.
	SystemNamespace string

	client    client.Client
	discovery discovery.DiscoveryInterface
	http      *http.Client
	base      *url.URL // of the API server
	token     tokenSource
}

// Connect prepares a connection from kubectl's own flags. It sends no request yet.
func Connect(flags *genericclioptions.ConfigFlags, systemNamespace string) (*Cluster, error) {
	config, err := flags.ToRESTConfig()
	if err != nil {
		return nil, explained("read the kubeconfig", err)
	}
	return New(config, systemNamespace)
}

// New prepares a connection from a client configuration.
func New(config *rest.Config, systemNamespace string) (*Cluster, error) {
	ctrllog.SetLogger(logr.Discard()) // without a logger the client library prints a warning with a stack
	config = rest.CopyConfig(config)
	config.QPS = -1 // the API server limits us; a client's own limit only adds delay
	config.UserAgent = "kubectl-inference"
	config.WarningHandler = rest.NoWarnings{}
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, explained("connect to the API server", err)
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, explained("connect to the API server", err)
	}
	kinds, err := scheme()
	if err != nil {
		return nil, err
	}
	reader, err := client.New(config, client.Options{HTTPClient: web, Scheme: kinds})
	if err != nil {
		return nil, explained("connect to the API server", err)
	}
	found, err := discovery.NewDiscoveryClientForConfigAndClient(config, web)
	if err != nil {
		return nil, explained("connect to the API server", err)
	}
	return &Cluster{
		SystemNamespace: systemNamespace, client: reader, discovery: found, http: web, base: base,
		token: tokens(config, reader, systemNamespace),
	}, nil
}

func scheme() (*runtime.Scheme, error) {
	out := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, authenticationv1.AddToScheme, apiextensionsv1.AddToScheme, inferencev1.Install, gatewayv1.Install,
		networkingv1.AddToScheme, networkingv1alpha3.AddToScheme,
	} {
		if err := add(out); err != nil {
			return nil, fmt.Errorf("building the scheme: %w", err)
		}
	}
	return out, nil
}

// Version reads the API server's version. A problem means that none answers.
func (c *Cluster) Version() (*version.Info, *Problem) {
	out, err := c.discovery.ServerVersion()
	return out, explained("read the API server's version", err)
}
