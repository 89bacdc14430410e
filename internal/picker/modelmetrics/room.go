package modelmetrics

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
)

// MaxPage is how many bytes of a page are read; what comes behind is left unread, at the price of the connection.
const MaxPage = 4 << 20

// pageSizes are the sizes of buffers that pages come into. Servers' pages are of 40 KB, and of some hundred KB where many
// engines stand behind one endpoint.
var pageSizes = [...]int{64 << 10, 512 << 10, MaxPage}

// sizeFor is the number of the smallest size for a page of n bytes. The page's end is seen only behind its last byte.
func sizeFor(n int) int {
	if i := slices.IndexFunc(pageSizes[:], func(size int) bool { return n < size }); i >= 0 {
		return i
	}
	return len(pageSizes) - 1
}

// maxHeld is how many bytes the pages of all tenants hold together, from the question to the reading.
const maxHeld = 64 << 20

// mostLongest is how many pages of a tenant may come at the same time into buffers of the longest size. What they take of the
// processors and of the garbage collector holds up picks.
const mostLongest = 3

// errNoRoom is of a page that turned out longer than the one before while its tenant held all that it may. The next
// scrape waits for the room that this one needed.
var errNoRoom = errors.New("the page is longer than the one before, and other pages of its tenant take the memory")

// memory is what pages are held in. It is shared as package fairshare has it, but who may have no more waits.
type memory struct {
	mu      sync.Mutex
	free    int
	freed   chan struct{} // closed when something is given back; nil while nobody waits for that
	buffers [len(pageSizes)]sync.Pool
}

func newMemory(size int) *memory {
	m := &memory{free: size}
	for i, size := range pageSizes {
		m.buffers[i].New = func() any { return new(make([]byte, size)) }
	}
	return m
}

// take takes n bytes for a tenant, if it may have them. Otherwise it returns what is closed when it is worth another try.
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

// room is the memory that one page has.
type room struct {
	tenant *tenant
	size   int     // the number of its size
	buffer *[]byte // nil until the page comes
}

// newRoom waits until the tenant may have a room. Of each tenant one page at most looks whether it may, and the others
// wait behind it, so that what is given back wakes as many as there are tenants.
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

// grow changes to a larger buffer with the same beginning. It does not wait: pages that hold memory and wait for more
// could all wait for each other.
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
