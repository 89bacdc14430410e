package envoypatch

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"unicode"
)

// maxProgram is the largest program, in steps, that Envoy accepts for a regular expression. Istio sets this limit when it
// starts its proxies (re2.max_program_size.error_level).
const maxProgram = 32768

// checkRegex compiles a regular expression. Envoy compiles it with RE2, whose syntax Go's package has. An expression that
// does not compile, or compiles to a larger program than Envoy accepts, would make Envoy refuse the whole listener.
func checkRegex(value string) error {
	if _, err := regexp.Compile(value); err != nil {
		return fmt.Errorf("regular expression: %w", err)
	}
	if unknown := unknownToEnvoy(value); unknown != "" {
		return fmt.Errorf("regular expression: a waypoint does not know %s", unknown)
	}
	parsed, err := syntax.Parse(latin1(value), syntax.Perl)
	if err != nil {
		return fmt.Errorf("regular expression: %w", err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return fmt.Errorf("regular expression: %w", err)
	}
	if size := sizeOf(program, namedRanges(value)); size > maxProgram {
		return fmt.Errorf("regular expression: it compiles to as many as %d steps, and a waypoint takes %d: repeat less, or name fewer characters", size, maxProgram)
	}
	return nil
}

// escape matches an escape of Go's syntax: a named class, a character by its number, or any other character.
var escape = regexp.MustCompile(`\\(?:[pP]\{\^?([^}]*)\}|x\{([0-9A-Fa-f]*)\}|(?s:.))`)

// unknownToEnvoy finds the first escape in an expression that Envoy's RE2 does not support: a character above 0xFF, or a
// class name that only Go has (\p{Letter}, \p{greek}, \p{ASCII}, \p{LC}, \p{Cn}).
func unknownToEnvoy(value string) string {
	for _, m := range escape.FindAllStringSubmatch(value, -1) {
		name, number := m[1], m[2]
		if code, err := strconv.ParseUint(number, 16, 32); number != "" && (err != nil || code > unicode.MaxLatin1) {
			return m[0]
		}
		_, category := unicode.Categories[name]
		category = category && len(name) <= 2 && name != "LC" && name != "Cn"
		if _, script := unicode.Scripts[name]; name != "" && !category && !script && name != "Any" {
			return m[0]
		}
	}
	return ""
}

// latin1 makes one character of each byte of a text. In Envoy, RE2 reads expressions and the matched text in Latin-1.
func latin1(text string) string {
	var out strings.Builder
	for i := range len(text) {
		out.WriteRune(rune(text[i]))
	}
	return out.String()
}

// namedRanges bounds the ranges that the character classes of an expression name, if the expression has alternatives: six
// for each byte (\PS has three bytes and 16 ranges). Without alternatives it is zero.
func namedRanges(value string) int {
	if !strings.Contains(value, "|") {
		return 0
	}
	return 6 * len(value)
}

// sizeOf is an upper bound of a program's size in RE2, which needs a step for each byte range of a class. RE2 repeats steps
// at the entries of nested loops. That made programs up to 1.7 times as large in tests, so the bound counts all steps twice.
func sizeOf(p *syntax.Prog, named int) int {
	size := 0
	for _, step := range p.Inst {
		switch {
		case step.Op == syntax.InstRuneAny || step.Op == syntax.InstRuneAnyNotNL:
			size += classSize([]rune{0, '\n' - 1, '\n' + 1, unicode.MaxLatin1}, named)
		case len(step.Rune) < 2: // a letter, perhaps in both cases, or no character at all
			size += 2
		default:
			size += classSize(step.Rune, named)
		}
	}
	return 2 * size
}

// classSize is an upper bound of the byte ranges of a class, given as pairs of range ends. Go and RE2 both merge classes
// that are alternatives into one. Go joins adjacent ranges and RE2 may not, so RE2's class may have as many ranges as the
// expression names, but no more than the class has bytes.
func classSize(class []rune, named int) int {
	ranges, bytes := 0, 0
	for i := 0; i < len(class) && class[i] <= unicode.MaxLatin1; i += 2 {
		ranges++
		bytes += int(min(class[i+1], unicode.MaxLatin1)-class[i]) + 1
	}
	return max(ranges, min(bytes, named))
}
