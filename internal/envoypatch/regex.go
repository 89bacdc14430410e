package envoypatch

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"unicode"
)

// maxProgram is the size of the largest program that Envoy takes of an expression, as Istio starts its proxies
// (re2.max_program_size.error_level).
const maxProgram = 32768

// checkRegex compiles an expression. Envoy compiles it with RE2, whose syntax Go's package has; one that does not
// compile, or to more than Envoy takes, would make Envoy refuse the whole listener.
func checkRegex(value string) error {
	parsed, err := syntax.Parse(value, syntax.Perl)
	if err != nil {
		return fmt.Errorf("regular expression: %w", err)
	}
	if _, err := regexp.Compile(value); err != nil {
		return fmt.Errorf("regular expression: %w", err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return fmt.Errorf("regular expression: %w", err)
	}
	if size := sizeOf(program); size > maxProgram {
		return fmt.Errorf("regular expression: it compiles to about %d steps, and a waypoint takes %d: repeat less, or name fewer characters", size, maxProgram)
	}
	return nil
}

// sizeOf is an upper bound of a program's size in RE2, whose steps are bytes and not characters: those of all characters
// take two, those of any other class that has more than ASCII no more than eight, as Envoy tells of them.
func sizeOf(p *syntax.Prog) int {
	size := 0
	for _, step := range p.Inst {
		switch {
		case step.Op == syntax.InstRuneAny || step.Op == syntax.InstRuneAnyNotNL:
			size += 2
		case len(step.Rune) > 0 && step.Rune[len(step.Rune)-1] > unicode.MaxASCII:
			size += 8
		default:
			size++
		}
	}
	return size
}
