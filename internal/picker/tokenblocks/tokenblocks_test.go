package tokenblocks

import "testing"

// Names are equal for equal prefixes, and differ where anything before or in the block differs.
func TestNames(t *testing.T) {
	tokens := make([]uint32, 3*piece+1)
	for i := range tokens {
		tokens[i] = uint32(i)
	}
	changed := append([]uint32(nil), tokens...)
	changed[len(changed)-1]++
	names := map[string]uint64{
		"base":              Root(""),
		"adapter":           Root("a"),
		"block":             Next(Root(""), tokens),
		"shorter block":     Next(Root(""), tokens[:piece]),
		"empty block":       Next(Root(""), nil),
		"last token":        Next(Root(""), changed),
		"block of adapter":  Next(Root("a"), tokens),
		"second block":      Next(Next(Root(""), tokens), tokens),
		"two in one":        Next(Next(Root(""), tokens[:piece]), tokens[piece:]),
		"key":               Keyed(Root(""), []byte("k")),
		"block with a key":  Next(Keyed(Root(""), []byte("k")), tokens),
		"block with no key": Next(Keyed(Root(""), nil), tokens),
	}
	seen := map[uint64]string{}
	for what, name := range names {
		if other, ok := seen[name]; ok {
			t.Errorf("%s and %s have one name", what, other)
		}
		seen[name] = what
	}
	if again := Next(Root(""), append([]uint32(nil), tokens...)); again != names["block"] {
		t.Error("equal tokens have two names")
	}
}

func BenchmarkNext(b *testing.B) {
	tokens := make([]uint32, 16)
	b.ReportAllocs()
	for name := Root(""); b.Loop(); {
		name = Next(name, tokens)
	}
}
