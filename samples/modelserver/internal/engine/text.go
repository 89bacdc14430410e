package engine

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/cespare/xxhash/v2"
)

// vocabulary holds the words of answers: each word is one token.
var vocabulary = [...]string{
	"all ", "and ", "any ", "are ", "ask ", "bad ", "big ", "bit ",
	"but ", "buy ", "can ", "car ", "cut ", "day ", "did ", "dry ",
	"eat ", "end ", "far ", "few ", "fly ", "for ", "fun ", "get ",
	"had ", "has ", "her ", "him ", "hot ", "how ", "its ", "job ",
	"key ", "let ", "low ", "man ", "map ", "may ", "men ", "new ",
	"not ", "now ", "off ", "old ", "one ", "our ", "out ", "own ",
	"pay ", "put ", "ran ", "red ", "run ", "saw ", "say ", "see ",
	"set ", "she ", "sun ", "the ", "two ", "use ", "was ", "you ",
}

// lastWord is the last token of an answer that ends by itself.
const lastWord = "yes."

// seedOf is the start of a chain of block hashes. Texts with different names or
// salts share no block.
func seedOf(name, salt string) uint64 {
	return xxhash.Sum64String(name + "\x00" + salt)
}

// blockHashes returns the hash of each full block of text, computed from the
// block's bytes and the previous hash.
func blockHashes(seed uint64, text []byte, blockBytes int) []uint64 {
	hashes := make([]uint64, 0, len(text)/blockBytes)
	buf := make([]byte, 8+blockBytes)
	for prev := seed; len(text) >= blockBytes; text = text[blockBytes:] {
		binary.LittleEndian.PutUint64(buf, prev)
		copy(buf[8:], text[:blockBytes])
		prev = xxhash.Sum64(buf)
		hashes = append(hashes, prev)
	}
	return hashes
}

// answer returns the tokens after a prompt, at most limit, and whether they end
// by themselves. The same seed and prompt always give the same answer. Lengths
// are uniform from half the mean to one and a half times the mean; endless
// answers fill the limit.
func answer(seed uint64, prompt []byte, limit, mean int, endless bool) (text []byte, ends bool) {
	rng := rand.New(rand.NewPCG(seed, xxhash.Sum64(prompt)))
	natural := max(1, mean/2+rng.IntN(mean+1))
	ends = !endless && natural <= limit
	n := limit
	if ends {
		n = natural - 1
	}
	text = make([]byte, 0, (n+1)*BytesPerToken)
	for range n {
		text = append(text, vocabulary[rng.IntN(len(vocabulary))]...)
	}
	if ends {
		text = append(text, lastWord...)
	}
	return text, ends
}

// ceilDiv returns a/b rounded up.
func ceilDiv(a, b int) int { return (a + b - 1) / b }
