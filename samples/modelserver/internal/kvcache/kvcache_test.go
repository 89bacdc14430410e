package kvcache

import (
	"math/rand/v2"
	"testing"
)

// fill computes the given blocks of a text and releases them.
func fill(t *testing.T, c *Cache, hashes ...uint64) (cached int) {
	t.Helper()
	l, ok := c.Open(hashes, len(hashes))
	if !ok {
		t.Fatalf("Open(%v) refused with %d of %d blocks used", hashes, c.Used(), c.Total())
	}
	l.Extend(len(hashes))
	l.Publish(hashes)
	l.Close()
	return l.Cached()
}

// found returns the number of cached leading blocks. For texts given in full it
// keeps the cache's order of eviction.
func found(c *Cache, hashes ...uint64) int {
	n := 0
	for _, h := range hashes {
		if _, ok := c.byHash[h]; !ok {
			break
		}
		n++
	}
	return n
}

func TestHitsAreTheLeadingRun(t *testing.T) {
	c := New(8)
	fill(t, c, 1, 2, 3, 4)
	tests := map[string]struct {
		prefix []uint64
		want   int
	}{
		"whole":             {[]uint64{1, 2, 3, 4}, 4},
		"diverges":          {[]uint64{1, 2, 9, 4}, 2},
		"head differs":      {[]uint64{9, 2, 3, 4}, 0},
		"longer":            {[]uint64{1, 2, 3, 4, 5}, 4},
		"nothing asked for": {nil, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l, ok := c.Open(tt.prefix, len(tt.prefix)+1)
			if !ok {
				t.Fatal("refused")
			}
			defer l.Close()
			if l.Cached() != tt.want {
				t.Errorf("cached %d blocks, want %d", l.Cached(), tt.want)
			}
		})
	}
}

func TestEvictsTheTailFirst(t *testing.T) {
	c := New(4)
	fill(t, c, 1, 2, 3, 4)
	fill(t, c, 10)
	if got := found(c, 1, 2, 3, 4); got != 3 {
		t.Errorf("after one block was needed, %d leading blocks are left, want 3", got)
	}
	fill(t, c, 20, 21)
	if got := found(c, 1, 2, 3, 4); got != 1 {
		t.Errorf("after three blocks were needed, %d leading blocks are left, want 1", got)
	}
}

func TestEvictsTheLeastRecentlyUsed(t *testing.T) {
	c := New(4)
	fill(t, c, 1, 2)
	fill(t, c, 11, 12)
	if got := fill(t, c, 1, 2); got != 2 {
		t.Fatalf("cached %d blocks, want 2", got)
	}
	fill(t, c, 21, 22)
	if got := found(c, 1, 2); got != 2 {
		t.Errorf("the text used last has %d of 2 blocks left", got)
	}
	if got := found(c, 11, 12); got != 0 {
		t.Errorf("the text used first has %d blocks left, want 0", got)
	}
}

func TestBlocksInUseAreNeverEvicted(t *testing.T) {
	c := New(4)
	held, _ := c.Open(nil, 3)
	held.Extend(3)
	held.Publish([]uint64{1, 2, 3})
	if _, ok := c.Open(nil, 2); ok {
		t.Fatal("2 blocks were leased where 1 is free")
	}
	fill(t, c, 9)
	if got := found(c, 1, 2, 3); got != 3 {
		t.Errorf("%d of 3 blocks in use are left", got)
	}
	if c.Reset() {
		t.Error("Reset took away blocks in use")
	}
	held.Close()
	held.Close()
	if c.Used() != 0 {
		t.Errorf("%d blocks used after Close", c.Used())
	}
	if !c.Reset() || found(c, 1) != 0 {
		t.Error("Reset left content behind")
	}
}

func TestPromisedBlocksAreNotGivenTwice(t *testing.T) {
	c := New(4)
	first, ok := c.Open(nil, 3)
	if !ok {
		t.Fatal("refused on an empty cache")
	}
	if _, ok := c.Open(nil, 2); ok {
		t.Error("a promised block was promised again")
	}
	if c.Used() != 0 {
		t.Errorf("a promise counts as use: %d", c.Used())
	}
	first.Extend(99)
	if c.Used() != 3 {
		t.Errorf("extended to %d blocks, want the 3 promised", c.Used())
	}
	first.Close()
	if _, ok := c.Open(nil, 4); !ok {
		t.Error("blocks are missing after Close")
	}
}

// A hit on idle blocks takes them from the free ones, so fewer are left.
func TestIdleHitsCountAgainstTheRoom(t *testing.T) {
	c := New(4)
	fill(t, c, 1, 2)
	if _, ok := c.Open([]uint64{1, 2}, 5); ok {
		t.Error("5 blocks leased from 4")
	}
	l, ok := c.Open([]uint64{1, 2}, 4)
	if !ok || l.Cached() != 2 {
		t.Fatalf("Open = %v, %v", l, ok)
	}
	l.Extend(4)
	if c.Used() != 4 {
		t.Errorf("used %d, want 4", c.Used())
	}
}

func TestSameContentComputedTwice(t *testing.T) {
	c := New(4)
	a, _ := c.Open([]uint64{1}, 1)
	b, _ := c.Open([]uint64{1}, 1)
	for _, l := range []*Lease{a, b} {
		l.Extend(1)
		l.Publish([]uint64{1})
	}
	a.Close()
	b.Close()
	// The duplicate that is not findable is evicted first, though it was freed last.
	fill(t, c, 2, 3, 4)
	if found(c, 1) != 1 {
		t.Error("content was evicted while blocks without any were free")
	}
}

func TestAccountingHoldsUnderRandomUse(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	c := New(32)
	var open []*Lease
	for range 20_000 {
		if len(open) > 0 && rng.IntN(2) == 0 {
			i := rng.IntN(len(open))
			open[i].Close()
			open = append(open[:i], open[i+1:]...)
			continue
		}
		text := make([]uint64, 1+rng.IntN(12))
		for i := range text {
			text[i] = uint64(rng.IntN(3)*100 + i)
		}
		if l, ok := c.Open(text, len(text)); ok {
			l.Extend(rng.IntN(len(text) + 1))
			l.Publish(text)
			open = append(open, l)
		}
	}
	for _, l := range open {
		l.Close()
	}
	if c.Used() != 0 || c.reserved != 0 {
		t.Errorf("used %d, reserved %d after everything was closed", c.Used(), c.reserved)
	}
	for hash, i := range c.byHash {
		if !c.blocks[i].published || c.blocks[i].hash != hash {
			t.Errorf("hash %d names block %d, which holds %d", hash, i, c.blocks[i].hash)
		}
	}
}
