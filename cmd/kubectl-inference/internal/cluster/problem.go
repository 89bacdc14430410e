package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Cause is why something could not be read.
type Cause string

// The causes. Other is any other error.
const (
	NotInstalled Cause = "NotInstalled" // the cluster does not have the kind
	NotPermitted Cause = "NotPermitted"
	NotReached   Cause = "NotReached" // no API server answers
	NoConfig     Cause = "NoConfig"   // the kubeconfig names no API server
	Other        Cause = "Other"
)

// Problem is an error of the API server as one line of text for people, with a cause that decides what to do next.
type Problem struct {
	Cause Cause
	Text  string
}

func (p *Problem) Error() string { return p.Text }

// Next is what to do about the problem.
func (p *Problem) Next() string {
	switch p.Cause {
	case NotInstalled:
		return "kubectl inference doctor"
	case NotPermitted:
		return "ask for the right to it, or use an account that has it: kubectl auth whoami"
	case NotReached:
		return "kubectl cluster-info, and see kubectl config get-contexts"
	case NoConfig:
		return "kubectl config get-contexts"
	default:
		return ""
	}
}

// ProblemOf turns an error into a Problem.
func ProblemOf(err error) *Problem { return explained("go on", err) }

// explained turns an error into a Problem. Done is the failed action, such as "list pods".
func explained(done string, err error) *Problem {
	var known *Problem
	var network *net.OpError
	var request *url.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case clientcmd.IsEmptyConfig(err), clientcmd.IsConfigurationInvalid(err), clientcmd.IsContextNotFound(err):
		return &Problem{NoConfig, "the kubeconfig does not name an API server: " + oneLine(err)}
	case notInstalled(err):
		return &Problem{NotInstalled, fmt.Sprintf("cannot %s: the cluster does not know the kind", done)}
	case apierrors.IsForbidden(err):
		return &Problem{NotPermitted, fmt.Sprintf("not permitted to %s", done)}
	case apierrors.IsUnauthorized(err):
		return &Problem{NotPermitted, "the API server does not accept the credentials (401)"}
	case errors.As(err, &network), errors.As(err, &request), errors.Is(err, context.DeadlineExceeded):
		return &Problem{NotReached, "the API server does not answer: " + oneLine(rootOf(err))}
	default:
		return &Problem{Other, fmt.Sprintf("cannot %s: %s", done, oneLine(err))}
	}
}

func notInstalled(err error) bool {
	var discovered *apiutil.ErrResourceDiscoveryFailed
	var group *discovery.ErrGroupDiscoveryFailed
	return meta.IsNoMatchError(err) || errors.As(err, &discovered) && discovered != nil && allNotFound(*discovered) ||
		errors.As(err, &group) && allNotFound(group.Groups)
}

func allNotFound[K comparable](of map[K]error) bool {
	for _, err := range of {
		if !apierrors.IsNotFound(err) {
			return false
		}
	}
	return len(of) > 0
}

// rootOf is the innermost error, without the URL and method of the request.
func rootOf(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		return request.Err
	}
	return err
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
