// Package tokenblocks names blocks of tokens, so that a block has one name whichever server has it cached. It must not
// know servers, requests or tokenizers.
//
// A name stands for its block and for all blocks before it, back to the prompt's head. Names hold within one process:
// their seed is random, so that a tenant, who chooses tokens and keys, cannot prepare blocks whose names collide. Names
// must therefore neither be stored nor sent to other processes.
package tokenblocks

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
)

var seed = maphash.MakeSeed()

// The first byte of what is hashed keeps the three kinds of names apart.
const (
	root byte = iota
	next
	keyed
)

// piece is how many tokens are hashed at a time.
const piece = 64

// Root returns the name of a prompt's head, which is the parent of the first block. adapter is the name of the LoRA
// adapter; "" is the base model.
func Root(adapter string) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	_ = h.WriteByte(root) // never fails
	_, _ = h.WriteString(adapter)
	return h.Sum64()
}

// Next returns the name of the block that holds the tokens and follows its parent: a block, a Root or a Keyed.
func Next(parent uint64, tokens []uint32) uint64 {
	h := after(next, parent)
	var bytes [4 * piece]byte
	for some := range slices.Chunk(tokens, piece) {
		for i, token := range some {
			binary.NativeEndian.PutUint32(bytes[4*i:], token)
		}
		_, _ = h.Write(bytes[:4*len(some)])
	}
	return h.Sum64()
}

// Keyed returns what takes the parent's place in Next where a block has keys beside its tokens, such as a cache salt or
// an image's hash:
//
//	Next(Keyed(parent, keys), tokens)
//
// Equal tokens with different keys, or without any, so have different names.
func Keyed(parent uint64, keys []byte) uint64 {
	h := after(keyed, parent)
	_, _ = h.Write(keys)
	return h.Sum64()
}

// after begins the name of what follows a parent.
func after(kind byte, parent uint64) (h maphash.Hash) {
	h.SetSeed(seed)
	var head [9]byte
	head[0] = kind
	binary.NativeEndian.PutUint64(head[1:], parent)
	_, _ = h.Write(head[:])
	return h
}
