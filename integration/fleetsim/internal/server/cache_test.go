package server

import "testing"

// fill puts a prompt's blocks into a cache, all held by one call.
func fill(t *testing.T, c *cache, names ...uint64) []*block {
	t.Helper()
	if !c.take(len(names)) {
		t.Fatalf("no room for %d blocks with %d free", len(names), c.free())
	}
	var held []*block
	for _, n := range names {
		held = append(held, c.name(n))
	}
	return held
}

func TestCacheEvictsLeastRecentlyUsedTailFirst(t *testing.T) {
	c := newCache(4)
	first := fill(t, c, 1, 2)
	second := fill(t, c, 3, 4)
	c.release(first, 0)
	c.release(second, 0)
	if c.hold(1) == nil || c.hold(2) == nil { // used again: now more recent than 3 and 4
		t.Fatal("released blocks are not found")
	}
	c.release(first, 0)
	if !c.take(1) {
		t.Fatal("take(1) failed with 4 blocks free")
	}
	for name, want := range map[uint64]bool{1: true, 2: true, 3: true, 4: false} {
		if got := c.has(name); got != want {
			t.Errorf("after one eviction has(%d) = %v, want %v", name, got, want)
		}
	}
}

func TestCacheKeepsHeldBlocks(t *testing.T) {
	c := newCache(3)
	held := fill(t, c, 1, 2)
	if c.take(2) {
		t.Error("take(2) succeeded with one block free")
	}
	if got := c.free(); got != 1 {
		t.Errorf("free() = %d after a take that failed, want 1", got)
	}
	c.release(held, 0)
	if !c.take(3) {
		t.Error("take(3) failed with all blocks free")
	}
	if c.has(1) || c.has(2) {
		t.Error("evicted blocks are still found")
	}
	c.release(nil, 3)
	if got := c.free(); got != 3 {
		t.Errorf("free() = %d at the end, want 3", got)
	}
}

func TestCacheSharesBlocks(t *testing.T) {
	c := newCache(2)
	one := fill(t, c, 7)
	again := c.hold(7)
	c.release(one, 0)
	if got := c.free(); got != 1 {
		t.Errorf("free() = %d while one of two holders is left, want 1", got)
	}
	if c.take(1); c.name(7) != nil {
		t.Error("a second block got a name that is taken")
	}
	c.release([]*block{again}, 1)
	if got := c.free(); got != 2 {
		t.Errorf("free() = %d, want 2", got)
	}
}

func TestAdapters(t *testing.T) {
	a := adapters{slots: 2}
	for _, step := range []struct {
		name         string
		leave        bool
		wantResident bool
		wantOK       bool
	}{
		{name: "a", wantOK: true},
		{name: "b", wantOK: true},
		{name: "a", wantResident: true, wantOK: true},
		{name: "c"}, // both slots are in use
		{name: "b", leave: true},
		{name: "c", wantOK: true}, // replaces b
		{name: "c", leave: true},
		{name: "a", leave: true},
		{name: "a", leave: true},
		{name: "b", wantOK: true}, // replaces a, which was admitted before c
		{name: "c", wantResident: true, wantOK: true},
		{name: "", wantResident: true, wantOK: true},
	} {
		if step.leave {
			a.leave(step.name)
			continue
		}
		if got := a.possible(step.name); got != step.wantOK {
			t.Errorf("possible(%q) = %v, want %v", step.name, got, step.wantOK)
		}
		resident, ok := a.admit(step.name)
		if resident != step.wantResident || ok != step.wantOK {
			t.Errorf("admit(%q) = %v, %v, want %v, %v", step.name, resident, ok, step.wantResident, step.wantOK)
		}
	}
}
