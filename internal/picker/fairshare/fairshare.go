// Package fairshare divides something of which there is so much among tenants that are not known in advance and do not
// trust each other: none can take so much that there is nothing left for the next one.
package fairshare

import (
	"sync"
	"sync/atomic"
)

// Greed is how many times what is free a tenant may have. One that takes all that it can has four fifths of the whole;
// two have four ninths each, and the rest is always there for others. The rule is the dynamic threshold of Choudhury and
// Hahne (IEEE/ACM Transactions on Networking 6(2), 1998): it leaves nothing unused that a lone tenant could need but that
// fifth.
const Greed = 4

// Whole is all that there is.
type Whole struct {
	most  int64 // 0 sets no limit
	taken atomic.Int64
	of    sync.Map // *Share by tenant
}

// Share is what one tenant has.
type Share struct {
	whole *Whole
	taken atomic.Int64
}

// New is a whole of so much; 0 sets no limit.
func New(most int64) *Whole { return &Whole{most: most} }

// Of is a tenant's share. It is kept, so tenants must not be made of what clients send.
func (w *Whole) Of(tenant string) *Share {
	if known, ok := w.of.Load(tenant); ok {
		return known.(*Share)
	}
	known, _ := w.of.LoadOrStore(tenant, &Share{whole: w})
	return known.(*Share)
}

// Taken is what all tenants have.
func (w *Whole) Taken() int64 { return w.taken.Load() }

// Take takes n more, or gives back what is below zero, and says whether the tenant may have what it has now. It is taken
// in any case.
func (s *Share) Take(n int64) bool {
	own, all := s.taken.Add(n), s.whole.taken.Add(n)
	if s.whole.most == 0 {
		return true
	}
	free := s.whole.most - all
	return free >= 0 && own <= Greed*(free+max(0, n))
}

// Give gives n back.
func (s *Share) Give(n int64) { s.Take(-n) }
