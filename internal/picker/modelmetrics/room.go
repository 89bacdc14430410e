package modelmetrics

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
)

// MaxPage is how many bytes of a page are read. The rest is left unread, and the connection is closed.
const MaxPage = 4 << 20

// pageSizes are the sizes of the buffers for pages. Servers' pages have 40 KB, or some hundred KB where many engines
// are behind one endpoint.
var pageSizes = [...]int{64 << 10, 512 << 10, MaxPage}

// sizeFor returns the index of the smallest size above n bytes: a page's end is seen only behind its last byte.
func sizeFor(n int) int {
	if i := slices.IndexFunc(pageSizes[:], func(size int) bool { return n < size }); i >= 0 {
		return i
	}
	return len(pageSizes) - 1
}

// maxHeld is how many bytes the pages of all tenants take together, from the request to the reading.
const maxHeld = 64 << 20

// mostLongest is how many pages of a tenant may be received at the same time into buffers of the longest size. Their
// load on the processors and the garbage collector delays picks.
const mostLongest = 3

// errNoRoom is returned for a page that needs a larger buffer than the last one did, while its tenant has no memory
// left. The next scrape waits for a buffer of that size.
var errNoRoom = errors.New("the page is longer than the last one, and other pages of its tenant take the memory; the next scrape waits for it")

// memory is the memory for pages. Tenants share it as in package fairshare, but one that has reached its share waits.
type memory struct {
	mu      sync.Mutex
	free    int
	freed   chan struct{} // closed when memory is given back; nil while nobody waits
	buffers [len(pageSizes)]sync.Pool
}

func newMemory(size int) *memory {
	m := &memory{free: size}
	for i, size := range pageSizes {
		m.buffers[i].New = func() any { return new(make([]byte, size)) }
	}
	return m
}

// take takes n bytes if the tenant's share allows them, or returns a channel that closes when another try may succeed.
func (m *memory) take(t *tenant, n int) (ok bool, freed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	longest := 0
	if n == MaxPage {
		longest = 1
	}
	if n <= m.free && t.held+n <= fairshare.Greed*m.free && t.longest+longest <= mostLongest {
		m.free -= n
		t.held += n
		t.longest += longest
		return true, nil
	}
	if m.freed == nil {
		m.freed = make(chan struct{})
	}
	return false, m.freed
}

func (m *memory) give(t *tenant, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free += n
	t.held -= n
	if n == MaxPage {
		t.longest--
	}
	if m.freed != nil {
		close(m.freed)
		m.freed = nil
	}
}

// room is the memory of one page.
type room struct {
	tenant *tenant
	size   int     // the index in pageSizes
	buffer *[]byte // nil until the page comes
}

// newRoom waits until the tenant may have memory for a page. At most one page of each tenant tries, and the others wait
// behind it, so that freed memory wakes at most one page of each tenant.
func newRoom(ctx context.Context, t *tenant, size int) (room, error) {
	if err := take(ctx, t.first); err != nil {
		return room{}, err
	}
	defer func() { <-t.first }()
	for {
		ok, freed := t.shared.memory.take(t, pageSizes[size])
		if ok {
			return room{tenant: t, size: size}, nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return room{}, ctx.Err()
		}
	}
}

// open returns the buffer for the page.
func (r *room) open() []byte {
	r.buffer = r.tenant.shared.memory.buffers[r.size].Get().(*[]byte)
	return *r.buffer
}

// grow replaces the buffer by a larger one with the same beginning. It does not wait: pages that hold memory and wait
// for more could all wait for each other.
func (r *room) grow() ([]byte, error) {
	larger := room{tenant: r.tenant, size: r.size + 1}
	if ok, _ := r.tenant.shared.memory.take(r.tenant, pageSizes[larger.size]); !ok {
		return nil, errNoRoom
	}
	copy(larger.open(), *r.buffer)
	r.close()
	*r = larger
	return *r.buffer, nil
}

func (r *room) close() {
	memory := r.tenant.shared.memory
	if r.buffer != nil {
		memory.buffers[r.size].Put(r.buffer)
	}
	memory.give(r.tenant, pageSizes[r.size])
}
