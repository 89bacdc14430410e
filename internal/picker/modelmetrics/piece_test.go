package modelmetrics

import (
	"bytes"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Reading or parsing a long page lets other goroutines run after each piece.
func TestLongPagesLetOthersRun(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	page := []byte(strings.Repeat("vllm:num_requests_waiting{model_name=\"a\"} 1\n", MaxPage/45))
	memory := newShared(1)
	tests := map[string]func(){
		"parsed": func() { _, _ = NewParser(Detect).Parse(page, time.Now()) },
		"read": func() {
			r := room{tenant: newTenant(memory), size: len(pageSizes) - 1}
			if got, err := readPage(io.NopCloser(bytes.NewReader(page)), &r); err != nil || len(got) != len(page) {
				t.Errorf("read are %d bytes, %v", len(got), err)
			}
		},
	}
	for name, work := range tests {
		t.Run(name, func(t *testing.T) {
			turns := 0
			var over atomic.Bool
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for ; !over.Load(); turns++ {
					runtime.Gosched()
				}
			}()
			work()
			over.Store(true)
			<-ended
			if want := len(page) / piece / 2; turns < want {
				t.Errorf("another goroutine ran %d times while a page of %d bytes was %s, want %d or more", turns, len(page), name, want)
			}
		})
	}
}
