package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// texts reads an SVG document to its end and returns its texts. That it can be read shows that it is XML.
func texts(t *testing.T, svg []byte) []string {
	t.Helper()
	var out []string
	for d := xml.NewDecoder(strings.NewReader(string(svg))); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("the chart is no XML: %v", err)
		}
		if data, ok := token.(xml.CharData); ok && strings.TrimSpace(string(data)) != "" {
			out = append(out, string(data))
		}
	}
}

func TestSVG(t *testing.T) {
	tests := map[string]struct {
		chart Chart
		want  []string
	}{
		"linear": {
			chart: Chart{Title: "a < b & c", X: "minutes", Y: "share", Lines: []Line{{"one", []Point{{0, 0}, {10, 0.4}}}}},
			want:  []string{"a < b & c", "minutes", "share", "one", "0", "0.1", "0.4", "10"},
		},
		"logarithmic, cut, with a mark": {
			chart: Chart{LogY: true, MaxY: 20, Mark: 2, MarkName: "2 s", Lines: []Line{{"one", []Point{{1, 0.3}, {2, 500}}}}},
			want:  []string{"0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "2 s"},
		},
		"nothing to draw": {
			chart: Chart{LogY: true, Lines: []Line{{"one", nil}, {"two", []Point{{1, 0}, {math.NaN(), 1}}}}},
			want:  []string{"one", "two"},
		},
		"one point": {chart: Chart{Lines: []Line{{"one", []Point{{3, 3}}}}}, want: []string{"one", "3"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			svg := test.chart.SVG()
			got := map[string]bool{}
			for _, text := range texts(t, svg) {
				got[text] = true
			}
			for _, want := range test.want {
				if !got[want] {
					t.Errorf("%q is not written in the chart", want)
				}
			}
			if strings.Contains(string(svg), "NaN") || strings.Contains(string(svg), "Inf") {
				t.Error("the chart has coordinates that are no numbers")
			}
		})
	}
}

func TestLineEndsAtTheTop(t *testing.T) {
	c := Chart{MaxY: 10, Lines: []Line{{"one", []Point{{0, 0}, {10, 20}, {20, 40}}}}}
	if svg := string(c.SVG()); !strings.Contains(svg, `points="70.0,388.0 225.0,46.0"`) {
		t.Errorf("the line does not end where it leaves the chart:\n%s", svg)
	}
}
