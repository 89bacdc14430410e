package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Reader is the service account that may read pickers' state, for users without a token of their own.
const Reader = "inference-reader"

// tokenSource finds the token for pickers, once.
type tokenSource func(context.Context) (string, error)

// tokens finds the user's own token. The picker asks the API server what the owner of the token may read. A user with a
// client certificate has no token, and uses one of the service account inference-reader, if he may create it.
func tokens(config *rest.Config, c client.Client, systemNamespace string) tokenSource {
	var once sync.Once
	var token string
	var err error
	return func(ctx context.Context) (string, error) {
		once.Do(func() {
			if token, err = ownToken(config); token == "" && err == nil {
				token, err = readersToken(ctx, c, systemNamespace)
			}
		})
		return token, err
	}
}

// ownToken is the bearer token that the kubeconfig, or its plugin, puts into the header Authorization; empty for none.
func ownToken(config *rest.Config) (string, error) {
	seen := &seenHeader{}
	wrapped, err := rest.HTTPWrappersForConfig(config, seen)
	if err != nil {
		return "", explained("read the kubeconfig", err)
	}
	request, err := http.NewRequest(http.MethodGet, "http://localhost/", nil)
	if err != nil {
		return "", err
	}
	if _, err := wrapped.RoundTrip(request); !errors.Is(err, errSeen) { //nolint:bodyclose // there is no response
		return "", explained("find the kubeconfig's token", err)
	}
	token, _ := strings.CutPrefix(seen.authorization, "Bearer ")
	if token == seen.authorization {
		return "", nil // a password, or nothing
	}
	return token, nil
}

// seenHeader is a transport that keeps a request's header and sends nothing.
type seenHeader struct{ authorization string }

var errSeen = errors.New("seen")

func (s *seenHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	s.authorization = r.Header.Get("Authorization")
	return nil, errSeen
}

func readersToken(ctx context.Context, c client.Client, namespace string) (string, error) {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: Reader}}
	seconds := int64(600) // the shortest that Kubernetes allows
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if err := c.SubResource("token").Create(ctx, account, request); err != nil {
		return "", fmt.Errorf("the kubeconfig has no token for the picker, and %w", explained("make one of service account "+namespace+"/"+Reader, err))
	}
	return request.Status.Token, nil
}
