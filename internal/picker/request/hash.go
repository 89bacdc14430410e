package request

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// A join says what two hashes are put together for, so that none passes for another.
type join uint64

const (
	joinNames join = iota // of the model and the cache salt
	joinSection
	joinBlock
	joinRest // what fills no block, behind the blocks before it
)

// with puts b behind a.
func (j join) with(seed, a, b uint64) uint64 {
	var p [16]byte
	binary.LittleEndian.PutUint64(p[:8], a)
	binary.LittleEndian.PutUint64(p[8:], b)
	return xxh3.HashSeed(p[:], seed+uint64(j))
}

// half of a block is as much as xxh3 hashes with a seed in the time that it takes without one; from 241 bytes on it makes a
// secret of the seed first, which takes as long as the hash.
const half = BlockBytes / 2

// hashOf is the hash of a text of at most a block by itself.
func hashOf(seed uint64, p []byte) uint64 {
	if len(p) > half {
		seed, p = xxh3.HashSeed(p[:half], seed), p[half:]
	}
	return xxh3.HashSeed(p, seed)
}
