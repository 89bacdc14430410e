package workload

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// traceBlock is the length of a trace's blocks, in tokens.
const traceBlock = 512

// maxPrompt bounds the prompts of a trace, in tokens.
const maxPrompt = 1 << 20

// ReadTrace reads calls in the format of the traces published with Mooncake (FAST'25): a JSON object per line, with the
// time in milliseconds, the lengths of prompt and answer in tokens, and one id for each 512 tokens of the prompt. Equal ids
// mean equal tokens after an equal head, so each id becomes eight chained blocks of ours.
func ReadTrace(r io.Reader) ([]Call, error) {
	var calls []Call
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		c, err := traceCall(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("line %d of the trace: %w", n, err)
		}
		calls = append(calls, c)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the trace: %w", err)
	}
	sortByTime(calls)
	return calls, nil
}

func traceCall(line []byte) (Call, error) {
	var l struct {
		Timestamp    float64  `json:"timestamp"`
		InputLength  int      `json:"input_length"`
		OutputLength int      `json:"output_length"`
		HashIDs      []uint64 `json:"hash_ids"`
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return Call{}, err
	}
	switch {
	case l.InputLength < 1 || l.InputLength > maxPrompt:
		return Call{}, fmt.Errorf("input_length is %d: want 1 to %d", l.InputLength, maxPrompt)
	case len(l.HashIDs) != (l.InputLength+traceBlock-1)/traceBlock:
		return Call{}, errors.New("hash_ids must have one id for each 512 tokens of the input")
	case l.Timestamp < 0:
		return Call{}, errors.New("timestamp is negative")
	}
	return Call{
		At:      time.Duration(l.Timestamp * float64(time.Millisecond)),
		Prompt:  l.InputLength,
		Output:  max(1, l.OutputLength),
		Session: traceSession(l.HashIDs),
		Blocks:  traceBlocks(l.HashIDs, l.InputLength),
	}, nil
}

// traceSession numbers conversations, which the trace does not name. All its calls have the first block in common, so calls
// with the same first two count as one conversation: 7,373 of 12,031 calls, the largest with 43.
func traceSession(ids []uint64) uint64 {
	if len(ids) < 2 {
		return 0
	}
	return Mix(ids[0], ids[1])
}

func traceBlocks(ids []uint64, prompt int) []uint64 {
	out := make([]uint64, 0, prompt/BlockTokens)
	hash := uint64(0)
	for _, id := range ids {
		for k := range uint64(traceBlock / BlockTokens) {
			hash = Mix(hash, id<<3|k)
			if len(out) < cap(out) {
				out = append(out, hash)
			}
		}
	}
	return out
}
