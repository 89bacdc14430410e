package translate

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// HostsAnnotation on an InferencePool lists, separated by commas, hosts by which it can be called beside its own. The
// whole mesh resolves them, so the administrator says which a namespace may claim.
const HostsAnnotation = pool.Prefix + "hosts"

// maxClaims is how many hosts a pool may claim. An annotation has room for tens of thousands, each of which is looked up.
const maxClaims = 32

// anyNamespace stands for each namespace in a HostClaim.
const anyNamespace = "*"

// HostClaim is the administrator's leave for the pools of a namespace to claim a host.
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

// claimedHosts are the hosts that a pool claims, as written, and how many more than it may.
func claimedHosts(p *inferencev1.InferencePool) (out []string, more int) {
	seen := map[string]bool{}
	for host := range strings.SplitSeq(p.Annotations[HostsAnnotation], ",") {
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

// ClaimedHosts are the hosts by which a pool wants to be called beside its own, as written. Some may be no hosts, or not
// the pool's to claim.
func ClaimedHosts(p *inferencev1.InferencePool) []string {
	out, _ := claimedHosts(p)
	return out
}

// hosts are those of a pool's ServiceEntry: its own, and then those that it claims and that are free.
func (t translator) hosts(api *inferencev1.InferencePool) (out, notes []string) {
	p, _ := pool.FromAPI(api) // its name is enough
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
		notes = append(notes, fmt.Sprintf("not as %d hosts more: a pool may claim %d", more, maxClaims))
	}
	return out, notes
}

// claimProblem is why a pool cannot have a host that it claims, whoever else claims it.
func (t translator) claimProblem(p *inferencev1.InferencePool, host string) string {
	labels := strings.Split(host, ".")
	switch {
	case checkHost(host) != nil:
		return "it is no host's name"
	case strings.HasSuffix(host, "."+t.settings.HostSuffix):
		return "hosts of this ending are the pools' own"
	case slices.Contains(labels, "svc"):
		return "it is a Service's, which becomes a pool's by annotation " + PoolAnnotation
	case !t.settings.allows(p.Namespace, host):
		return fmt.Sprintf("the controller's flag --allow-host does not allow it to namespace %s", p.Namespace)
	case len(labels) <= 2 && !t.settings.allowsExactly(p.Namespace, host):
		// Of reviews.default, ztunnel tries the name as it is before it takes it for a Service.
		return "it may be a Service's short name, which --allow-host must name in full"
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

// rival says who has a host before a pool does: another pool that is bound to a waypoint, or a ServiceEntry that is not
// ours. Who serves a host keeps it for as long as he claims it. Of two who do not the older has it, and of two of the same
// age the first by name.
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

// claims reports whether a pool claims a host that it may have. A host that is not its to claim keeps nobody from it.
func (t translator) claims(p *inferencev1.InferencePool, host string) bool {
	if !slices.Contains(ClaimedHosts(p), host) || t.claimProblem(p, host) != "" {
		return false
	}
	_, bound := WaypointOf(p, t.Namespace(p.Namespace))
	return bound
}
