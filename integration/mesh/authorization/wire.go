package authorization

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// message is a protobuf message without generated code, as our modules do not require istiod's. It maps the number of a
// field to the field's values in order.
type message map[protowire.Number][]value

type value struct {
	number uint64 // of a varint
	bytes  []byte // of anything else
}

func parse(b []byte) (message, error) {
	out := message{}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, fmt.Errorf("reading a tag: %w", protowire.ParseError(n))
		}
		b = b[n:]
		var v value
		switch kind {
		case protowire.VarintType:
			v.number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v.bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return nil, fmt.Errorf("reading field %d: %w", number, protowire.ParseError(n))
		}
		out[number], b = append(out[number], v), b[n:]
	}
	return out, nil
}

// all reads each message in a field.
func all[T any](m message, field protowire.Number, read func(message) (T, error)) ([]T, error) {
	var out []T
	for _, v := range m[field] {
		inner, err := parse(v.bytes)
		if err != nil {
			return nil, err
		}
		t, err := read(inner)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

func (m message) text(field protowire.Number) string {
	if v := m[field]; len(v) > 0 {
		return string(v[len(v)-1].bytes)
	}
	return ""
}

func (m message) number(field protowire.Number) uint64 {
	if v := m[field]; len(v) > 0 {
		return v[len(v)-1].number
	}
	return 0
}

// numbers reads a repeated number field, packed or not.
func (m message) numbers(field protowire.Number) []uint64 {
	var out []uint64
	for _, v := range m[field] {
		if v.bytes == nil {
			out = append(out, v.number)
		}
		for b := v.bytes; len(b) > 0; {
			number, n := protowire.ConsumeVarint(b)
			if n < 0 {
				break
			}
			out, b = append(out, number), b[n:]
		}
	}
	return out
}

// The fields that are read of istio.workload.Address, istio.workload.Workload and istio.security.Authorization.
const (
	addressWorkload = 1

	workloadAddresses = 3
	workloadPolicies  = 16

	policyName      = 1
	policyNamespace = 2
	policyScope     = 3
	policyAction    = 4
	policyGroups    = 5
	policyDryRun    = 6
	groupRules      = 1
	rulesMatches    = 2

	matchNamespaces    = 1
	matchPrincipals    = 3
	matchNotPrincipals = 4
	matchPorts         = 9
)

const (
	scopeGlobal    = 0
	scopeNamespace = 1
	actionAllow    = 0
)

// workload is what istiod sends of a pod.
type workload struct {
	addresses []netip.Addr
	policies  []string // namespace/name of the policies that select it
}

func readWorkload(b []byte) (workload, error) {
	m, err := parse(b)
	if err != nil {
		return workload{}, err
	}
	found, err := all(m, addressWorkload, func(m message) (workload, error) {
		var w workload
		for _, v := range m[workloadAddresses] {
			if a, ok := netip.AddrFromSlice(v.bytes); ok {
				w.addresses = append(w.addresses, a)
			}
		}
		for _, v := range m[workloadPolicies] {
			w.policies = append(w.policies, string(v.bytes))
		}
		return w, nil
	})
	if err != nil || len(found) == 0 {
		return workload{}, err // a Service is an Address too
	}
	return found[0], nil
}

// policy is one AuthorizationPolicy as istiod translates it for ztunnel.
type policy struct {
	namespace string
	scope     uint64
	allow     bool
	dryRun    bool
	// A policy matches if one of its groups does. A group needs all its rules; a rule needs one match.
	groups [][][]match
}

func readPolicy(b []byte) (policy, error) {
	m, err := parse(b)
	if err != nil {
		return policy{}, err
	}
	p := policy{
		namespace: m.text(policyNamespace), scope: m.number(policyScope),
		allow: m.number(policyAction) == actionAllow, dryRun: m.number(policyDryRun) != 0,
	}
	p.groups, err = all(m, policyGroups, func(group message) ([][]match, error) {
		return all(group, groupRules, func(rules message) ([]match, error) { return all(rules, rulesMatches, readMatch) })
	})
	return p, err
}

// match is a condition on a connection. The values of a field are alternatives; all fields that are set must hold.
type match struct {
	principals, notPrincipals, namespaces []text
	ports                                 []uint64
}

// readMatch fails on a field that it does not know: to ignore the field might allow what ztunnel denies.
func readMatch(m message) (match, error) {
	for field := range m {
		if !slices.Contains([]protowire.Number{matchNamespaces, matchPrincipals, matchNotPrincipals, matchPorts}, field) {
			return match{}, fmt.Errorf("a policy with field %d in a match: the mesh's ztunnel does not know it", field)
		}
	}
	out := match{ports: m.numbers(matchPorts)}
	for field, to := range map[protowire.Number]*[]text{
		matchNamespaces: &out.namespaces, matchPrincipals: &out.principals, matchNotPrincipals: &out.notPrincipals,
	} {
		var err error
		if *to, err = all(m, field, readText); err != nil {
			return match{}, err
		}
	}
	return out, nil
}

// text is a condition on a string, of one of four kinds.
type text struct {
	kind  protowire.Number
	value string
}

const (
	exact    = 1
	prefix   = 2
	suffix   = 3
	presence = 4
)

func readText(m message) (text, error) {
	for kind := protowire.Number(exact); kind <= presence; kind++ {
		if len(m[kind]) > 0 {
			return text{kind, m.text(kind)}, nil
		}
	}
	return text{}, fmt.Errorf("a condition on a string of no kind that is known")
}

func (t text) matches(s string) bool {
	switch t.kind {
	case exact:
		return s == t.value
	case prefix:
		return strings.HasPrefix(s, t.value)
	case suffix:
		return strings.HasSuffix(s, t.value)
	default:
		return s != ""
	}
}
