package kvevents

import (
	"bytes"
	"hash/maphash"
)

// eventKind says what happened to blocks.
type eventKind uint8

const (
	eventUnknown eventKind = iota // skipped
	eventStored
	eventRemoved
	eventCleared
)

// event is an event of a batch. Its fields are MessagePack values of the payload, as they are; a missing one is empty.
type event struct {
	kind      eventKind
	hashes    []byte
	parent    []byte
	tokens    []byte
	blockSize []byte
	loraID    []byte
	medium    []byte
	loraName  []byte
	extraKeys []byte
	group     []byte
}

// The fields of events that are arrays, in their order, as older versions of vLLM and SGLang send them. vLLM's
// distributed/kv_events.py declares them.
var (
	storedFields = fieldNames("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium",
		"lora_name", "extra_keys", "group_idx")
	removedFields = fieldNames("block_hashes", "medium", "group_idx")
)

func fieldNames(names ...string) [][]byte {
	var out [][]byte
	for _, name := range names {
		out = append(out, []byte(name))
	}
	return out
}

// decode reads a batch, an array [time, events, rank, …], and calls each for each event. An event of an unknown kind or
// shape is left out. The error is errMalformed, or each's.
func decode(payload []byte, each func(*event) error) error {
	c := cursor{data: payload}
	n, err := c.array()
	if err != nil {
		return err
	}
	if n < 2 {
		return errMalformed
	}
	if err := c.skip(); err != nil { // the time
		return err
	}
	events, err := c.array()
	if err != nil {
		return err
	}
	for range events {
		e, err := c.event()
		if err != nil {
			return err
		}
		if e.kind == eventUnknown {
			continue
		}
		if err := each(&e); err != nil {
			return err
		}
	}
	return nil // what comes behind the events is not read
}

// event reads an event: a map of its fields, or an array of its name and its fields.
func (c *cursor) event() (e event, err error) {
	start := *c
	head, err := c.next()
	switch {
	case err != nil:
		return e, err
	case head.kind == kindMap:
		return e, c.fields(&e, head.n)
	case head.kind == kindArray && head.n > 0:
		return e, c.elements(&e, head.n)
	default:
		*c = start
		return e, c.skip()
	}
}

// fields reads the fields of an event that is a map of n pairs.
func (c *cursor) fields(e *event, n int) error {
	for range n {
		name, err := c.raw()
		if err != nil {
			return err
		}
		field, err := c.raw()
		if err != nil {
			return err
		}
		e.set(text(name), field)
	}
	return nil
}

// elements reads the fields of an event that is an array of n elements.
func (c *cursor) elements(e *event, n int) error {
	name, err := c.raw()
	if err != nil {
		return err
	}
	e.kind = kindOf(text(name))
	names := storedFields
	if e.kind == eventRemoved {
		names = removedFields
	}
	for i := range n - 1 {
		field, err := c.raw()
		if err != nil {
			return err
		}
		if i < len(names) {
			e.set(names[i], field)
		}
	}
	return nil
}

func (e *event) set(name, field []byte) {
	switch string(name) {
	case "type":
		e.kind = kindOf(text(field))
	case "block_hashes":
		e.hashes = field
	case "parent_block_hash":
		e.parent = field
	case "token_ids":
		e.tokens = field
	case "block_size":
		e.blockSize = field
	case "lora_id":
		e.loraID = field
	case "medium":
		e.medium = field
	case "lora_name":
		e.loraName = field
	case "extra_keys":
		e.extraKeys = field
	case "group_idx":
		e.group = field
	}
}

func kindOf(name []byte) eventKind {
	switch string(name) {
	case "BlockStored":
		return eventStored
	case "BlockRemoved":
		return eventRemoved
	case "AllBlocksCleared":
		return eventCleared
	default:
		return eventUnknown
	}
}

// text returns a value that is a string; nothing for any other.
func text(raw []byte) []byte {
	c := cursor{data: raw}
	if v, err := c.next(); err == nil && v.kind == kindString {
		return v.bytes
	}
	return nil
}

// none says that a field is missing or nil.
func none(raw []byte) bool { return len(raw) == 0 || raw[0] == 0xc0 }

// whole returns a value that is an int from 0 to most.
func whole(raw []byte, most uint64) (int, bool) {
	c := cursor{data: raw}
	v, err := c.next()
	return int(v.bits), err == nil && v.kind == kindInt && v.bits <= most
}

// counts says whether the event is of the first group of a model's layers. A model with layers of several kinds has a
// group of blocks for each kind.
func (e *event) counts() bool {
	if none(e.group) {
		return true
	}
	group, ok := whole(e.group, 0)
	return ok && group == 0
}

// medium is where a block is cached. A block may be in several media.
type medium uint8

const (
	gpu medium = iota
	cpu
	otherMedium
	media // how many there are
)

func (e *event) where() medium {
	switch string(text(e.medium)) {
	case "GPU", "":
		return gpu
	case "CPU":
		return cpu
	default:
		return otherMedium
	}
}

var hashSeed = maphash.MakeSeed()

// hash reads a block's hash, 64 bits or a string of bytes. Of bytes it returns a hash of its own, with a random seed.
func (c *cursor) hash() (uint64, error) {
	v, err := c.next()
	switch {
	case err != nil:
		return 0, err
	case v.kind == kindInt:
		return v.bits, nil
	case v.kind == kindBytes || v.kind == kindString:
		return maphash.Bytes(hashSeed, v.bytes), nil
	default:
		return 0, errMalformed
	}
}

// keys reads the entry of a block in extra_keys, and returns the bytes of its elements, but for the first one if that is
// the adapter's name. Most blocks have none.
func (c *cursor) keys(adapter []byte) ([]byte, error) {
	entry, err := c.raw()
	if err != nil || none(entry) {
		return nil, err
	}
	inside := cursor{data: entry}
	n, err := inside.array()
	if err != nil || n == 0 {
		return nil, err
	}
	start := inside.at
	first, err := inside.raw()
	if err != nil {
		return nil, err
	}
	if len(adapter) > 0 && bytes.Equal(text(first), adapter) {
		start = inside.at
	}
	return entry[start:], nil
}
