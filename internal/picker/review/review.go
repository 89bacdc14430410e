// Package review serves HTTP requests only to users who may read the answer: it has the API server review the request's
// token and the user's rights (TokenReview, SubjectAccessReview). It must not know the answers.
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

// TokenHeader carries the caller's token behind "Bearer ", as Authorization does. The API server removes Authorization
// from requests that kubectl sends to pods through it.
const TokenHeader = "Inference-Waypoint-Authorization"

// Limits on the load that unknown callers can put on the API server.
const (
	remembered = 10 * time.Second // how long a verdict is kept, so that a page that refreshes itself asks seldom
	verdicts   = 1024             // how many verdicts are kept
	perSecond  = 20               // how many reviews are made a second, and in a burst
)

// Reviewer asks the API server. Its methods may be called from several goroutines.
type Reviewer struct {
	client client.Client
	limit  *rate.Limiter
	now    func() time.Time

	mu    sync.Mutex
	known map[verdictKey]verdict
}

// verdictKey is a hash of a token and the access that was asked for. Tokens are not kept.
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

// errBusy is returned where the limit on reviews is reached.
var errBusy = errors.New("too many access reviews are under way; try again in a second")

// New makes a reviewer that asks with the program's own account, which needs the rights to create tokenreviews and
// subjectaccessreviews.
func New(config *rest.Config) (*Reviewer, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(authenticationv1.AddToScheme(scheme), authorizationv1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("building the scheme of reviews: %w", err)
	}
	// By default the client makes 5 requests a second and queues all others. Here r.limit refuses them instead.
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

// Handler passes a request to next if its token's user has the access that access returns for the request.
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
			http.Error(w, "asking the API server for the user's rights: "+err.Error(), http.StatusServiceUnavailable)
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

// Review returns nil if the token's user has the access, a *Refusal if not, and another error if the API server cannot
// tell.
func (r *Reviewer) Review(ctx context.Context, token string, access authorizationv1.ResourceAttributes) error {
	if token == "" {
		return &Refusal{http.StatusUnauthorized, "no token: kubectl inference sends one; a program must send its service account's in the header " + TokenHeader}
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
		return &Refusal{http.StatusUnauthorized, "the token is not valid in this cluster, or has expired"}
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
