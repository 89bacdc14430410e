package main

import (
	"strings"
	"testing"
)

func TestJudgeSoak(t *testing.T) {
	flat := func(rss ...float64) []soakReading {
		var out []soakReading
		for _, r := range rss {
			out = append(out, soakReading{rss: r, goroutines: 100, busy: 16})
		}
		return out
	}
	idle := soakReading{goroutines: 20}
	tests := map[string]struct {
		during []soakReading
		after  soakReading
		want   string // "" if it passes
	}{
		"fills up, then stays":         {flat(10, 50, 90, 100, 104, 100, 101, 105, 103), idle, ""},
		"grows to the end":             {flat(10, 20, 30, 40, 50, 60, 70, 80, 90), idle, "memory grows"},
		"leaves a goroutine":           {flat(9, 9, 9, 9, 9, 9), soakReading{goroutines: 21}, "1 goroutines are left over"},
		"leaves a call":                {flat(9, 9, 9, 9, 9, 9), soakReading{goroutines: 20, busy: 1}, "in flight"},
		"too short to tell anything":   {flat(9, 9), idle, "too few"},
		"all that is wrong is told of": {flat(9, 9, 9, 9, 99, 999), soakReading{goroutines: 21}, "left over"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := judgeSoak(idle, tt.during, tt.after)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
}
