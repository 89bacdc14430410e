package modelmetrics

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// realPage returns a page that a real vLLM wrote.
func realPage(t testing.TB, name string) []byte {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("testdata", "vllm-0.32.0", name))
	if err != nil {
		t.Fatal(err)
	}
	return page
}

func TestParseRealPages(t *testing.T) {
	for name, want := range map[string]Reading{
		"metrics-idle.txt": {
			PromptTokens: 2475, CacheQueries: 2475, CacheHits: 1152, FirstTokens: 2, FirstTokenSeconds: 2.108574151992798,
			ComputedTokens: 1323, GeneratedTokens: 16, Ended: 2,
		},
		"metrics-after-load.txt": {
			PromptTokens: 152596, CacheQueries: 152596, CacheHits: 96640, FirstTokens: 88, FirstTokenSeconds: 136.56399273872375,
			ComputedTokens: 55956, GeneratedTokens: 2090, Ended: 88,
		},
		"metrics-lora-deferred.txt": {
			Running: 2, Deferred: 2, KVUsage: 0.00782013685239491, RunningAdapters: []string{"code"},
			PromptTokens: 6515, CacheQueries: 6515, CacheHits: 1152, FirstTokens: 12, FirstTokenSeconds: 7.499749183654785,
			ComputedTokens: 5363, GeneratedTokens: 653, Ended: 10, // two calls have their first token and have not ended
		},
	} {
		t.Run(name, func(t *testing.T) {
			want.Engine, want.At, want.WaitingSplit, want.CapacityTokens, want.BlockTokens, want.MaxLoRA, want.Model = VLLM, now, true, 131072, 128, 2, "tiny"
			got, err := NewParser(Detect).Parse(realPage(t, name), now)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, equateNone); diff != "" {
				t.Errorf("reading (-want +got):\n%s", diff)
			}
		})
	}
}

func BenchmarkParseReal(b *testing.B) {
	p, page := NewParser(Detect), realPage(b, "metrics-lora-deferred.txt")
	b.SetBytes(int64(len(page)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Parse(page, now); err != nil {
			b.Fatal(err)
		}
	}
}
