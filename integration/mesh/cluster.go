package mesh

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/pki"
)

const (
	apiServerURL = "https://127.0.0.1:6443"
	etcdURL      = "http://127.0.0.1:2379"
	adminToken   = "administrator" // the API server listens inside the mesh's own namespace alone
	fieldOwner   = "integration-mesh"
)

// cluster is a real etcd and a real kube-apiserver, with RBAC. There is no controller manager and no kubelet; what a
// mesh needs of them is in machine.go.
type cluster struct {
	etcd, apiServer *process
	ca              *pki.Authority
	config          *rest.Config
	client          client.WithWatch
	dir             string
}

func startCluster(ctx context.Context, tools, dir, logs string, ca *pki.Authority) (*cluster, error) {
	c := &cluster{ca: ca, dir: dir}
	if err := c.writeFiles(); err != nil {
		return nil, err
	}
	var err error
	c.etcd, err = start(logs, program{name: "etcd", path: filepath.Join(tools, "etcd"), args: []string{
		"--data-dir=" + filepath.Join(dir, "etcd"), "--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level=warn",
	}})
	if err != nil {
		return c, err
	}
	if err := await(ctx, "etcd", answers(http.DefaultClient, etcdURL+"/health"), c.etcd); err != nil {
		return c, err
	}
	c.apiServer, err = start(logs, program{name: "kube-apiserver", path: filepath.Join(tools, "kube-apiserver"), args: c.apiServerArgs()})
	if err != nil {
		return c, err
	}
	c.config = &rest.Config{
		Host: apiServerURL, BearerToken: adminToken, QPS: -1, // no limit on the client's side
		TLSClientConfig: rest.TLSClientConfig{CAData: ca.PEM},
	}
	http, err := rest.HTTPClientFor(c.config)
	if err != nil {
		return c, fmt.Errorf("making the client of the API server: %w", err)
	}
	if err := await(ctx, "kube-apiserver", answers(http, apiServerURL+"/readyz"), c.apiServer, c.etcd); err != nil {
		return c, err
	}
	c.client, err = client.NewWithWatch(c.config, client.Options{Scheme: Scheme()})
	if err != nil {
		return c, fmt.Errorf("making the client of the API server: %w", err)
	}
	return c, nil
}

func (c *cluster) file(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) writeFiles() error {
	serving, err := c.ca.Server([]string{"localhost", "kubernetes.default.svc"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 96, 0, 1)})
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the key of service accounts: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the key of service accounts: %w", err)
	}
	publicDER, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encoding the public key of service accounts: %w", err)
	}
	files := map[string][]byte{
		"ca.crt":        c.ca.PEM,
		"apiserver.crt": serving.CertPEM,
		"apiserver.key": serving.KeyPEM,
		"accounts.key":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		"accounts.pub":  pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER}),
		"tokens.csv":    []byte(adminToken + `,administrator,administrator,"system:masters"` + "\n"),
	}
	files["kubeconfig"], err = c.kubeconfig(adminToken)
	if err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(c.file(name), content, 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return nil
}

func (c *cluster) apiServerArgs() []string {
	return []string{
		"--etcd-servers=" + etcdURL,
		"--secure-port=6443",
		"--bind-address=127.0.0.1",
		"--advertise-address=" + machineAddress,
		"--tls-cert-file=" + c.file("apiserver.crt"),
		"--tls-private-key-file=" + c.file("apiserver.key"),
		"--token-auth-file=" + c.file("tokens.csv"),
		"--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.file("accounts.pub"),
		"--service-account-signing-key-file=" + c.file("accounts.key"),
		"--service-cluster-ip-range=" + serviceRange,
		"--endpoint-reconciler-type=none",
		// Webhooks are called at the addresses of their pods, as there is no kube-proxy to take those of Services.
		"--enable-aggregator-routing=true",
		// It would wait for accounts that a controller manager makes.
		"--disable-admission-plugins=ServiceAccount",
		"--watch-cache=true",
	}
}

// kubeconfig writes down how to reach the API server with a token.
func (c *cluster) kubeconfig(token string) ([]byte, error) {
	config := clientcmdapi.NewConfig()
	config.Clusters["mesh"] = &clientcmdapi.Cluster{Server: apiServerURL, CertificateAuthorityData: c.ca.PEM}
	config.AuthInfos["user"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["mesh"] = &clientcmdapi.Context{Cluster: "mesh", AuthInfo: "user"}
	config.CurrentContext = "mesh"
	out, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("encoding a kubeconfig: %w", err)
	}
	return out, nil
}

// tokenOf is a fresh token of a service account.
func (c *cluster) tokenOf(ctx context.Context, namespace, account string) (string, error) {
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	request := &authenticationv1.TokenRequest{}
	if err := c.client.SubResource("token").Create(ctx, sa, request); err != nil {
		return "", fmt.Errorf("asking for a token of %s/%s: %w", namespace, account, err)
	}
	return request.Status.Token, nil
}

// kubeconfigOf writes a kubeconfig with a fresh token of a service account and returns its path. The account has the
// rights that the manifests give it and no more.
func (c *cluster) kubeconfigOf(ctx context.Context, namespace, account string) (string, error) {
	token, err := c.tokenOf(ctx, namespace, account)
	if err != nil {
		return "", err
	}
	content, err := c.kubeconfig(token)
	if err != nil {
		return "", err
	}
	path := c.file("kubeconfig-" + namespace + "-" + account)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return "", fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return path, nil
}

// apply writes objects by server-side apply, in their order, and waits for definitions to be served before it goes on.
func (c *cluster) apply(ctx context.Context, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		o := o.DeepCopy() // the client writes what it gets back into it
		if err := c.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(o), client.FieldOwner(fieldOwner), client.ForceOwnership); err != nil {
			return fmt.Errorf("applying %s %s/%s: %w", o.GetKind(), o.GetNamespace(), o.GetName(), err)
		}
	}
	for _, o := range objects {
		if o.GetKind() == "CustomResourceDefinition" {
			if err := c.awaitEstablished(ctx, o.GetName()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *cluster) awaitEstablished(ctx context.Context, name string) error {
	return await(ctx, "CustomResourceDefinition "+name, func(ctx context.Context) error {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := c.client.Get(ctx, client.ObjectKey{Name: name}, &crd); err != nil {
			return err
		}
		for _, condition := range crd.Status.Conditions {
			if condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue {
				return nil
			}
		}
		return errors.New("not established")
	}, c.apiServer)
}

// answers checks that a URL answers 200.
func answers(client *http.Client, url string) func(context.Context) error {
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if response.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(io.LimitReader(response.Body, 512))
			return fmt.Errorf("%s: %s", response.Status, text)
		}
		return nil
	}
}

// Decode reads the objects of a YAML stream. Empty documents are skipped.
func Decode(stream []byte) ([]*unstructured.Unstructured, error) {
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(stream), 4096)
	var out []*unstructured.Unstructured
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decoding YAML: %w", err)
		}
		if len(object.Object) > 0 {
			out = append(out, object)
		}
	}
}
