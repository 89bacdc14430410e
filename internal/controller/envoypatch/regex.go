package envoypatch

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"unicode"
)

// maxProgram is the size of the largest program that Envoy takes of an expression, as Istio starts its proxies
// (re2.max_program_size.error_level).
const maxProgram = 32768

// checkRegex compiles an expression. Envoy compiles it with RE2, whose syntax Go's package has. One that does not
// compile, or that compiles to more than Envoy takes, would make Envoy refuse the whole listener.
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

// escape is an escape of Go's syntax: of a named class, of a character by its number, or of any character.
var escape = regexp.MustCompile(`\\(?:[pP]\{\^?([^}]*)\}|x\{([0-9A-Fa-f]*)\}|(?s:.))`)

// unknownToEnvoy is the first escape in an expression that RE2 in Envoy lacks: a character beyond a byte, or a name of a
// class that is Go's alone (\p{Letter}, \p{greek}, \p{ASCII}, \p{LC}, \p{Cn}).
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

// latin1 has a character for each byte of a text: Envoy has RE2 read expressions and what they match so.
func latin1(text string) string {
	var out strings.Builder
	for i := range len(text) {
		out.WriteRune(rune(text[i]))
	}
	return out.String()
}

// namedRanges is how many ranges the classes of an expression that are alternatives may name: six for each byte (\PS
// names 16), and none where there are no alternatives.
func namedRanges(value string) int {
	if !strings.Contains(value, "|") {
		return 0
	}
	return 6 * len(value)
}

// sizeOf is an upper bound of a program's size in RE2, which takes a step for each range of bytes of a class. RE2 repeats
// steps at the entries of nested loops, which made programs up to 1.7 times as large, so all is counted twice.
func sizeOf(p *syntax.Prog, named int) int {
	size := 0
	for _, step := range p.Inst {
		switch {
		case step.Op == syntax.InstRuneAny || step.Op == syntax.InstRuneAnyNotNL:
			size += classSize([]rune{0, '\n' - 1, '\n' + 1, unicode.MaxLatin1}, named)
		case len(step.Rune) < 2: // a letter, of which case may not matter, or no character at all
			size += 2
		default:
			size += classSize(step.Rune, named)
		}
	}
	return 2 * size
}

// classSize is an upper bound of the ranges of bytes of a class, which is pairs of its ranges' ends. Both packages make
// one class of several that are alternatives. Go's joins ranges that meet and RE2's may not, so it may have as many as
// the expression names, and no more than it has bytes.
func classSize(class []rune, named int) int {
	ranges, bytes := 0, 0
	for i := 0; i < len(class) && class[i] <= unicode.MaxLatin1; i += 2 {
		ranges++
		bytes += int(min(class[i+1], unicode.MaxLatin1)-class[i]) + 1
	}
	return max(ranges, min(bytes, named))
}
