package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const adminToken = "administrator" // the API server listens inside the mesh's network namespace only

func (c *Cluster) file(name string) string { return filepath.Join(c.dir, name) }

// Kubeconfig is the path of a kubeconfig with all rights, valid inside the mesh's namespaces.
func (c *Cluster) Kubeconfig() string { return c.file("kubeconfig") }

func (c *Cluster) writeFiles() error {
	serving, err := c.CA.Server([]string{"localhost", "kubernetes.default.svc"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 96, 0, 1)})
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
		"ca.crt":        c.CA.PEM,
		"apiserver.crt": serving.CertPEM,
		"apiserver.key": serving.KeyPEM,
		"accounts.key":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		"accounts.pub":  pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER}),
		"tokens.csv":    []byte(adminToken + `,administrator,administrator,"system:masters"` + "\n"),
	}
	files["kubeconfig"], err = c.encodeKubeconfig(adminToken)
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

// encodeKubeconfig returns a kubeconfig for the API server with a token.
func (c *Cluster) encodeKubeconfig(token string) ([]byte, error) {
	config := clientcmdapi.NewConfig()
	config.Clusters["mesh"] = &clientcmdapi.Cluster{Server: apiServerURL, CertificateAuthorityData: c.CA.PEM}
	config.AuthInfos["user"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["mesh"] = &clientcmdapi.Context{Cluster: "mesh", AuthInfo: "user"}
	config.CurrentContext = "mesh"
	out, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("encoding a kubeconfig: %w", err)
	}
	return out, nil
}

// Token returns a fresh token of a service account.
func (c *Cluster) Token(ctx context.Context, namespace, account string) (string, error) {
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	request := &authenticationv1.TokenRequest{}
	if err := c.Client.SubResource("token").Create(ctx, sa, request); err != nil {
		return "", fmt.Errorf("asking for a token of %s/%s: %w", namespace, account, err)
	}
	return request.Status.Token, nil
}

// KubeconfigOf writes a kubeconfig with a fresh token of a service account and returns its path. The account has only the
// rights that the manifests give it.
func (c *Cluster) KubeconfigOf(ctx context.Context, namespace, account string) (string, error) {
	token, err := c.Token(ctx, namespace, account)
	if err != nil {
		return "", err
	}
	content, err := c.encodeKubeconfig(token)
	if err != nil {
		return "", err
	}
	path := c.file("kubeconfig-" + namespace + "-" + account)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return "", fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return path, nil
}
