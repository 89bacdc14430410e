package workload

// text is a prompt as a list of parts. Two prompts share the parts at their heads that are equal.
type text struct {
	parts  []part
	tokens int
}

// part is a run of tokens, identified by its seed.
type part struct {
	seed   uint64
	tokens int
}

// with returns the text with one more part at its end, and does not change the text itself.
func (t text) with(seed uint64, tokens int) text {
	return text{
		parts:  append(t.parts[:len(t.parts):len(t.parts)], part{seed, tokens}),
		tokens: t.tokens + tokens,
	}
}

// blocks returns the chained hashes of the text's whole blocks. They differ between adapters, as in model servers: an
// adapter has key and value vectors of its own.
func (t text) blocks(adapter uint64) []uint64 {
	out := make([]uint64, 0, t.tokens/BlockTokens)
	hash, filled := Mix(adapter, 1), 0
	for _, p := range t.parts {
		for at := 0; at < p.tokens; {
			n := min(BlockTokens-filled, p.tokens-at)
			hash = Mix(hash, Mix(p.seed, uint64(at)<<8|uint64(n)))
			at += n
			if filled += n; filled == BlockTokens {
				out = append(out, hash)
				filled = 0
			}
		}
	}
	return out
}

// Mix folds a value into a hash with the finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
func Mix(hash, value uint64) uint64 {
	z := hash ^ (value + 0x9e3779b97f4a7c15 + hash<<6 + hash>>2)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
