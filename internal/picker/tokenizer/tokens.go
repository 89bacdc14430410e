package tokenizer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"sort"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/tokenblocks"
)

// Tokens are a prompt's tokens, for the base model or an adapter.
type Tokens struct {
	adapter string
	tokens  []uint32
	ends    []int32 // where each token ends in the prompt as the model gets it, in bytes
}

// Count is the number of tokens.
func (t *Tokens) Count() int { return len(t.tokens) }

// Before returns how many tokens end within a part of the prompt, 0 to 1, from its head.
func (t *Tokens) Before(part float64) int {
	end := int32(math.Ceil(part * float64(t.ends[len(t.ends)-1])))
	return sort.Search(len(t.ends), func(i int) bool { return t.ends[i] > end })
}

// Names are the names of the whole blocks of so many tokens.
func (t *Tokens) Names(length int) []uint64 {
	names := make([]uint64, 0, len(t.tokens)/length)
	name := tokenblocks.Root(t.adapter)
	for at := 0; at+length <= len(t.tokens); at += length {
		name = tokenblocks.Next(name, t.tokens[at:at+length])
		names = append(names, name)
	}
	return names
}

// statusError is an answer whose status is not 200.
type statusError struct {
	path   string
	status int
}

func (e statusError) Error() string {
	return fmt.Sprintf("%s is answered with status %d", e.path, e.status)
}

// hopeless reports whether a server cannot tell the tokens of any prompt: it cannot be reached, or does not have the path, or not for
// everybody. All other errors may be those of one prompt, such as one that is too long for the model.
func hopeless(err error) bool {
	if errors.Is(err, errOther) || errors.Is(err, errNoModel) {
		return false
	}
	var e statusError
	return !errors.As(err, &e) || slices.Contains([]int{
		http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
	}, e.status)
}

var errNoTokens = errors.New("the answer has no tokens")

// readTokens reads the tokens of an answer, and where each ends in the prompt, but not of more than so many. All else is skipped,
// so an answer takes no more memory than its tokens.
func readTokens(answer io.Reader, most int) (tokens []uint32, ends []int32, err error) {
	in := bufio.NewReaderSize(io.LimitReader(answer, int64(most)*64), 16<<10)
	if tokens, err = readIDs(in, most); err != nil {
		return nil, nil, err
	}
	if len(tokens) == 0 {
		return nil, nil, errNoTokens
	}
	ends, err = readEnds(in, len(tokens))
	return tokens, ends, err
}

// readIDs reads a list of small numbers.
func readIDs(in *bufio.Reader, most int) ([]uint32, error) {
	if err := skipPast(in, `"tokens":`); err != nil {
		return nil, err
	}
	var out []uint32
	for id, digits := uint64(0), 0; ; {
		c, err := in.ReadByte()
		if err != nil {
			return nil, errNoTokens
		}
		switch {
		case c >= '0' && c <= '9':
			if id, digits = id*10+uint64(c-'0'), digits+1; digits > 9 {
				return nil, errNoTokens
			}
		case c == ',' || c == ']':
			if digits > 0 {
				out = append(out, uint32(id))
			}
			if c == ']' {
				return out, nil
			}
			if len(out) > most {
				return nil, fmt.Errorf("the answer has more than %d tokens", most)
			}
			id, digits = 0, 0
		case c != '[' && c != ' ' && c != '\n':
			return nil, errNoTokens
		}
	}
}

// Tokenizers write a space that begins a token as one of these. The first belongs to those that write each byte as a character of
// its own, as GPT-2's does, and the second to those of SentencePiece.
const (
	spaceOfBytes      = 'Ġ'
	spaceOfCharacters = '▁'
)

// readEnds reads a list of so many strings, the tokens as their tokenizer writes them, and returns where each ends in the text.
func readEnds(in *bufio.Reader, count int) ([]int32, error) {
	if err := skipPast(in, `"token_strs":`); err != nil {
		return nil, err
	}
	characters, bytes := make([]int32, 0, count), make([]int32, 0, count)
	var character, end int32
	byBytes := false
	for len(bytes) < count {
		if err := skipPast(in, `"`); err != nil {
			return nil, err
		}
		for {
			c, size, err := in.ReadRune()
			if err != nil {
				return nil, errNoTokens
			}
			if c == '"' {
				break
			}
			if c == '\\' { // all that JSON must escape is one byte
				if c, _, err = in.ReadRune(); err != nil {
					return nil, errNoTokens
				}
				if c == 'u' {
					_, _ = in.Discard(4) // the end shows in the next rune
				}
				size = 1
			}
			if c == spaceOfCharacters {
				size = 1
			}
			byBytes = byBytes || c == spaceOfBytes
			character++
			end += int32(size)
		}
		characters, bytes = append(characters, character), append(bytes, end)
	}
	if byBytes {
		return characters, nil
	}
	return bytes, nil
}

// skipPast reads up to the end of the first occurrence of a text. No head of the text but its first byte occurs again in it.
func skipPast(in io.ByteReader, text string) error {
	for matched := 0; matched < len(text); {
		c, err := in.ReadByte()
		if err != nil {
			return errNoTokens
		}
		switch c {
		case text[matched]:
			matched++
		case text[0]:
			matched = 1
		default:
			matched = 0
		}
	}
	return nil
}

const (
	// modelsFor is how long a server's word on a model counts, and maxModels of how many models it is remembered.
	modelsFor = time.Minute
	maxModels = 32
	// maxModelsPage bounds a server's list of models, in bytes.
	maxModelsPage = 256 << 10
)

// errNoModel is the error of a model that a server does not list.
var errNoModel = errors.New("the server does not list the model")

// isAdapter reports whether a server's model is a LoRA adapter. Such models name the model that they adapt as their parent.
func (k *Tokenizer) isAdapter(ctx context.Context, s *server, model string) (bool, error) {
	if adapter, known := s.adapters[model]; known && time.Since(s.asked) < modelsFor {
		return adapter, nil
	}
	answer, err := k.ask(ctx, s.endpoint, http.MethodGet, "/v1/models", http.NoBody)
	if err != nil {
		return false, err
	}
	defer finish(answer)
	var list struct {
		Data []struct {
			ID     string  `json:"id"`
			Parent *string `json:"parent"`
		} `json:"data"`
	}
	if err := json.NewDecoder(io.LimitReader(answer, maxModelsPage)).Decode(&list); err != nil {
		return false, fmt.Errorf("reading /v1/models: %w", err)
	}
	if len(s.adapters) >= maxModels || time.Since(s.asked) >= modelsFor {
		s.adapters, s.asked = map[string]bool{}, time.Now()
	}
	for _, m := range list.Data {
		if m.ID == model {
			s.adapters[model] = m.Parent != nil
			return m.Parent != nil, nil
		}
	}
	return false, errNoModel
}
