package pickerwatch

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
)

// world is a Watch over pickers whose answers a test decides.
type world struct {
	*Watch
	clock     *clocktesting.FakeClock
	pickers   []Picker
	silent    map[string]bool // names of pickers
	unpicked  time.Time       // of the last call without a pick
	looks     int
	withdrawn []string
	failures  int
}

func newWorld(names ...string) *world {
	w := &world{clock: clocktesting.NewFakeClock(time.Unix(1000, 0)), silent: map[string]bool{}}
	for i, name := range names {
		w.pickers = append(w.pickers, Picker{
			Name: types.NamespacedName{Namespace: "inference-system", Name: name}, UID: types.UID(name),
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 9002),
		})
	}
	w.Watch = newWatch(Witnesses{
		List:     func(context.Context) ([]Picker, error) { return w.pickers, nil },
		Look:     func() { w.looks++ },
		Unpicked: func(since time.Time) bool { return !w.unpicked.Before(since) },
	}, func(_ context.Context, p Picker, _ time.Duration) error {
		w.withdrawn = append(w.withdrawn, p.Name.Name)
		return nil
	}, func(error) { w.failures++ }, func(_ context.Context, at netip.AddrPort) bool {
		return !w.silent[names[at.Addr().As4()[3]]]
	}, w.clock)
	return w
}

func (w *world) rounds(n int) {
	for range n {
		w.clock.Step(500 * time.Millisecond)
		w.round(context.Background())
	}
}

func (w *world) want(t *testing.T, withdrawn ...string) {
	t.Helper()
	if len(w.withdrawn) != len(withdrawn) {
		t.Fatalf("withdrawn: %v, want %v", w.withdrawn, withdrawn)
	}
	for i, name := range withdrawn {
		if w.withdrawn[i] != name {
			t.Fatalf("withdrawn: %v, want %v", w.withdrawn, withdrawn)
		}
	}
}

// A picker is withdrawn after three tries in silence, if another one answers.
func TestSilentPickerBesideAnother(t *testing.T) {
	w := newWorld("a", "b")
	w.rounds(2)
	w.silent["a"] = true
	w.rounds(2)
	w.want(t)
	w.rounds(1)
	w.want(t, "a")
	w.rounds(20) // Kubernetes insists that it is ready
	w.want(t, "a")
	w.silent["a"] = false
	w.rounds(1)
	w.silent["a"] = true
	w.rounds(3)
	w.want(t, "a", "a")
}

// Where no picker answers, the controller itself may be cut off. Then waypoints decide, by calls without a pick since.
func TestNoPickerAnswers(t *testing.T) {
	for _, names := range [][]string{{"a"}, {"a", "b"}} {
		w := newWorld(names...)
		w.unpicked = w.clock.Now() // long before
		w.rounds(2)
		for _, name := range names {
			w.silent[name] = true
		}
		w.rounds(4)
		w.want(t)
		if w.looks == 0 {
			t.Error("the waypoints are not looked at")
		}
		w.unpicked = w.clock.Now()
		w.rounds(1)
		w.want(t, names...)
	}
}

// A picker that has never answered is out of the controller's reach, and stays.
func TestPickerOutOfReach(t *testing.T) {
	w := newWorld("a", "b")
	w.silent["a"] = true
	w.unpicked = w.clock.Now().Add(time.Hour)
	w.rounds(20)
	w.want(t)
}

// A single silence is none: an answer ends it.
func TestAnswersBetweenSilences(t *testing.T) {
	w := newWorld("a", "b")
	for range 10 {
		w.silent["a"] = false
		w.rounds(1)
		w.silent["a"] = true
		w.rounds(2)
	}
	w.want(t)
}

// Tries that were held up at the controller say nothing of the picker.
func TestControllerIsHeldUp(t *testing.T) {
	w := newWorld("a", "b")
	w.rounds(1)
	ask := w.ask
	w.ask = func(ctx context.Context, at netip.AddrPort) bool {
		if ask(ctx, at) {
			return true
		}
		w.clock.Step(askTimeout + lateBy)
		return false
	}
	w.silent["a"] = true
	w.rounds(10)
	w.want(t)
}

// A picker of the same name is another picker.
func TestReplacedPicker(t *testing.T) {
	w := newWorld("a", "b")
	w.rounds(1)
	w.silent["a"] = true
	w.rounds(2)
	w.pickers[0].UID = "another"
	w.rounds(10)
	w.want(t)
	if len(w.known) != 2 {
		t.Errorf("%d pickers are remembered", len(w.known))
	}
}

// Errors are told, and the next rounds go on.
func TestErrorsAreTold(t *testing.T) {
	w := newWorld("a", "b")
	w.rounds(1)
	list := w.List
	w.List = func(context.Context) ([]Picker, error) { return nil, errors.New("no list") }
	w.rounds(2)
	w.List = list
	w.withdraw = func(context.Context, Picker, time.Duration) error { return errors.New("forbidden") }
	w.silent["a"] = true
	w.rounds(5)
	if w.failures != 2+3 {
		t.Errorf("%d errors were told, want 5: two of the list, and one of each withdrawal from the third silence on", w.failures)
	}
}
