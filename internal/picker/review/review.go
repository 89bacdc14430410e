// Package review lets those read who may: it asks the API server who a request's token belongs to, and whether that user
// may do what the request asks for (TokenReview, SubjectAccessReview).
package review

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TokenHeader carries the caller's token behind "Bearer ", as Authorization does. The API server, by which kubectl reaches
// pods, keeps that one for itself.
const TokenHeader = "Inference-Waypoint-Authorization"

// Limits of what unknown callers can bring about at the API server.
const (
	remembered = 10 * time.Second // a verdict, so that a page that is looked at asks seldom
	verdicts   = 1024             // at once
	perSecond  = 20               // reviews, beside a burst of as many
)

// Reviewer asks the API server. Its methods may be called from several goroutines.
type Reviewer struct {
	client client.Client
	limit  *rate.Limiter
	now    func() time.Time

	mu    sync.Mutex
	known map[verdictKey]verdict
}

// verdictKey is a hash of a token and what it was shown for. Tokens are not kept.
type verdictKey [sha256.Size]byte

type verdict struct {
	err   error // a *Refusal, or nil
	until time.Time
}

// Refusal is why a request may not be served.
type Refusal struct {
	Status int // 401 or 403
	Reason string
}

func (r *Refusal) Error() string { return r.Reason }

// errBusy is told where the API server was asked too often.
var errBusy = errors.New("too many requests for access are under way; try again in a second")

// New makes a reviewer that asks as the program's own account, which needs to create tokenreviews and
// subjectaccessreviews.
func New(config *rest.Config) (*Reviewer, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(authenticationv1.AddToScheme(scheme), authorizationv1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("building the scheme of reviews: %w", err)
	}
	// By default the client lets 5 requests a second go and has all others wait, in one queue: the limit here refuses them.
	unlimited := rest.CopyConfig(config)
	unlimited.QPS = -1
	c, err := client.New(unlimited, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("making the client for reviews: %w", err)
	}
	return newReviewer(c, time.Now), nil
}

func newReviewer(c client.Client, now func() time.Time) *Reviewer {
	return &Reviewer{client: c, limit: rate.NewLimiter(perSecond, perSecond), now: now, known: map[verdictKey]verdict{}}
}

// Handler serves a request where its token's user may do what access says that it asks for.
func (r *Reviewer) Handler(access func(*http.Request) authorizationv1.ResourceAttributes, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		err := r.Review(request.Context(), tokenOf(request), access(request))
		var refusal *Refusal
		switch {
		case err == nil:
			next.ServeHTTP(w, request)
		case errors.As(err, &refusal):
			http.Error(w, refusal.Reason, refusal.Status)
		case errors.Is(err, errBusy):
			http.Error(w, err.Error(), http.StatusTooManyRequests)
		default:
			http.Error(w, "the API server cannot be asked who may read: "+err.Error(), http.StatusServiceUnavailable)
		}
	})
}

func tokenOf(r *http.Request) string {
	for _, header := range []string{TokenHeader, "Authorization"} {
		if token, ok := strings.CutPrefix(r.Header.Get(header), "Bearer "); ok {
			return token
		}
	}
	return ""
}

// Review is nil where the token's user may do what is asked for. It is a *Refusal where he may not, and another error
// where nobody can say.
func (r *Reviewer) Review(ctx context.Context, token string, access authorizationv1.ResourceAttributes) error {
	if token == "" {
		return &Refusal{http.StatusUnauthorized, "no token: kubectl inference sends one, and a program sends its service account's in the header " + TokenHeader}
	}
	key := verdictKey(sha256.Sum256(fmt.Appendf(nil, "%q %+v", token, access)))
	if known, ok := r.remembered(key); ok {
		return known
	}
	if !r.limit.Allow() {
		return errBusy
	}
	err := r.ask(ctx, token, access)
	var refusal *Refusal
	if err == nil || errors.As(err, &refusal) {
		r.remember(key, err)
	}
	return err
}

func (r *Reviewer) ask(ctx context.Context, token string, access authorizationv1.ResourceAttributes) error {
	who := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
	if err := r.client.Create(ctx, who); err != nil {
		return fmt.Errorf("reviewing a token: %w", err)
	}
	if !who.Status.Authenticated {
		return &Refusal{http.StatusUnauthorized, "the token is none of this cluster's, or no longer valid"}
	}
	user := who.Status.User
	may := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extraOf(user.Extra), ResourceAttributes: &access,
	}}
	if err := r.client.Create(ctx, may); err != nil {
		return fmt.Errorf("reviewing access: %w", err)
	}
	if !may.Status.Allowed {
		where := "in namespace " + access.Namespace
		if access.Namespace == "" {
			where = "in all namespaces"
		}
		return &Refusal{http.StatusForbidden, fmt.Sprintf("%s may not %s %s/%s %s", user.Username, access.Verb, access.Resource, access.Subresource, where)}
	}
	return nil
}

func extraOf(extra map[string]authenticationv1.ExtraValue) map[string]authorizationv1.ExtraValue {
	out := map[string]authorizationv1.ExtraValue{}
	for k, v := range extra {
		out[k] = authorizationv1.ExtraValue(v)
	}
	return out
}

func (r *Reviewer) remembered(key verdictKey) (error, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.known[key]
	return v.err, ok && r.now().Before(v.until)
}

func (r *Reviewer) remember(key verdictKey, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= verdicts {
		clear(r.known)
	}
	r.known[key] = verdict{err, r.now().Add(remembered)}
}
