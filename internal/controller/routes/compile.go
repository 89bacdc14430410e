package routes

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
)

// Compile translates a route into Envoy's routes. It leaves out and reports what is not supported: a match whose regular
// expression does not compile matches no call, a rule with an unsupported filter answers 500, and the share of the calls
// for a backend that does not exist is answered with 500.
func Compile(route *gatewayv1.HTTPRoute, resolve Resolve) Compiled {
	c := &compiler{Compiled: Compiled{Route: route}, resolve: resolve}
	for i, rule := range route.Spec.Rules {
		c.where = fmt.Sprintf("rule %d", i+1)
		c.rule(i, rule)
	}
	return c.Compiled
}

type compiler struct {
	Compiled
	resolve Resolve
	where   string // the current rule, for messages
}

// drop reports a part that is left out. The Gateway API requires such messages to begin with "Dropped Rule".
func (c *compiler) drop(format string, args ...any) {
	c.Dropped = append(c.Dropped, fmt.Sprintf("Dropped Rule: "+c.where+": "+format, args...))
}

func (c *compiler) rule(n int, rule gatewayv1.HTTPRouteRule) {
	template := envoypatch.Route{}
	problem := c.fill(&template, rule)
	if problem == "" {
		if err := template.Check(); err != nil {
			problem = err.Error()
		}
	}
	if problem != "" {
		c.drop("%s: its calls are answered with status 500", problem)
		template = envoypatch.Route{Status: http.StatusInternalServerError}
	}
	matches := rule.Matches
	if len(matches) == 0 {
		matches = []gatewayv1.HTTPRouteMatch{{}}
	}
	for i, m := range matches {
		out := template
		out.Name = fmt.Sprintf("%s/%s/%d/%d", c.Route.Namespace, c.Route.Name, n, i)
		out.Match = match(m)
		if err := out.Check(); err != nil {
			c.drop("match %d: %v", i+1, err)
			continue
		}
		c.pieces = append(c.pieces, piece{Route: out, from: c.Route, rule: n, match: i})
	}
}

// fill translates a rule's filters, timeouts and backends, or reports why it cannot.
func (c *compiler) fill(out *envoypatch.Route, rule gatewayv1.HTTPRouteRule) (problem string) {
	for _, f := range rule.Filters {
		if problem := c.filter(out, f); problem != "" {
			return problem
		}
	}
	if rule.SessionPersistence != nil {
		c.drop("sessionPersistence is not supported: the endpoint picker keeps sessions")
	}
	if problem := times(out, rule); problem != "" {
		return problem
	}
	if out.Redirect != nil {
		return ""
	}
	var sum uint64
	for _, b := range rule.BackendRefs {
		if to := c.destination(b); to.Weight > 0 {
			out.To = append(out.To, to)
			sum += uint64(to.Weight)
		}
	}
	if sum == 0 {
		out.Status = http.StatusInternalServerError
		if len(rule.BackendRefs) > 0 {
			c.drop("the weights of its backends sum to 0: its calls are answered with status 500")
		}
	}
	return ""
}

func (c *compiler) destination(ref gatewayv1.HTTPBackendRef) envoypatch.Destination {
	out, problem := c.resolve(c.Route.Namespace, ref.BackendObjectReference)
	if problem != nil {
		c.Unresolved = append(c.Unresolved, Problem{problem.Reason, c.where + ": " + problem.Message})
		out = envoypatch.Destination{}
	}
	out.Weight = 1
	if ref.Weight != nil {
		out.Weight = uint32(max(*ref.Weight, 0))
	}
	for _, f := range ref.Filters {
		switch {
		case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
			out.Request = headers(f.RequestHeaderModifier)
		case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
			out.Response = headers(f.ResponseHeaderModifier)
		default:
			c.drop("backend %s: filter %s is not supported: its calls are answered with status 500", ref.Name, f.Type)
			out = envoypatch.Destination{Weight: out.Weight}
			return out
		}
	}
	return out
}

func (c *compiler) filter(out *envoypatch.Route, f gatewayv1.HTTPRouteFilter) (problem string) {
	switch {
	case f.Type == gatewayv1.HTTPRouteFilterRequestHeaderModifier && f.RequestHeaderModifier != nil:
		out.Request = headers(f.RequestHeaderModifier)
	case f.Type == gatewayv1.HTTPRouteFilterResponseHeaderModifier && f.ResponseHeaderModifier != nil:
		out.Response = headers(f.ResponseHeaderModifier)
	case f.Type == gatewayv1.HTTPRouteFilterURLRewrite && f.URLRewrite != nil:
		out.Rewrite = envoypatch.Rewrite{Host: hostname(f.URLRewrite.Hostname), Path: path(f.URLRewrite.Path)}
	case f.Type == gatewayv1.HTTPRouteFilterRequestRedirect && f.RequestRedirect != nil:
		out.Redirect = redirect(f.RequestRedirect)
	case f.Type == gatewayv1.HTTPRouteFilterRequestMirror && f.RequestMirror != nil:
		c.mirror(out, f.RequestMirror)
	default:
		return fmt.Sprintf("filter %s is not supported", f.Type)
	}
	return ""
}

// mirror sends copies of calls to a backend. No picker picks for copies: the waypoint spreads them by load.
func (c *compiler) mirror(out *envoypatch.Route, f *gatewayv1.HTTPRequestMirrorFilter) {
	to, problem := c.resolve(c.Route.Namespace, f.BackendRef)
	if problem != nil {
		c.Unresolved = append(c.Unresolved, Problem{problem.Reason, c.where + ": mirror: " + problem.Message})
		return
	}
	m := envoypatch.Mirror{Cluster: to.Cluster, Numerator: 100, Denominator: 100}
	switch {
	case f.Percent != nil:
		m.Numerator = uint32(max(*f.Percent, 0))
	case f.Fraction != nil:
		m.Numerator = uint32(max(f.Fraction.Numerator, 0))
		if f.Fraction.Denominator != nil {
			m.Denominator = uint32(max(*f.Fraction.Denominator, 1))
		}
	}
	out.Mirrors = append(out.Mirrors, m)
}

// times reads a rule's timeouts and retries.
func times(out *envoypatch.Route, rule gatewayv1.HTTPRouteRule) (problem string) {
	var backoff time.Duration
	read := func(what string, from *gatewayv1.Duration, into *time.Duration) {
		if from == nil || problem != "" {
			return
		}
		d, err := time.ParseDuration(string(*from))
		if err != nil || d < 0 {
			problem = fmt.Sprintf("%s %q is not a duration", what, *from)
			return
		}
		*into = d
	}
	if t := rule.Timeouts; t != nil {
		read("timeouts.request", t.Request, &out.Timeout)
		read("timeouts.backendRequest", t.BackendRequest, &out.TryTimeout)
	}
	if r := rule.Retry; r != nil {
		read("retry.backoff", r.Backoff, &backoff)
		out.Retry = &envoypatch.Retry{Attempts: 1, Backoff: backoff}
		if r.Attempts != nil {
			out.Retry.Attempts = uint32(max(*r.Attempts, 0))
		}
		for _, code := range r.Codes {
			out.Retry.Codes = append(out.Retry.Codes, uint32(code))
		}
	}
	return problem
}

func match(m gatewayv1.HTTPRouteMatch) envoypatch.Match {
	out := envoypatch.Match{Path: envoypatch.PathMatch{Value: "/"}}
	if m.Path != nil {
		if m.Path.Value != nil {
			out.Path.Value = *m.Path.Value
		}
		switch typeOf(m.Path.Type) {
		case gatewayv1.PathMatchExact:
			out.Path.Kind = envoypatch.PathExact
		case gatewayv1.PathMatchRegularExpression:
			out.Path.Kind = envoypatch.PathRegex
		}
	}
	if m.Method != nil {
		out.Method = string(*m.Method)
	}
	for _, h := range m.Headers {
		// Of several entries with one name, in any case, only the first counts (HTTPRouteMatch.headers).
		if !slices.ContainsFunc(out.Headers, func(v envoypatch.ValueMatch) bool { return strings.EqualFold(v.Name, string(h.Name)) }) {
			out.Headers = append(out.Headers, envoypatch.ValueMatch{
				Name: string(h.Name), Value: h.Value, Regex: typeOf(h.Type) == gatewayv1.HeaderMatchRegularExpression,
			})
		}
	}
	for _, q := range m.QueryParams {
		if !slices.ContainsFunc(out.Query, func(v envoypatch.ValueMatch) bool { return v.Name == string(q.Name) }) {
			out.Query = append(out.Query, envoypatch.ValueMatch{
				Name: string(q.Name), Value: q.Value, Regex: typeOf(q.Type) == gatewayv1.QueryParamMatchRegularExpression,
			})
		}
	}
	return out
}

func typeOf[T ~string](t *T) T {
	if t == nil {
		return ""
	}
	return *t
}

func headers(f *gatewayv1.HTTPHeaderFilter) envoypatch.HeaderChanges {
	list := func(in []gatewayv1.HTTPHeader) []envoypatch.Header {
		var out []envoypatch.Header
		for _, h := range in {
			out = append(out, envoypatch.Header{Name: string(h.Name), Value: h.Value})
		}
		return out
	}
	return envoypatch.HeaderChanges{Set: list(f.Set), Add: list(f.Add), Remove: f.Remove}
}

func hostname(h *gatewayv1.PreciseHostname) string {
	if h == nil {
		return ""
	}
	return string(*h)
}

func path(p *gatewayv1.HTTPPathModifier) envoypatch.PathRewrite {
	switch {
	case p == nil:
		return envoypatch.PathRewrite{}
	case p.Type == gatewayv1.FullPathHTTPPathModifier && p.ReplaceFullPath != nil:
		full := *p.ReplaceFullPath
		if !strings.HasPrefix(full, "/") {
			full = "/" + full
		}
		return envoypatch.PathRewrite{Full: full}
	default:
		return envoypatch.PathRewrite{Prefix: p.ReplacePrefixMatch}
	}
}

func redirect(f *gatewayv1.HTTPRequestRedirectFilter) *envoypatch.Redirect {
	out := &envoypatch.Redirect{Host: hostname(f.Hostname), Path: path(f.Path)}
	if f.Scheme != nil {
		out.Scheme = *f.Scheme
	}
	if f.StatusCode != nil {
		out.Status = *f.StatusCode
	}
	// The location has no port if the port is the scheme's default (HTTPRequestRedirectFilter.port).
	if f.Port != nil && (out.Scheme != "http" || *f.Port != 80) && (out.Scheme != "https" || *f.Port != 443) {
		out.Port = uint32(*f.Port)
	}
	return out
}
