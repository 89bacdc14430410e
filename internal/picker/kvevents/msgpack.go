package kvevents

import (
	"encoding/binary"
	"errors"
	"math"
	"runtime"
)

// errMalformed is the error of a payload that is no MessagePack, or not of the expected shape.
var errMalformed = errors.New("the payload is malformed")

// kind is the kind of a MessagePack value.
type kind uint8

const (
	kindNil kind = iota
	kindBool
	kindInt
	kindFloat
	kindString
	kindBytes
	kindExt
	kindArray
	kindMap
)

// value is the head of a MessagePack value.
type value struct {
	kind     kind
	negative bool   // of an int
	bits     uint64 // of an int, in two's complement
	bytes    []byte // of a string or of bytes; part of the payload
	n        int    // the elements of an array, or the pairs of a map
}

// breath is how many values are read before other goroutines may run: 0.1 ms of work.
const breath = 1 << 14

// cursor reads MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md) from a payload. It allocates nothing
// and does not recurse, so neither announced lengths nor depth cost a hostile payload's reader anything. The library
// github.com/vmihailenco/msgpack/v5 skips nested values by recursion without a bound, which a payload of a few MiB
// makes deep.
type cursor struct {
	data []byte
	at   int
	read int // values
}

// take returns the next n bytes.
func (c *cursor) take(n uint64) ([]byte, error) {
	if n > uint64(len(c.data)-c.at) {
		return nil, errMalformed
	}
	out := c.data[c.at : c.at+int(n)]
	c.at += int(n)
	return out, nil
}

// number returns the next n bytes, of 1, 2, 4 or 8, as a number.
func (c *cursor) number(n int) (uint64, error) {
	b, err := c.take(uint64(n))
	switch {
	case err != nil:
		return 0, err
	case n == 1:
		return uint64(b[0]), nil
	case n == 2:
		return uint64(binary.BigEndian.Uint16(b)), nil
	case n == 4:
		return uint64(binary.BigEndian.Uint32(b)), nil
	default:
		return binary.BigEndian.Uint64(b), nil
	}
}

// next reads a value; of an array or map only its head, so that its elements come next.
func (c *cursor) next() (value, error) {
	if c.read++; c.read%breath == 0 {
		runtime.Gosched()
	}
	head, err := c.number(1)
	if err != nil {
		return value{}, err
	}
	switch h := byte(head); {
	case h < 0x80:
		return value{kind: kindInt, bits: head}, nil
	case h < 0x90:
		return c.container(kindMap, head&0x0f)
	case h < 0xa0:
		return c.container(kindArray, head&0x0f)
	case h < 0xc0:
		return c.text(kindString, head&0x1f)
	case h >= 0xe0:
		return signed(int64(int8(h))), nil
	case h >= 0xd4 && h <= 0xd8:
		return c.text(kindExt, 1+1<<(h-0xd4))
	default:
		return c.long(h)
	}
}

// long reads a value whose head is from 0xc0 to 0xd3 or from 0xd9 to 0xdf. A head says how many bytes its number has.
func (c *cursor) long(head byte) (value, error) {
	var size int
	switch head {
	case 0xc0:
		return value{kind: kindNil}, nil
	case 0xc2, 0xc3:
		return value{kind: kindBool, bits: uint64(head & 1)}, nil
	case 0xc4, 0xc7, 0xcc, 0xd0, 0xd9:
		size = 1
	case 0xc5, 0xc8, 0xcd, 0xd1, 0xda, 0xdc, 0xde:
		size = 2
	case 0xc6, 0xc9, 0xca, 0xce, 0xd2, 0xdb, 0xdd, 0xdf:
		size = 4
	case 0xcb, 0xcf, 0xd3:
		size = 8
	default: // 0xc1 is never used
		return value{}, errMalformed
	}
	n, err := c.number(size)
	if err != nil {
		return value{}, err
	}
	switch {
	case head <= 0xc6:
		return c.text(kindBytes, n)
	case head <= 0xc9:
		return c.text(kindExt, n+1) // the byte that says what it is
	case head <= 0xcb:
		return value{kind: kindFloat, bits: n}, nil
	case head <= 0xcf:
		return value{kind: kindInt, bits: n}, nil
	case head <= 0xd3:
		unused := 64 - 8*size
		return signed(int64(n<<unused) >> unused), nil
	case head <= 0xdb:
		return c.text(kindString, n)
	case head <= 0xdd:
		return c.container(kindArray, n)
	default:
		return c.container(kindMap, n)
	}
}

func signed(n int64) value { return value{kind: kindInt, bits: uint64(n), negative: n < 0} }

func (c *cursor) text(k kind, n uint64) (value, error) {
	b, err := c.take(n)
	return value{kind: k, bytes: b}, err
}

// container checks that an array's or a map's elements can be there: each has a byte at least.
func (c *cursor) container(k kind, n uint64) (value, error) {
	each := uint64(1)
	if k == kindMap {
		each = 2
	}
	if n*each > uint64(len(c.data)-c.at) {
		return value{}, errMalformed
	}
	return value{kind: k, n: int(n)}, nil
}

// skip passes over a value with all that it holds.
func (c *cursor) skip() error {
	for left := 1; left > 0; left-- {
		v, err := c.next()
		if err != nil {
			return err
		}
		left += v.n
		if v.kind == kindMap {
			left += v.n
		}
	}
	return nil
}

// raw returns the bytes of a value with all that it holds.
func (c *cursor) raw() ([]byte, error) {
	start := c.at
	err := c.skip()
	return c.data[start:c.at], err
}

// array reads the head of an array, and returns how many elements come next.
func (c *cursor) array() (int, error) {
	v, err := c.next()
	if err == nil && v.kind != kindArray {
		err = errMalformed
	}
	return v.n, err
}

// uint32s fills the slice with the next values.
func (c *cursor) uint32s(into []uint32) error {
	for i := range into {
		v, err := c.next()
		if err != nil {
			return err
		}
		if v.kind != kindInt || v.bits > math.MaxUint32 { // a negative number has its highest bits set
			return errMalformed
		}
		into[i] = uint32(v.bits)
	}
	return nil
}
