package envoypatch

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// Match matches a call that all of its parts match. The zero value matches every call.
type Match struct {
	Path           PathMatch
	Method         string // empty for any
	Headers, Query []ValueMatch
}

// PathKind is how a path is compared.
type PathKind int

// The kinds of a PathMatch. A prefix matches whole elements of the path: /v1 does not match /v12.
const (
	PathPrefix PathKind = iota
	PathExact
	PathRegex
)

// PathMatch compares the path without its query. An empty prefix matches every path.
type PathMatch struct {
	Kind  PathKind
	Value string
}

// ValueMatch compares the value of a header or of a query parameter: exactly, or the whole value with a regular expression.
type ValueMatch struct {
	Name, Value string
	Regex       bool
}

func (m Match) build() (*routev3.RouteMatch, error) {
	out := &routev3.RouteMatch{}
	switch value := m.Path.Value; {
	case m.Path.Kind == PathExact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: value}
	case m.Path.Kind == PathRegex:
		if err := checkRegex(value); err != nil {
			return nil, err
		}
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: value}}
	case m.Path.prefix() == "":
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
	default:
		out.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: m.Path.prefix()}
	}
	if m.Method != "" {
		out.Headers = append(out.Headers, header(":method", exact(m.Method)))
	}
	for _, h := range m.Headers {
		match, err := h.build()
		if err != nil {
			return nil, err
		}
		out.Headers = append(out.Headers, header(h.Name, match))
	}
	for _, q := range m.Query {
		match, err := q.build()
		if err != nil {
			return nil, err
		}
		out.QueryParameters = append(out.QueryParameters, &routev3.QueryParameterMatcher{
			Name:                         q.Name,
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: match},
		})
	}
	return out, nil
}

// prefix is the path's prefix without its final slash, which Envoy adds itself.
func (p PathMatch) prefix() string { return strings.TrimRight(p.Value, "/") }

func (v ValueMatch) build() (*matcherv3.StringMatcher, error) {
	if !v.Regex {
		return exact(v.Value), nil
	}
	if err := checkRegex(v.Value); err != nil {
		return nil, err
	}
	return regex(v.Value), nil
}

func exact(value string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}}
}

// regex matches a whole value.
func regex(expression string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
		SafeRegex: &matcherv3.RegexMatcher{Regex: expression},
	}}
}

func header(name string, match *matcherv3.StringMatcher) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name:                 name,
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: match},
	}
}
