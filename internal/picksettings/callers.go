package picksettings

import (
	"errors"
	"fmt"
	"strings"
)

// Bounds of what an annotation may say of callers.
const (
	MostCallerRules = 100
	MostPriority    = 1000
	leastWeight     = 0.01
	mostWeight      = 100
	mostWaiting     = 1 << 20
)

// Callers says what callers get where a pool has more calls than it can serve: rules, of which the first that names a caller counts.
type Callers []CallerRule

// CallerRule is what some callers get.
type CallerRule struct {
	// Namespace and Account are the caller's namespace and service account; "*" is any. Callers without a proven identity have
	// neither, and only the rule "*/*" names them.
	Namespace, Account string
	Caller
}

// Caller is what one caller gets.
type Caller struct {
	// Weight is the caller's part of what calls cost beside the other callers' parts.
	Weight float64
	// Priority is that of the caller's calls: those of a higher one go first. Calls of a negative one are refused while others wait.
	Priority int
	// Waiting bounds how many of its calls may wait; 0 is no bound of its own.
	Waiting int
}

// AnyCaller is what a caller gets that no rule names.
var AnyCaller = Caller{Weight: 1}

// Of returns what a caller gets. The caller's namespace and service account are empty where it has no proven identity.
func (c Callers) Of(namespace, account string) Caller {
	for i := range c {
		if c[i].names(namespace, account) {
			return c[i].Caller
		}
	}
	return AnyCaller
}

func (r *CallerRule) names(namespace, account string) bool {
	return (r.Namespace == "*" || r.Namespace == namespace && namespace != "") &&
		(r.Account == "*" || r.Account == account && account != "")
}

// ParseCallers reads rules, one a line or divided by semicolons: a namespace and a service account as "namespace/account", "*" for any,
// then settings as "name=value": weight, priority, waiting. A lone "*" is "*/*". The error says what is wrong with the first wrong rule.
func ParseCallers(text string) (Callers, error) {
	var out Callers
	for _, line := range strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == ';' }) {
		words := strings.Fields(line)
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		rule, err := parseCaller(words)
		if err != nil {
			return nil, fmt.Errorf("rule %d: %w", len(out)+1, err)
		}
		if out = append(out, rule); len(out) > MostCallerRules {
			return nil, fmt.Errorf("want at most %d rules", MostCallerRules)
		}
	}
	if len(out) == 0 {
		return nil, errors.New(`want rules such as "shop/* weight=2 priority=1"`)
	}
	return out, nil
}

func parseCaller(words []string) (CallerRule, error) {
	rule := CallerRule{Caller: AnyCaller}
	var whole bool
	rule.Namespace, rule.Account, whole = strings.Cut(words[0], "/")
	if words[0] == "*" {
		rule.Account, whole = "*", true
	}
	if !whole || rule.Namespace == "" || rule.Account == "" || strings.Contains(rule.Account, "/") {
		return rule, fmt.Errorf(`%.100q names no callers: want namespace/account, with "*" for any`, words[0])
	}
	if len(words) == 1 {
		return rule, fmt.Errorf("%.100q sets nothing: want weight, priority or waiting", words[0])
	}
	for _, word := range words[1:] {
		name, value, _ := strings.Cut(word, "=")
		if err := rule.set(name, value); err != nil {
			return rule, err
		}
	}
	return rule, nil
}

func (r *CallerRule) set(name, value string) (err error) {
	switch name {
	case "weight":
		err = setNumber(&r.Weight, value, leastWeight, mostWeight)
	case "priority":
		err = setCount(&r.Priority, value, -MostPriority, MostPriority)
	case "waiting":
		err = setCount(&r.Waiting, value, 1, mostWaiting)
	default:
		return fmt.Errorf("there is no %.100q: want weight, priority or waiting", name)
	}
	if err != nil {
		return fmt.Errorf("%s is %.100q: %w", name, value, err)
	}
	return nil
}
