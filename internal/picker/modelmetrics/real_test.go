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
			Prefill: Prefill{
				Computed: 1323, Generated: 16, Ended: 2, EndedComputed: 1323,
				PrefillSeconds: 1.6874279680014297, QueueSeconds: 9.682099880592432e-05, DecodeSeconds: 0.6719099289985024,
			},
		},
		"metrics-after-load.txt": {
			PromptTokens: 152596, CacheQueries: 152596, CacheHits: 96640, FirstTokens: 88, FirstTokenSeconds: 136.56399273872375,
			Prefill: Prefill{
				Computed: 55956, Generated: 2090, Ended: 88, EndedComputed: 55956,
				PrefillSeconds: 87.83289564198458, QueueSeconds: 21.746020322007098, DecodeSeconds: 199.39576034901074,
			},
		},
		"metrics-lora-deferred.txt": {
			Running: 2, Deferred: 2, KVUsage: 0.00782013685239491, RunningAdapters: []string{"code"},
			PromptTokens: 6515, CacheQueries: 6515, CacheHits: 1152, FirstTokens: 12, FirstTokenSeconds: 7.499749183654785,
			Prefill: Prefill{ // two calls have their first token and have not ended
				Computed: 5363, Generated: 653, Ended: 10, EndedComputed: 4555,
				PrefillSeconds: 5.119915013001446, QueueSeconds: 0.00026103900017915294, DecodeSeconds: 55.890137332997256,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			want.Engine, want.At, want.WaitingSplit, want.CapacityTokens, want.MaxLoRA = VLLM, now, true, 131072, 2
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
