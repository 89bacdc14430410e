package envoypatch

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// HeaderChanges are changes of headers, made in the order of the fields and of their entries.
type HeaderChanges struct {
	Remove   []string
	Set, Add []Header
}

// Header is a header's name and value.
type Header struct{ Name, Value string }

// Rewrite changes the call before it goes to its destination. Empty fields change nothing.
type Rewrite struct {
	Host string
	Path PathRewrite
}

// PathRewrite replaces the whole path, or the prefix by which the route matched.
type PathRewrite struct {
	Full   string
	Prefix *string
}

// Redirect answers a call with another location. An empty field keeps the value of the call.
type Redirect struct {
	Scheme, Host string
	Port         uint32
	Path         PathRewrite
	Status       int // 301, 302, 303, 307 or 308; 0 is 302
}

// Mirror sends a copy of a share of the calls to a cluster and drops the answers.
type Mirror struct {
	Cluster                string
	Numerator, Denominator uint32
}

// check reports headers that Envoy does not let a route change. A route that changes one makes Envoy refuse the listener.
func (c HeaderChanges) check() error {
	names := append([]string{}, c.Remove...)
	for _, h := range append(append([]Header{}, c.Set...), c.Add...) {
		names = append(names, h.Name)
	}
	for _, name := range names {
		if strings.EqualFold(name, "host") || strings.HasPrefix(name, ":") {
			return fmt.Errorf("header %s cannot be changed", name)
		}
	}
	return nil
}

func (c HeaderChanges) build() ([]*corev3.HeaderValueOption, []string) {
	var add []*corev3.HeaderValueOption
	for _, h := range c.Set {
		add = append(add, h.option(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
	}
	for _, h := range c.Add {
		add = append(add, h.option(corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD))
	}
	return add, c.Remove
}

func (h Header) option(action corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		// A per cent sign would begin one of Envoy's variables.
		Header:         &corev3.HeaderValue{Key: h.Name, Value: strings.ReplaceAll(h.Value, "%", "%%")},
		AppendAction:   action,
		KeepEmptyValue: true,
	}
}

// build makes Envoy's prefix rewrite or its regex rewrite of the path; both are empty if the path stays.
func (p PathRewrite) build(matched PathMatch) (prefix string, regex *matcherv3.RegexMatchAndSubstitute) {
	switch {
	case p.Full != "":
		return "", substitute("^.*$", literal(p.Full))
	case p.Prefix == nil:
		return "", nil
	}
	with := strings.TrimRight(*p.Prefix, "/")
	switch {
	case matched.prefix() == "":
		return with + "/", nil
	case with == "":
		// /v1/chat must become /chat, and /v1 must become /. Envoy's prefix rewrite cannot do both.
		return "", substitute("^"+regexp.QuoteMeta(matched.prefix())+"/?(.*)$", `/\1`)
	default:
		return with, nil
	}
}

// literal escapes a text for a substitution.
func literal(s string) string { return strings.ReplaceAll(s, `\`, `\\`) }

func substitute(pattern, with string) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{Pattern: &matcherv3.RegexMatcher{Regex: pattern}, Substitution: with}
}

var redirectCodes = map[int]routev3.RedirectAction_RedirectResponseCode{
	0:                            routev3.RedirectAction_FOUND,
	http.StatusMovedPermanently:  routev3.RedirectAction_MOVED_PERMANENTLY,
	http.StatusFound:             routev3.RedirectAction_FOUND,
	http.StatusSeeOther:          routev3.RedirectAction_SEE_OTHER,
	http.StatusTemporaryRedirect: routev3.RedirectAction_TEMPORARY_REDIRECT,
	http.StatusPermanentRedirect: routev3.RedirectAction_PERMANENT_REDIRECT,
}

func (r *Redirect) build(matched PathMatch) *routev3.RedirectAction {
	out := &routev3.RedirectAction{HostRedirect: r.Host, PortRedirect: r.Port, ResponseCode: redirectCodes[r.Status]}
	if r.Scheme != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: r.Scheme}
	}
	switch prefix, regex := r.Path.build(matched); {
	case r.Path.Full != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PathRedirect{PathRedirect: r.Path.Full}
	case regex != nil:
		out.PathRewriteSpecifier = &routev3.RedirectAction_RegexRewrite{RegexRewrite: regex}
	case prefix != "":
		out.PathRewriteSpecifier = &routev3.RedirectAction_PrefixRewrite{PrefixRewrite: prefix}
	}
	return out
}

// build gives the mirror's share in millionths, which represent every fraction of the Gateway API to six digits.
func (m Mirror) build() *routev3.RouteAction_RequestMirrorPolicy {
	const million = 1_000_000
	share := min(uint64(m.Numerator)*million/uint64(max(m.Denominator, 1)), million)
	return &routev3.RouteAction_RequestMirrorPolicy{
		Cluster: m.Cluster,
		RuntimeFraction: &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{
			Numerator:   uint32(share),
			Denominator: typev3.FractionalPercent_MILLION,
		}},
		// Otherwise Envoy adds "-shadow" to the copy's host, which a model server may not serve.
		DisableShadowHostSuffixAppend: true,
	}
}
