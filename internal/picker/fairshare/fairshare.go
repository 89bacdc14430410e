// Package fairshare divides a limited resource among tenants that do not trust each other and are not known in advance,
// so that no tenant can leave nothing for the next one. It must not know what the resource is.
package fairshare

import (
	"sync"
	"sync/atomic"
)

// Greed is how many times the free part a tenant may have. One tenant that takes all it can has four fifths of the
// whole; two have four ninths each; the rest stays free for others. The rule is the dynamic threshold of Choudhury and
// Hahne (IEEE/ACM Transactions on Networking 6(2), 1998). It leaves nothing unused that a lone tenant could need but
// that fifth.
const Greed = 4

// Whole is the whole resource.
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

// New makes a whole of the given size; 0 sets no limit.
func New(most int64) *Whole { return &Whole{most: most} }

// Of returns a tenant's share. Shares are never dropped, so clients must not choose the names of tenants.
func (w *Whole) Of(tenant string) *Share {
	if known, ok := w.of.Load(tenant); ok {
		return known.(*Share)
	}
	known, _ := w.of.LoadOrStore(tenant, &Share{whole: w})
	return known.(*Share)
}

// Taken returns how much all tenants have.
func (w *Whole) Taken() int64 { return w.taken.Load() }

// Take takes n, or gives back a negative n, and reports whether the tenant may have what it has now. It takes n in any
// case.
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
