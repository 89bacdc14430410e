package translate

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// maxClaims is how many hosts a pool may claim. An annotation could list tens of thousands, and each costs look-ups.
const maxClaims = 32

// anyNamespace matches every namespace in a HostClaim.
const anyNamespace = "*"

// HostClaim is the administrator's permission for the pools of a namespace to claim a host.
type HostClaim struct {
	Namespace string // * is any
	Host      string // *.example.com is any host below example.com
}

func (c HostClaim) String() string { return c.Namespace + "=" + c.Host }

// ParseHostClaim reads namespace=host.
func ParseHostClaim(s string) (HostClaim, error) {
	namespace, host, ok := strings.Cut(s, "=")
	c := HostClaim{Namespace: namespace, Host: strings.ToLower(host)}
	switch {
	case !ok || namespace != anyNamespace && len(validation.IsDNS1123Label(namespace)) > 0:
		return HostClaim{}, fmt.Errorf("%q is not namespace=host", s)
	case checkHost(strings.TrimPrefix(c.Host, "*.")) != nil:
		return HostClaim{}, fmt.Errorf("%q: %q is neither a host nor *.domain", s, host)
	}
	return c, nil
}

// claimedHosts are the first maxClaims hosts that a pool claims, unchecked, and the number of the others.
func claimedHosts(p *inferencev1.InferencePool) (out []string, more int) {
	seen := map[string]bool{}
	for host := range strings.SplitSeq(p.Annotations[pool.HostsAnnotation], ",") {
		host = strings.ToLower(strings.TrimSpace(host))
		switch {
		case host == "" || seen[host]:
		case len(out) == maxClaims:
			more++
		default:
			seen[host] = true
			out = append(out, host)
		}
	}
	return out, more
}

// ClaimedHosts are the further hosts that a pool claims, unchecked. Some may be invalid, or not allowed for the pool.
func ClaimedHosts(p *inferencev1.InferencePool) []string {
	out, _ := claimedHosts(p)
	return out
}

// hosts are the hosts of a pool's ServiceEntry: its own host, and then the claimed hosts that it may have.
func (t translator) hosts(api *inferencev1.InferencePool) (out, notes []string) {
	p, _ := pool.FromAPI(api) // only the name is used, which is set even after an error
	out = []string{p.Host(t.settings.HostSuffix)}
	claimed, more := claimedHosts(api)
	for _, host := range claimed {
		problem := t.claimProblem(api, host)
		if problem == "" {
			problem = t.rival(p, host)
		}
		if problem != "" {
			notes = append(notes, fmt.Sprintf("not as %s: %s", host, problem))
			continue
		}
		out = append(out, host)
	}
	if more > 0 {
		notes = append(notes, fmt.Sprintf("not as %d more hosts: a pool may claim %d", more, maxClaims))
	}
	return out, notes
}

// claimProblem is why a pool may not have a host that it claims, even if no other pool claims it.
func (t translator) claimProblem(p *inferencev1.InferencePool, host string) string {
	labels := strings.Split(host, ".")
	switch {
	case checkHost(host) != nil:
		return "it is not a host name"
	case strings.HasSuffix(host, "."+t.settings.HostSuffix):
		return "hosts with this ending are the pools' own"
	case slices.Contains(labels, "svc"):
		return "it is a Service's host: set the annotation " + pool.PoolAnnotation + " on the Service instead"
	case !t.settings.allows(p.Namespace, host):
		return fmt.Sprintf("the controller's flag --allow-host does not allow it to namespace %s", p.Namespace)
	case len(labels) <= 2 && !t.settings.allowsExactly(p.Namespace, host):
		// ztunnel resolves a name such as reviews.default as a host before it takes the name for a Service.
		return "it may be a Service's short name, so --allow-host must allow exactly this host"
	}
	return ""
}

func (s Settings) allows(namespace, host string) bool {
	return slices.ContainsFunc(s.HostClaims, func(c HostClaim) bool {
		domain, wild := strings.CutPrefix(c.Host, "*")
		return (c.Namespace == anyNamespace || c.Namespace == namespace) && (host == c.Host || wild && strings.HasSuffix(host, domain))
	})
}

func (s Settings) allowsExactly(namespace, host string) bool {
	return slices.Contains(s.HostClaims, HostClaim{namespace, host}) || slices.Contains(s.HostClaims, HostClaim{anyNamespace, host})
}

// rival names the pool or ServiceEntry that has a host with priority over this pool. Only pools that are bound to a
// waypoint, and ServiceEntries that are not ours, count. A pool that serves a host keeps it as long as it claims it.
// Otherwise the older object has the host, and of two of the same age the first by name.
func (t translator) rival(p pool.Pool, host string) string {
	holder := t.Holder(host)
	if holder == p.Name {
		return ""
	}
	self := t.Pool(p.Name)
	for _, other := range t.Claimants(host) {
		name := nameOf(other)
		if name == p.Name || !t.claims(other, host) {
			continue
		}
		switch {
		case name == holder:
			return fmt.Sprintf("InferencePool %s has it already", name)
		case older(other, self):
			return fmt.Sprintf("InferencePool %s has it and is older", name)
		}
	}
	for _, e := range t.Entries(host) {
		if older(e, self) {
			return fmt.Sprintf("ServiceEntry %s has it and is older", nameOf(e))
		}
	}
	return ""
}

// claims reports whether a pool claims a host that it may have. A claim that is not allowed blocks no other pool.
func (t translator) claims(p *inferencev1.InferencePool, host string) bool {
	if !slices.Contains(ClaimedHosts(p), host) || t.claimProblem(p, host) != "" {
		return false
	}
	_, bound := WaypointOf(p, t.Namespace(p.Namespace))
	return bound
}
