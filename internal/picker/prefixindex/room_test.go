package prefixindex

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
)

func unlimited() *fairshare.Share { return fairshare.New(0).Of("") }

// randomPrompt is some blocks that no other prompt has.
func randomPrompt(rng *rand.Rand, blocks int) []uint64 {
	out := make([]uint64, blocks)
	for i := range out {
		out[i] = rng.Uint64()
	}
	return out
}

// The memory that an index accounts for is near the heap's, for short and long prompts, held by one endpoint or many.
func TestBytesAreAsMeasured(t *testing.T) {
	for name, tt := range map[string]struct{ prompts, blocks, endpoints int }{
		"short": {100_000, 1, 1},
		"long":  {500, 2_000, 1},
		"many":  {5_000, 20, 16},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 1))
			before := heap()
			x := New(1<<30, unlimited())
			for range tt.prompts {
				p := randomPrompt(rng, tt.blocks)
				for e := range tt.endpoints {
					x.Insert(e, p)
				}
			}
			real := float64(heap() - before)
			if ratio := float64(x.bytes()) / real; ratio < 0.6 || ratio > 1.7 {
				t.Errorf("%d bytes, and the heap grew by %.0f: %.2f", x.bytes(), real, ratio)
			}
			runtime.KeepAlive(x)
		})
	}
}

// An index that gets ever new prompts keeps to its share, knows the newest, and leaves other indexes their shares.
func TestIndexKeepsToItsRoom(t *testing.T) {
	for name, blocks := range map[string]int{"short": 1, "long": 700} {
		t.Run(name, func(t *testing.T) {
			const most = 1 << 20
			whole := fairshare.New(most)
			rng := rand.New(rand.NewPCG(2, 2))
			hostile := New(1<<30, whole.Of("hostile"))
			depth := make([]int32, 4)
			for n := range 20_000 {
				p := randomPrompt(rng, blocks)
				hostile.Insert(n%4, p)
				if hostile.Match(p, depth); depth[n%4] == 0 {
					t.Fatalf("prompt %d is forgotten at once", n)
				}
			}
			if got := hostile.bytes(); got > most*4/5+int64(blocks+1)*blockBytes || got < most/2 {
				t.Errorf("it has %d of %d bytes", got, most)
			}
			victim := New(1<<30, whole.Of("models"))
			p := randomPrompt(rng, 1_000)
			victim.Insert(0, p)
			if victim.Match(p, depth); depth[0] != 1_000 {
				t.Errorf("of another's prompt %d blocks are known, want all", depth[0])
			}
			hostile.Close()
			hostile.Insert(0, p)
			if got := whole.Taken(); got != victim.bytes() {
				t.Errorf("with one closed %d bytes are taken, and the other has %d", got, victim.bytes())
			}
		})
	}
}

// All memory that was taken is given back, whatever became of the blocks.
func TestRoomIsGivenBack(t *testing.T) {
	whole := fairshare.New(1 << 30)
	x := New(50, whole.Of("models"))
	rng := rand.New(rand.NewPCG(3, 3))
	head := randomPrompt(rng, 10)
	for n := range 1_000 {
		p := slices.Concat(head, randomPrompt(rng, 1+n%20))
		x.Insert(n%3, p)
		if n%5 == 0 {
			x.Withdraw(n%3, p, 10)
		}
	}
	for e := range 3 {
		x.SetCapacity(e, 0)
	}
	if got := whole.Taken(); got != 0 || x.shares != 0 || x.blocks != 0 {
		t.Errorf("an empty index has %d bytes, %d shares, %d blocks", got, x.shares, x.blocks)
	}
}
