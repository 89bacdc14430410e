package extproc

import (
	"strings"
	"sync"
	"sync/atomic"
)

// greed is how many times what is free a tenant may have. One that takes all that it can has four fifths of the whole;
// two have four ninths each, and the rest is always there for others. The rule is the dynamic threshold of Choudhury and
// Hahne (IEEE/ACM Transactions on Networking 6(2), 1998): it knows no tenants in advance, and leaves nothing unused that a
// lone tenant could need but that fifth.
const greed = 4

// shares is something of which there is so much for all tenants. A tenant is a namespace: one that makes many pools has
// no more for it.
type shares struct {
	most  int64 // 0 sets no limit
	taken atomic.Int64
	of    sync.Map // *share by tenant
}

// share is what one tenant has.
type share struct {
	whole *shares
	taken atomic.Int64
}

// tenantOf is the tenant of a pool's name. Names that no pool has are one tenant together.
func (s *Server) tenantOf(name string) string {
	if s.find(name) == nil {
		return ""
	}
	namespace, _, _ := strings.Cut(name, "/")
	return namespace
}

// get is a tenant's share. It is kept: there are no more than there ever were namespaces with pools.
func (s *shares) get(tenant string) *share {
	if known, ok := s.of.Load(tenant); ok {
		return known.(*share)
	}
	known, _ := s.of.LoadOrStore(tenant, &share{whole: s})
	return known.(*share)
}

// take takes so much more, and says whether the tenant may have it. It is taken in any case: give must follow.
func (s *share) take(n int) bool {
	own, all := s.taken.Add(int64(n)), s.whole.taken.Add(int64(n))
	if s.whole.most == 0 {
		return true
	}
	free := s.whole.most - all
	return free >= 0 && own <= greed*(free+int64(n))
}

// give gives so much back.
func (s *share) give(n int) {
	s.taken.Add(int64(-n))
	s.whole.taken.Add(int64(-n))
}
