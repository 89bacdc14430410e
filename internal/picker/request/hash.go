package request

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// A join is the purpose for which two hashes are joined, so that equal hashes of different kinds stay apart.
type join uint64

const (
	joinNames join = iota // the model's name and the cache salt
	joinSection
	joinBlock
	joinRest // the last bytes of a section, which fill no block
)

// with joins a and b, in this order, into one hash.
func (j join) with(seed, a, b uint64) uint64 {
	var p [16]byte
	binary.LittleEndian.PutUint64(p[:8], a)
	binary.LittleEndian.PutUint64(p[8:], b)
	return xxh3.HashSeed(p[:], seed+uint64(j))
}

// half is half a block: as many bytes as xxh3 hashes with a seed in the time that it takes without one. From 241 bytes
// on it first makes a secret of the seed, which takes as long as the hash.
const half = BlockBytes / 2

// hashOf returns the hash of at most one block of text, by itself.
func hashOf(seed uint64, p []byte) uint64 {
	if len(p) > half {
		seed, p = xxh3.HashSeed(p[:half], seed), p[half:]
	}
	return xxh3.HashSeed(p, seed)
}
