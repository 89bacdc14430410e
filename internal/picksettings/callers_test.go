package picksettings

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCallers(t *testing.T) {
	rules, err := ParseCallers(`
		# who pays
		shop/checkout priority=10 weight=2.5
		shop/*    weight=0.5; research/nightly priority=-1 waiting=100
		*/guest waiting=1
		* weight=3
	`)
	if err != nil {
		t.Fatal(err)
	}
	for caller, want := range map[[2]string]Caller{
		{"shop", "checkout"}:    {Weight: 2.5, Priority: 10},
		{"shop", "other"}:       {Weight: 0.5},
		{"research", "nightly"}: {Weight: 1, Priority: -1, Waiting: 100},
		{"research", "other"}:   {Weight: 3},
		{"any", "guest"}:        {Weight: 1, Waiting: 1},
		{"", ""}:                {Weight: 3},
		{"shop", ""}:            {Weight: 0.5}, // package poolstate knows both or neither
		{"", "guest"}:           {Weight: 1, Waiting: 1},
	} {
		if diff := cmp.Diff(want, rules.Of(caller[0], caller[1])); diff != "" {
			t.Errorf("%q (-want +got):\n%s", caller, diff)
		}
	}
	if got := Callers(nil).Of("a", "b"); got != AnyCaller {
		t.Errorf("without rules a caller has %+v", got)
	}
	if rules, err = ParseCallers("shop/web weight=2"); err != nil || rules.Of("", "") != AnyCaller {
		t.Errorf("a caller without an identity has a rule of shop/web: %v", err)
	}
}

func TestWrongCallers(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "want rules",
		" \n;;\n# nothing":           "want rules",
		"shop":                       "names no callers",
		"/web weight=1":              "names no callers",
		"shop/ weight=1":             "names no callers",
		"shop/web/x weight=1":        "names no callers",
		"shop/web":                   "sets nothing",
		"shop/web weight":            "weight is",
		"shop/web weight=0":          "0.01 to 100",
		"shop/web weight=-1":         "0.01 to 100",
		"shop/web weight=NaN":        "0.01 to 100",
		"shop/web weight=1e9":        "0.01 to 100",
		"shop/web priority=high":     "whole number",
		"shop/web priority=99999999": "-1000 to 1000",
		"shop/web waiting=0":         "1 to",
		"shop/web wait=3":            "there is no",
		"a/b weight=1; c/d weight=x": "rule 2",
		strings.Repeat("a/b weight=1\n", MostCallerRules+1): "at most 100",
		strings.Repeat("x", 1<<20):                          "names no callers",
	} {
		if _, err := ParseCallers(text); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 300 {
			t.Errorf("%.40q: %.300v, want %q", text, err, want)
		}
	}
}
