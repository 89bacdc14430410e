package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestScanSamples(t *testing.T) {
	type sample struct {
		Name   string
		Labels map[string]string
		Value  float64
	}
	tests := map[string]struct {
		page      string
		want      []sample
		wantError bool
	}{
		"labels": {
			page: "# HELP x y\n# TYPE x counter\n" +
				`apiserver_request_total{code="200",resource="pods",subresource="",verb="PATCH"} 12` + "\n",
			want: []sample{{"apiserver_request_total", map[string]string{"code": "200", "resource": "pods", "subresource": "", "verb": "PATCH"}, 12}},
		},
		"a comma and a space in a label": {
			page: `m{a="x, y",b="z"} 1.5e+06` + "\n",
			want: []sample{{"m", map[string]string{"a": "x, y", "b": "z"}, 1.5e6}},
		},
		"no labels": {page: "up 1\n", want: []sample{{"up", map[string]string{}, 1}}},
		"no number": {page: "up high\n", wantError: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var got []sample
			err := scanSamples(strings.NewReader(tt.page), func(name string, labels map[string]string, value float64) {
				got = append(got, sample{name, labels, value})
			})
			if (err != nil) != tt.wantError {
				t.Fatalf("error %v, want one: %t", err, tt.wantError)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("samples (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWrites(t *testing.T) {
	before := writes{{"APPLY", "envoyfilters", ""}: 2, {"PATCH", "serviceentries", "status"}: 1}
	after := writes{
		{"APPLY", "envoyfilters", ""}:           5,
		{"APPLY", "serviceentries", ""}:         1,
		{"PATCH", "serviceentries", "status"}:   9,
		{"PATCH", "inferencepools", "status"}:   4,
		{"POST", "inferencepools", ""}:          7,
		{"POST", "events", ""}:                  3,
		{"DELETE", "serviceentries", "another"}: 1,
	}
	made := after.since(before)
	got := map[string]int{"objects": made.objects(), "status": made.status(), "events": made.events(), "total": made.total()}
	want := map[string]int{"objects": 4, "status": 4, "events": 3, "total": 27}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}
