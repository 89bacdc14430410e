// Package docs tests what people read: links lead somewhere, and each command is one that works here or is marked as
// one for a cluster.
package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = ".."

// pages are all Markdown files of the checkout.
func pages(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("git", "-C", root, "ls-files", "-co", "--exclude-standard", "*.md").Output()
	if err != nil {
		t.Fatalf("listing pages: %v", err)
	}
	found := strings.Fields(string(out))
	if len(found) < 10 {
		t.Fatalf("only %d pages were found", len(found))
	}
	return found
}

func read(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			path := page
			if target != "" {
				path = filepath.Join(filepath.Dir(page), target)
			}
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", page, m[1])
				continue
			}
			if anchor != "" && !slices.Contains(anchors(read(t, path)), anchor) {
				t.Errorf("%s: %s has no heading %q", page, path, anchor)
			}
		}
	}
}

var notInAnchors = regexp.MustCompile(`[^\p{L}\p{N} _-]`)

// anchors are the names of a page's headings in links.
func anchors(page string) []string {
	var out []string
	for line := range strings.Lines(page) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			name := notInAnchors.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
			out = append(out, strings.ReplaceAll(name, " ", "-"))
		}
	}
	return out
}

// forCluster are the programs that act on a cluster.
var forCluster = []string{"kubectl", "istioctl", "helm", "curl"}

// TestCommandsAreMarked holds blocks of commands to two kinds: those marked sh cluster, and those marked sh, all of whose
// commands work in a checkout.
func TestCommandsAreMarked(t *testing.T) {
	commands := 0
	for _, page := range pages(t) {
		for _, b := range blocks(read(t, page)) {
			switch b.mark {
			case "sh":
				for _, c := range b.lines {
					commands++
					if problem := check(c); problem != "" {
						t.Errorf("%s: %q: %s", page, c, problem)
					}
				}
			case "sh cluster":
				commands += len(b.lines)
			case "text": // what a program prints
			default:
				for _, c := range b.lines {
					if first, _, _ := strings.Cut(c, " "); slices.Contains(forCluster, first) || first == "make" || first == "go" {
						t.Errorf("%s: %q is a command in a block that is marked %q: want sh or sh cluster", page, c, b.mark)
					}
				}
			}
		}
	}
	if commands == 0 {
		t.Error("no commands were found")
	}
}

// check says what is wrong with a command of a checkout. Of make it asks whether the target is there, of go run whether
// what it runs builds.
func check(command string) string {
	words := strings.Fields(command)
	dir := root
	if words[0] == "go" && len(words) > 3 && words[2] == "-C" { // in another module
		dir = filepath.Join(root, words[3])
		words = slices.Delete(words, 2, 4)
	}
	var probe *exec.Cmd
	switch {
	case words[0] == "make":
		probe = exec.Command("make", append([]string{"-n"}, words[1:]...)...)
	case words[0] == "go" && len(words) > 2 && words[1] == "run":
		probe = exec.Command("go", "vet", words[2])
	case words[0] == "go" && len(words) > 1 && (words[1] == "build" || words[1] == "test"):
		probe = exec.Command("go", append([]string{"list"}, packages(words[2:])...)...)
	case words[0] == "curl" && strings.Contains(command, " localhost:"):
		return "" // to what the page has just had started
	default:
		return "a command that this test does not know; on a cluster it is marked sh cluster"
	}
	probe.Dir = dir
	if out, err := probe.CombinedOutput(); err != nil {
		return string(out)
	}
	return ""
}

// packages are the arguments of a go command that name packages.
func packages(words []string) []string {
	return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return !strings.HasPrefix(w, "./") })
}

// block is a fenced block of a page.
type block struct {
	mark  string
	lines []string // without comments, continued ones as one
}

func blocks(page string) []block {
	var out []block
	var open *block
	continued := ""
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		mark, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			open = &block{mark: mark}
		case fence:
			out = append(out, *open)
			open = nil
		case open == nil || line == "" || strings.HasPrefix(line, "#"):
		case strings.HasSuffix(line, `\`):
			continued += strings.TrimSuffix(line, `\`)
		default:
			open.lines = append(open.lines, continued+line)
			continued = ""
		}
	}
	return out
}
