package inferencereq

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// seed begins every chain of hashes. It is the same in all replicas of the picker, which must agree.
const seed = 0x6a09e667f3bcc908

// A join says what two hashes are put together for, so that none passes for another.
type join uint64

const (
	joinNames join = iota // of the model and the cache salt
	joinSection
	joinBlock
	joinRest // what fills no block, behind the blocks before it
)

// with puts b behind a.
func (j join) with(a, b uint64) uint64 {
	var p [16]byte
	binary.LittleEndian.PutUint64(p[:8], a)
	binary.LittleEndian.PutUint64(p[8:], b)
	return xxh3.HashSeed(p[:], seed+uint64(j))
}

// hashOf is the hash of a text by itself. It has no seed: with one, xxh3 takes twice as long for a block, and the
// chain that the hash goes into is seeded.
func hashOf(p []byte) uint64 { return xxh3.Hash(p) }
