package livestate

import (
	"slices"
	"testing"
)

func TestAtOnce(t *testing.T) {
	for name, tt := range map[string]struct {
		of   []PickedBy
		want []string
	}{
		"none":                         {},
		"one":                          {of: []PickedBy{{"a", 60, 0}}},
		"one after the other":          {of: []PickedBy{{"a", 60, 5}, {"b", 5, 0}}},
		"both in the moment of a move": {of: []PickedBy{{"a", 60, 2}, {"b", 4, 0}}},
		"both":                         {of: []PickedBy{{"a", 60, 0}, {"b", 4, 0}}, want: []string{"a", "b"}},
		"both, a while ago":            {of: []PickedBy{{"a", 60, 1}, {"b", 9, 5}}, want: []string{"a", "b"}},
		"two of three":                 {of: []PickedBy{{"a", 60, 6}, {"b", 5, 0}, {"c", 8, 1}}, want: []string{"b", "c"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := AtOnce(tt.of); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
