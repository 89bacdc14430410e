package review

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// server answers reviews: token "ann" is of a user who may read in namespace models, and token "down" meets a server that
// does not answer.
func server(t *testing.T, asked *int) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(authenticationv1.AddToScheme(scheme), authorizationv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(_ context.Context, _ client.WithWatch, o client.Object, _ ...client.CreateOption) error {
			*asked++
			switch o := o.(type) {
			case *authenticationv1.TokenReview:
				if o.Spec.Token == "down" {
					return errors.New("no route")
				}
				o.Status.Authenticated = o.Spec.Token == "ann"
				o.Status.User = authenticationv1.UserInfo{Username: "ann", Groups: []string{"people"}, Extra: map[string]authenticationv1.ExtraValue{"k": {"v"}}}
			case *authorizationv1.SubjectAccessReview:
				s := o.Spec
				o.Status.Allowed = s.User == "ann" && s.Groups[0] == "people" && s.Extra["k"][0] == "v" && s.ResourceAttributes.Namespace == "models"
			}
			return nil
		},
	}).Build()
}

func TestHandler(t *testing.T) {
	tests := map[string]struct {
		header, token, namespace string
		want                     int
		says                     string
	}{
		"a user who may":              {TokenHeader, "ann", "models", 200, "served"},
		"the usual header":            {"Authorization", "ann", "models", 200, "served"},
		"another's namespace":         {TokenHeader, "ann", "shop", 403, "ann may not get inferencepools/state in namespace shop"},
		"all namespaces":              {TokenHeader, "ann", "", 403, "in all namespaces"},
		"a token of nobody":           {TokenHeader, "forged", "models", 401, "not valid in this cluster"},
		"no token":                    {"X", "ann", "models", 401, TokenHeader},
		"a server that does not talk": {TokenHeader, "down", "models", 503, "no route"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			asked := 0
			r := newReviewer(server(t, &asked), time.Now)
			h := r.Handler(func(*http.Request) authorizationv1.ResourceAttributes {
				return authorizationv1.ResourceAttributes{Verb: "get", Resource: "inferencepools", Subresource: "state", Namespace: tt.namespace}
			}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("served")) }))
			request := httptest.NewRequest(http.MethodGet, "/", nil)
			request.Header.Set(tt.header, "Bearer "+tt.token)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, request)
			if w.Code != tt.want || !strings.Contains(w.Body.String(), tt.says) {
				t.Errorf("got %d %q, want %d and %q", w.Code, w.Body, tt.want, tt.says)
			}
		})
	}
}

// A verdict is remembered for a while, for this token and this access alone; a failure to ask is not.
func TestVerdictsAreRemembered(t *testing.T) {
	asked, now := 0, time.Unix(0, 0)
	r := newReviewer(server(t, &asked), func() time.Time { return now })
	models := authorizationv1.ResourceAttributes{Namespace: "models"}
	for range 3 {
		if err := r.Review(t.Context(), "ann", models); err != nil {
			t.Fatal(err)
		}
	}
	if asked != 2 {
		t.Errorf("asked %d times, want one review of each kind", asked)
	}
	if r.Review(t.Context(), "ann", authorizationv1.ResourceAttributes{Namespace: "shop"}) == nil {
		t.Error("what is allowed in one namespace is allowed in another")
	}
	now = now.Add(remembered)
	before := asked
	if err := r.Review(t.Context(), "ann", models); err != nil || asked == before {
		t.Errorf("after a while: %v, asked %d times more", err, asked-before)
	}
	for range 2 {
		before := asked
		if r.Review(t.Context(), "down", models) == nil || asked == before {
			t.Error("that the server did not answer is remembered")
		}
	}
}

// Callers without rights cannot make the picker ask the API server without limit.
func TestReviewsAreLimited(t *testing.T) {
	asked := 0
	r := newReviewer(server(t, &asked), time.Now)
	var last error
	for range 1000 {
		last = r.Review(t.Context(), strings.Repeat("x", asked+1), authorizationv1.ResourceAttributes{})
	}
	if !errors.Is(last, errBusy) || asked > 200 {
		t.Errorf("the last of 1000 got %v, and the server was asked %d times", last, asked)
	}
}

// All reviews that the limit allows at once reach the API server at once: the client delays none.
func TestClientHoldsNoReviewBack(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","status":{"authenticated":false}}`
		if r.Method == http.MethodGet { // the client learns first what there is
			answer = `{"apiVersion":"v1","kind":"APIResourceList","groupVersion":"authentication.k8s.io/v1","resources":[{"name":"tokenreviews","kind":"TokenReview"}]}`
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(answer))
	}))
	defer api.Close()
	r, err := New(&rest.Config{Host: api.URL})
	if err != nil {
		t.Fatal(err)
	}
	// A client with a limit fails at once where a request would wait for longer than this.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for i := range perSecond {
		var refusal *Refusal
		err := r.Review(ctx, fmt.Sprint("forged-", i), authorizationv1.ResourceAttributes{})
		if !errors.As(err, &refusal) || refusal.Status != http.StatusUnauthorized {
			t.Fatalf("review %d: got %v, want a %d", i, err, http.StatusUnauthorized)
		}
	}
}
