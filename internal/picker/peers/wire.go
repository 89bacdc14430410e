package peers

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/fxamacker/cbor/v2"
	"google.golang.org/grpc/mem"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Messages are CBOR (RFC 8949) with numbers for names. A picker of a later version may add numbers, which earlier versions
// skip. What a number means never changes: a picker that cannot be understood any more has a service of another name.

// message is what a picker tells those that follow it. An empty one says that the picker is there.
type message struct {
	// Process is the picker's own id, and Decided says whether it has decided anything so far, in the first message.
	Process string `cbor:"1,keyasint,omitempty"`
	Decided bool   `cbor:"5,keyasint,omitempty"`
	// Name is the picker's name for people, in the first message.
	Name string `cbor:"6,keyasint,omitempty"`
	// Events are in the order in which they happened.
	Events []event `cbor:"2,keyasint,omitempty"`
	// Part is a part of the copy.
	Part *part `cbor:"3,keyasint,omitempty"`
	// Complete says, in the first message of a copy, that the picker itself has had one, or was there first.
	Complete bool `cbor:"4,keyasint,omitempty"`
}

// event is a poolstate.Event.
type event struct {
	Kind     uint8  `cbor:"1,keyasint"`
	Pool     string `cbor:"2,keyasint"`
	Call     uint64 `cbor:"3,keyasint"`
	Endpoint string `cbor:"4,keyasint,omitempty"`
	Model    string `cbor:"5,keyasint,omitempty"`
	Stream   bool   `cbor:"6,keyasint,omitempty"`
	Bytes    int    `cbor:"7,keyasint,omitempty"`
	Blocks   []byte `cbor:"8,keyasint,omitempty"` // of eight bytes each, the least significant one first
	Uncached int    `cbor:"9,keyasint,omitempty"`
	Outcome  uint8  `cbor:"10,keyasint,omitempty"`

	NotPrefilled bool `cbor:"11,keyasint,omitempty"`
	Unsure       int  `cbor:"12,keyasint,omitempty"`

	Tokens  float64 `cbor:"13,keyasint,omitempty"`
	Seconds float64 `cbor:"14,keyasint,omitempty"`
}

// fromEvent makes an event without its blocks.
func fromEvent(e *poolstate.Event) event {
	out := event{
		Kind: uint8(e.Kind), Pool: e.Pool.String(), Call: e.Call, Outcome: uint8(e.Outcome), NotPrefilled: e.NotPrefilled, Unsure: e.Unsure,
		Tokens: e.Speed.Tokens, Seconds: e.Speed.Seconds,
	}
	if e.Endpoint.IsValid() {
		out.Endpoint = e.Endpoint.String()
	}
	if e.Kind == poolstate.Reserved {
		f := &e.Facts
		out.Model, out.Stream, out.Bytes, out.Uncached = f.Model, f.Stream, f.PromptBytes, e.Uncached
	}
	return out
}

var errNotUnderstood = errors.New("a message of a picker is not understood")

func (e *event) event() (poolstate.Event, error) {
	out := poolstate.Event{
		Kind: poolstate.EventKind(e.Kind), Call: e.Call, Outcome: poolstate.Outcome(e.Outcome), Uncached: e.Uncached,
		NotPrefilled: e.NotPrefilled, Unsure: e.Unsure, Speed: selection.Learned{Tokens: e.Tokens, Seconds: e.Seconds},
		Facts: request.Facts{Model: e.Model, Stream: e.Stream, PromptBytes: e.Bytes},
	}
	var named, whole bool
	out.Pool, named = pool.ParseName(e.Pool)
	out.Facts.Blocks, whole = unpacked(e.Blocks)
	if !named || !whole || len(e.Model) > request.MaxModelBytes {
		return out, errNotUnderstood
	}
	if e.Endpoint != "" {
		var err error
		if out.Endpoint, err = netip.ParseAddrPort(e.Endpoint); err != nil {
			return out, errNotUnderstood
		}
	}
	return out, nil
}

func appendBlocks(to []byte, blocks []uint64) []byte {
	for _, b := range blocks {
		to = binary.LittleEndian.AppendUint64(to, b)
	}
	return to
}

func unpacked(bytes []byte) (blocks []uint64, whole bool) {
	if len(bytes)%8 != 0 || len(bytes) > 8*request.MaxBlocks {
		return nil, false
	}
	blocks = make([]uint64, 0, len(bytes)/8)
	for ; len(bytes) > 0; bytes = bytes[8:] {
		blocks = append(blocks, binary.LittleEndian.Uint64(bytes))
	}
	return blocks, true
}

// encoded is a message that is encoded once for all that follow.
type encoded []byte

func encode(m *message) encoded {
	out, err := cbor.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("encoding a message of numbers and strings: %v", err)) // cannot happen
	}
	return out
}

// codec is gRPC's codec of these messages.
type codec struct{}

func (codec) Name() string { return "cbor" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if bytes, ok := v.(encoded); ok {
		return mem.BufferSlice{mem.SliceBuffer(bytes)}, nil
	}
	bytes, err := cbor.Marshal(v)
	return mem.BufferSlice{mem.SliceBuffer(bytes)}, err
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	return decoding.Unmarshal(data.Materialize(), v)
}

// decoding takes text that is no UTF-8: a caller may send any bytes as its model's name.
var decoding = func() cbor.DecMode {
	mode, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		panic(err) // these options are valid
	}
	return mode
}()

// mostBytes bounds a message. One of a part of a copy has some 64 KiB, and one of events some 1 MiB.
const mostBytes = 16 << 20

// The service, and its streams. The caller of each sends nothing: follow is of events without an end, copy is of the parts
// of a copy.
const (
	service    = "inference_waypoint.peers.v1.Peers"
	followName = "Follow"
	copyName   = "Copy"
)
