package pickerwatch

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
)

// world is a Watch over pickers whose answers a test decides. Withdrawals and restorations show in the pickers.
type world struct {
	*Watch
	clock    *clocktesting.FakeClock
	pickers  []Picker
	outcomes map[string]outcome // by the picker's name; sound if absent
	unpicked time.Time          // of the last call without a pick
	looks    int
	done     []string // what was done, oldest first
	refused  error    // by the API server
	leads    bool
}

// newWorld makes pickers on nodes of their own.
func newWorld(names ...string) *world {
	w := &world{clock: clocktesting.NewFakeClock(time.Unix(1000, 0)), outcomes: map[string]outcome{}, leads: true}
	for i, name := range names {
		w.pickers = append(w.pickers, Picker{
			Name: types.NamespacedName{Namespace: "inference-system", Name: name}, UID: types.UID(name), Node: "node-" + name,
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 9002), Ready: true,
		})
	}
	set := func(what string, ready bool) func(p Picker) error {
		return func(p Picker) error {
			if w.refused != nil {
				return w.refused
			}
			w.done = append(w.done, what+p.Name.Name)
			for i := range w.pickers {
				if w.pickers[i].UID == p.UID {
					w.pickers[i].Ready, w.pickers[i].Withdrawn = ready, !ready
				}
			}
			return nil
		}
	}
	withdraw, restore := set("-", false), set("+", true)
	w.Watch = newWatch(World{
		Node:     "node",
		Leads:    func() bool { return w.leads },
		List:     func(context.Context) ([]Picker, error) { return slices.Clone(w.pickers), nil },
		Look:     func() { w.looks++ },
		Unpicked: func(after time.Time) bool { return w.unpicked.After(after) },
		Withdraw: func(_ context.Context, p Picker, _ time.Duration) error { return withdraw(p) },
		Restore:  func(_ context.Context, p Picker) error { return restore(p) },
	}, func(_ context.Context, at netip.AddrPort) outcome {
		if o, set := w.outcomes[names[at.Addr().As4()[3]]]; set {
			return o
		}
		return sound
	}, w.clock)
	return w
}

func (w *world) rounds(t *testing.T, n int) {
	t.Helper()
	for range n {
		w.clock.Step(500 * time.Millisecond)
		if err := w.round(t.Context()); err != nil && !errors.Is(err, w.refused) {
			t.Fatal(err)
		}
	}
}

// want compares what was done: "-a" for the withdrawal of picker a, "+a" for its restoration.
func (w *world) want(t *testing.T, done string) {
	t.Helper()
	if got := strings.Join(w.done, " "); got != done {
		t.Fatalf("done: %q, want %q", got, done)
	}
}

// A picker is withdrawn after three tries in silence, if another one answers, and restored after two answers.
func TestSilentPickerBesideAnother(t *testing.T) {
	w := newWorld("a", "b")
	w.rounds(t, 2)
	w.outcomes["a"] = silence
	w.rounds(t, 2)
	w.want(t, "")
	w.rounds(t, 1)
	w.want(t, "-a")
	w.rounds(t, 200)
	w.outcomes["a"] = sound
	w.rounds(t, 1)
	w.want(t, "-a")
	w.rounds(t, 1)
	w.want(t, "-a +a")
}

// A picker that its kubelet insists on is withdrawn once, and again only after it has answered for a while.
func TestKubeletInsists(t *testing.T) {
	w := newWorld("a", "b")
	w.rounds(t, 1)
	w.outcomes["a"] = silence
	for range 100 {
		w.pickers[0].Ready, w.pickers[0].Withdrawn = true, false
		w.rounds(t, 1)
	}
	w.want(t, "-a")
}

// Withdrawals of a picker that comes and goes become rare.
func TestPickerThatComesAndGoes(t *testing.T) {
	w := newWorld("a", "b")
	for range 180 { // of 10 s each
		w.outcomes["a"] = sound
		w.rounds(t, 16)
		w.outcomes["a"] = silence
		w.rounds(t, 4)
	}
	if n := strings.Count(strings.Join(w.done, " "), "-a"); n < 3 || n > 7 {
		t.Errorf("withdrawn %d times in half an hour", n)
	}
}

// Where no other picker answers, the controller itself may be cut off. Then waypoints decide, by calls without a pick since.
func TestNoPickerAnswers(t *testing.T) {
	w := newWorld("a")
	w.rounds(t, 2)
	w.unpicked = w.clock.Now() // before the silence
	w.outcomes["a"] = silence
	w.rounds(t, 4)
	w.want(t, "")
	if w.looks != 4 {
		t.Errorf("the waypoints are looked at %d times, want one for each try", w.looks)
	}
	w.unpicked = w.clock.Now()
	w.rounds(t, 1)
	w.want(t, "")
	w.rounds(t, 1)
	w.want(t, "-a")
}

// The waypoints are looked at for a minute only.
func TestLooksEnd(t *testing.T) {
	w := newWorld("a")
	w.rounds(t, 2)
	w.outcomes["a"] = silence
	w.rounds(t, 1000)
	w.want(t, "")
	if w.looks > int(lookFor/(500*time.Millisecond)) {
		t.Errorf("%d looks", w.looks)
	}
}

// The last of several pickers that is ready stays. Withdrawals come one at a time.
func TestLastPickerStays(t *testing.T) {
	w := newWorld("a", "b", "c")
	w.rounds(t, 2)
	for _, name := range []string{"a", "b", "c"} {
		w.outcomes[name] = silence
	}
	w.rounds(t, 2)
	w.unpicked = w.clock.Now().Add(time.Hour)
	w.rounds(t, 3)
	w.want(t, "")
	w.rounds(t, 1)
	w.want(t, "-a")
	w.rounds(t, 17)
	w.want(t, "-a")
	w.rounds(t, 500)
	w.want(t, "-a -b")
}

// No picker on the controller's node is a witness, nor one on the same node.
func TestWitnessesOfTheNetwork(t *testing.T) {
	for _, node := range []string{"node", "node-a"} {
		w := newWorld("a", "b")
		w.pickers[1].Node = node
		w.rounds(t, 2)
		w.outcomes["a"] = silence
		w.rounds(t, 10)
		w.want(t, "")
	}
}

// A picker that has never answered is out of the controller's reach, and stays.
func TestPickerOutOfReach(t *testing.T) {
	w := newWorld("a", "b")
	w.outcomes["a"] = silence
	w.unpicked = w.clock.Now().Add(time.Hour)
	w.rounds(t, 20)
	w.want(t, "")
}

// Only tries in a row count, without answers and without tries that say nothing in between.
func TestSilencesThatAreInterrupted(t *testing.T) {
	for _, between := range []outcome{sound, unknown} {
		w := newWorld("a", "b")
		w.rounds(t, 1)
		for range 10 {
			w.outcomes["a"] = silence
			w.rounds(t, 2)
			w.outcomes["a"] = between
			w.rounds(t, 1)
		}
		w.want(t, "")
	}
}

// Tries that were held up at the controller say nothing of the picker.
func TestControllerIsHeldUp(t *testing.T) {
	w := newWorld("a", "b")
	w.rounds(t, 1)
	asked := w.ask
	w.ask = func(ctx context.Context, at netip.AddrPort) outcome {
		o := asked(ctx, at)
		if o == silence {
			w.clock.Step(askTimeout + lateBy + time.Millisecond)
		}
		return o
	}
	w.outcomes["a"] = silence
	w.rounds(t, 10)
	w.want(t, "")
}

// A replica that begins to lead knows what it has seen before.
func TestNewLeader(t *testing.T) {
	w := newWorld("a", "b")
	w.leads = false
	w.rounds(t, 2)
	w.outcomes["a"] = silence
	w.rounds(t, 10)
	w.want(t, "")
	w.leads = true
	w.rounds(t, 1)
	w.want(t, "-a")
}

// A picker of the same name is another picker, and what is known of the old one is forgotten.
func TestReplacedPicker(t *testing.T) {
	w := newWorld("a", "b")
	w.rounds(t, 1)
	w.outcomes["a"] = silence
	w.rounds(t, 2)
	w.pickers[0].UID = "another"
	w.rounds(t, 10)
	w.want(t, "")
	if len(w.known) != 2 {
		t.Errorf("%d pickers are remembered", len(w.known))
	}
}

// What the API server refuses is tried again.
func TestRefusedWrites(t *testing.T) {
	w := newWorld("a", "b")
	w.rounds(t, 1)
	w.outcomes["a"] = silence
	w.refused = errors.New("not now")
	w.rounds(t, 20)
	w.refused = nil
	w.rounds(t, 1)
	w.want(t, "-a")
	w.refused = errors.New("not now")
	w.outcomes["a"] = sound
	w.rounds(t, 20)
	w.refused = nil
	w.rounds(t, 1)
	w.want(t, "-a +a")
}

// Errors and their end are told.
func TestFailed(t *testing.T) {
	w := newWorld("a")
	var told []error
	ctx, cancel := context.WithCancel(t.Context())
	broken := errors.New("no list")
	lists := 0
	w.List = func(context.Context) ([]Picker, error) {
		if lists++; lists == 1 {
			return nil, broken
		}
		return nil, nil
	}
	w.Failed = func(err error) {
		if told = append(told, err); len(told) == 2 {
			cancel()
		}
	}
	go func() {
		for ctx.Err() == nil {
			w.clock.Step(time.Second)
			time.Sleep(time.Millisecond)
		}
	}()
	w.Run(ctx, time.Second)
	if len(told) != 2 || !errors.Is(told[0], broken) || told[1] != nil {
		t.Errorf("told: %v", told)
	}
}
