// Package output writes a command's report, as text for people or as data for programs. It must not know what a report
// contains, or read a cluster.
package output

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/yaml"
)

// Format is an output format, the value of the flag -o.
type Format string

// The formats. Table and Wide are for people, and their text may change; the fields of JSON and YAML are stable.
const (
	Table Format = "table"
	Wide  Format = "wide"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// Formats lists them all.
var Formats = []string{string(Table), string(Wide), string(JSON), string(YAML)}

// Set takes a flag's value.
func (f *Format) Set(value string) error {
	if !slices.Contains(Formats, value) {
		return fmt.Errorf("want one of %s", strings.Join(Formats, ", "))
	}
	*f = Format(value)
	return nil
}

// String is the flag's value.
func (f *Format) String() string { return string(*f) }

// Type names the value in a command's help.
func (f *Format) Type() string { return "format" }

// Report is the result of a command. Its JSON encoding is its data.
type Report interface {
	// Text is the report for people. Wide adds all details.
	Text(wide bool) string
}

// Write writes a report.
func Write(w io.Writer, f Format, r Report) error {
	var text []byte
	var err error
	switch f {
	case JSON:
		text, err = json.MarshalIndent(r, "", "  ")
		text = append(text, '\n')
	case YAML:
		text, err = yaml.Marshal(r)
	default:
		text = []byte(r.Text(f == Wide))
	}
	if err != nil {
		return fmt.Errorf("encoding the output: %w", err)
	}
	_, err = w.Write(text)
	return err
}

// Columns aligns rows in columns as kubectl does. Lines have no spaces at their ends.
func Columns(rows [][]string) string {
	var text strings.Builder
	w := printers.GetNewTabWriter(&text)
	for _, row := range rows {
		_, _ = fmt.Fprintln(w, strings.Join(row, "\t")) // a strings.Builder takes all
	}
	_ = w.Flush()
	lines := strings.Split(text.String(), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n")
}

// Times formats a multiple in two digits at least; "-" stands for one that is not known.
func Times(of *float64) string {
	switch {
	case of == nil:
		return "-"
	case *of < 9.95: // from here on %#.2g ends in a point
		return fmt.Sprintf("%#.2g", *of)
	default:
		return fmt.Sprintf("%.0f", *of)
	}
}

// OrDash is the text, or "-" if it is empty.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
