// Package cluster runs a real etcd and a real kube-apiserver with RBAC, makes credentials for them, and applies and awaits
// objects. It knows nothing of Istio, and runs no controllers and no pods.
package cluster

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/pki"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/sandbox"
)

// NodeName is the name of a pod's node. Each pod has a node of its own, so that a test can lose one with its node.
func NodeName(p *corev1.Pod) string { return p.Namespace + "." + p.Name + ".machine" }

const (
	apiServerURL = "https://127.0.0.1:6443"
	etcdURL      = "http://127.0.0.1:2379"
)

// Cluster is a running API server with its etcd.
type Cluster struct {
	// Client has all rights on the API server.
	Client client.WithWatch
	// Config is the configuration of a client with all rights on the API server.
	Config *rest.Config
	// CA signs the API server's certificate and the identities of workloads.
	CA *pki.Authority

	etcd, apiServer *process.Process
	dir             string
}

// Start starts a cluster that keeps its files in an existing directory. On failure it returns the error together with the
// parts that run; the caller must stop them.
func Start(ctx context.Context, tools, dir, logs string, ca *pki.Authority) (*Cluster, error) {
	c := &Cluster{CA: ca, dir: dir}
	if err := c.writeFiles(); err != nil {
		return nil, err
	}
	var err error
	c.etcd, err = process.Start(logs, process.Program{Name: "etcd", Path: filepath.Join(tools, "etcd"), Args: []string{
		"--data-dir=" + filepath.Join(dir, "etcd"), "--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level=warn",
	}})
	if err != nil {
		return c, err
	}
	if err := process.Await(ctx, "etcd", process.Answers(http.DefaultClient, etcdURL+"/health"), c.etcd); err != nil {
		return c, err
	}
	c.apiServer, err = process.Start(logs, process.Program{Name: "kube-apiserver", Path: filepath.Join(tools, "kube-apiserver"), Args: c.apiServerArgs()})
	if err != nil {
		return c, err
	}
	c.Config = &rest.Config{
		Host: apiServerURL, BearerToken: adminToken, QPS: -1, // no limit on the client's side
		TLSClientConfig: rest.TLSClientConfig{CAData: ca.PEM},
	}
	http, err := rest.HTTPClientFor(c.Config)
	if err != nil {
		return c, fmt.Errorf("making the client of the API server: %w", err)
	}
	if err := process.Await(ctx, "kube-apiserver", process.Answers(http, apiServerURL+"/readyz"), c.apiServer, c.etcd); err != nil {
		return c, err
	}
	c.Client, err = client.NewWithWatch(c.Config, client.Options{Scheme: manifest.Scheme()})
	if err != nil {
		return c, fmt.Errorf("making the client of the API server: %w", err)
	}
	return c, nil
}

func (c *Cluster) apiServerArgs() []string {
	return []string{
		"--etcd-servers=" + etcdURL,
		"--secure-port=6443",
		"--bind-address=127.0.0.1",
		"--advertise-address=" + sandbox.NodeAddress,
		"--tls-cert-file=" + c.file("apiserver.crt"),
		"--tls-private-key-file=" + c.file("apiserver.key"),
		"--token-auth-file=" + c.file("tokens.csv"),
		"--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.file("accounts.pub"),
		"--service-account-signing-key-file=" + c.file("accounts.key"),
		"--service-cluster-ip-range=" + sandbox.ServiceRange,
		"--endpoint-reconciler-type=none",
		// kube-apiserver calls webhooks at their pods' addresses, as no kube-proxy routes those of Services.
		"--enable-aggregator-routing=true",
		// The plugin would wait for service accounts that a controller manager makes.
		"--disable-admission-plugins=ServiceAccount",
		"--watch-cache=true",
	}
}

// Stop stops the API server and then etcd.
func (c *Cluster) Stop() {
	for _, p := range []*process.Process{c.apiServer, c.etcd} {
		if p != nil {
			p.Stop(2 * time.Second)
		}
	}
}
