package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"
)

// programs are the programs, and where they have commands those, in the order of the page.
var programs = []struct {
	name, what string
	commands   []string
}{
	{"controller", "turns InferencePools into Istio objects.", nil},
	{"picker", "is the endpoint picker.", nil},
}

func flagsPage() ([]byte, error) {
	var page bytes.Buffer
	page.WriteString("# Flags\n\nWritten from the programs' own `--help` by `make docs`.\n")
	for _, p := range programs {
		fmt.Fprintf(&page, "\n## %s\n\nThe %s %s\n", p.name, p.name, p.what)
		for _, command := range append([]string{""}, p.commands...) {
			text, err := help(p.name, strings.Fields(command)...)
			if err != nil {
				return nil, err
			}
			if command != "" {
				fmt.Fprintf(&page, "\n### %s %s\n", p.name, command)
			}
			fmt.Fprintf(&page, "\n```\n%s\n```\n", text)
		}
	}
	return page.Bytes(), nil
}

// help is what a program prints of itself.
func help(program string, command ...string) (string, error) {
	cmd := exec.Command("go", append(append([]string{"run", "./cmd/" + program}, command...), "--help")...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("asking %s for its help: %w: %s", program, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
