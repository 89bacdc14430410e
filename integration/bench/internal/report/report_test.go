package report

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	tests := map[string]struct {
		values []float64
		want   float64
	}{
		"odd":    {[]float64{9, 1, 5}, 5},
		"even":   {[]float64{4, 1, 9, 2}, 3},
		"single": {[]float64{7}, 7},
	}
	for name, tt := range tests {
		if got := Median(tt.values); got != tt.want {
			t.Errorf("%s: %g, want %g", name, got, tt.want)
		}
	}
	if got := Median(nil); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %g", got)
	}
}

func TestPercentile(t *testing.T) {
	var of []time.Duration
	for i := range 200 {
		of = append(of, time.Duration(200-i))
	}
	for share, want := range map[float64]time.Duration{0: 1, 0.5: 100, 0.99: 198, 1: 200} {
		if got := Percentile(of, share); got != want {
			t.Errorf("percentile %g is %d, want %d", share, got, want)
		}
	}
	if got := Percentile(nil, 0.5); got != 0 {
		t.Errorf("the percentile of nothing is %d", got)
	}
}

func TestSummary(t *testing.T) {
	var out strings.Builder
	r := New(&out)
	r.Goal("low enough, %d KB", 1.2, 1.3, 8)
	r.Goal("too high", 1.31, 1.3)
	r.Goal("not measured", math.NaN(), 1.3)
	if missed := r.Summary(); missed != 2 {
		t.Errorf("%d goals are missed, want 2", missed)
	}
	for _, want := range []string{"low enough, 8 KB   1.20  ≤ 1.30     met", "too high           1.31  ≤ 1.30  MISSED", "not measured          –  ≤ 1.30  MISSED", "1 of 3 goals are met."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the summary lacks %q:\n%s", want, out.String())
		}
	}
}
