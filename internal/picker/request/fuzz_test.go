package request

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var paths = []string{
	chatPath, completionsPath, responsesPath, embeddingsPath, messagesPath, "/health", "/deployments/m/x", "/tokenize",
	poolingPath, rerankPath, scoringPath, generatePath, speechPath,
}

// FuzzRead reads any body: without a panic, within the bounds that Facts promises, and twice with the same result.
func FuzzRead(f *testing.F) {
	for i, body := range []string{
		`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a\u00e9\ud83d\ude00"},{"image_url":{"url":"x"}}]}]}`,
		`{"prompt":["a",[1,2],3,null,{}],"max_tokens":1e9,"stream":tru`,
		`{"input":[{"role":"user","content":"x"},{"output":"y"},{"name":"f","arguments":"{\"a\":1}"}],"instructions":"\`,
		`{"input":[[1,2,3],[4]],"model":"\u"}`,
		`{"tools":[{"name":"f","input_schema":{"a":[1,{"b":"c"}]}}],"system":[{"text":"s"}],"messages":[{"content":[{"content":[{"text":"t"}]}],"role":"u"}]}`,
		"{\"model\":\"\xff\xfe\",\"a\":[[[[{}}}}]]]]",
		`{"data":{"a":[1]},"input_ids":[[1],2],"text":["a",{}],"lora_path":[null,"a",[`,
		`{"query":[{"text":"a"}],"documents":["b",[1,2],{"image_url":"x"},null,[],3],"item_first":true,"instruct":["c"]}`,
		`{"text_1":["a","b"],"text_2":[[1,2],[3]],"queries":[],"items":"x","item_first":tru`,
	} {
		f.Add(uint8(i), []byte(body))
	}
	f.Fuzz(func(t *testing.T, path uint8, body []byte) {
		p := paths[int(path)%len(paths)]
		var a Facts
		a.Read(Head{Path: p}, body)
		if len(a.Blocks) > MaxBlocks || len(a.Blocks)*BlockBytes > a.PromptBytes {
			t.Errorf("%d blocks of %d bytes", len(a.Blocks), a.PromptBytes)
		}
		if longest := len(body) * MediaBytes * MaxPairs; a.PromptBytes > longest {
			t.Errorf("%d bytes of prompt in %d of body", a.PromptBytes, len(body))
		}
		if len(a.Model) > max(3*len(body), len(p)) { // a name may be in the path
			t.Errorf("a model's name of %d bytes", len(a.Model))
		}
		b := a
		b.Blocks = slices.Clone(a.Blocks)
		b.Read(Head{Path: p}, body)
		if !reflect.DeepEqual(a, b) {
			t.Errorf("read again (-first +second):\n%s", cmp.Diff(a, b))
		}
	})
}

// FuzzInvariance writes one request in two ways. What no model sees (whitespace, escapes, the order of keys) must not
// change the facts, and the one written plainly must give, cut anywhere, a prefix of its blocks.
func FuzzInvariance(f *testing.F) {
	for i, text := range []string{"hello", "a\"b\\c/d\n\t\u0001", "é😀\u2028", strings.Repeat("x", 300), "\\u0041\\", ""} {
		for j := range 6 * len(paths) { // each kind of call with each text: these run in every test
			f.Add(uint8(j), uint64(i*1000+j), text, uint16(i*700+j*50))
		}
	}
	f.Fuzz(func(t *testing.T, api uint8, seed uint64, text string, cut uint16) {
		if len(text) > 4096 {
			t.Skip("the text is repeated in dozens of places")
		}
		path := paths[int(api)%len(paths)]
		value := request(rand.New(rand.NewPCG(seed, 1)), path, strings.ToValidUTF8(text, "\uFFFD"))
		plain := writer{}
		plain.write(value)
		wild := writer{rng: rand.New(rand.NewPCG(seed, 2))}
		wild.write(value)

		var a, b, head Facts
		a.Read(Head{Path: path}, plain.out)
		b.Read(Head{Path: path}, wild.out)
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("facts differ (-plain +wild):\n%s\n%s\n%s", cmp.Diff(a, b), plain.out, wild.out)
		}
		at := int(cut) % (len(plain.out) + 1)
		head.Read(Head{Path: path}, plain.out[:at])
		// The plain order has the model's name and the salt first.
		if len(head.Blocks) > len(a.Blocks) || len(head.Blocks) > 0 && head.Blocks[len(head.Blocks)-1] != a.Blocks[len(head.Blocks)-1] {
			t.Fatalf("cut at %d, %d blocks are no prefix of the %d\n%s", at, len(head.Blocks), len(a.Blocks), plain.out)
		}
		head.Read(Head{Path: path}, wild.out[:min(at, len(wild.out))]) // no panic
	})
}

// object is a JSON object whose keys have an order.
type object []member

type member struct {
	key   string
	value any
	// fixed says that the order of the members of the value counts: they are printed as they come.
	fixed bool
}

// request makes a random request, its keys in the order in which the model sees what they hold.
func request(rng *rand.Rand, path, text string) object {
	g := generator{rng, text}
	r := object{{key: "model", value: g.text()}, {key: "cache_salt", value: g.text()}, {key: "max_tokens", value: rng.IntN(1000)}}
	switch path {
	case chatPath, messagesPath:
		r = append(r, member{key: "tools", value: g.list(3, g.tool)})
		if path == messagesPath {
			r = append(r, member{key: "system", value: g.content(1)})
		}
		r = append(r, member{key: "messages", value: g.list(5, g.message)})
	case responsesPath:
		r = append(r, member{key: "tools", value: g.list(3, g.tool)}, member{key: "instructions", value: g.text()})
		r = append(r, member{key: "input", value: g.list(5, g.message)})
	case "/health":
		r = append(r, member{key: "instructions", value: g.text()}, member{key: "messages", value: g.list(5, g.message)})
	case completionsPath:
		r = append(r, member{key: "prompt", value: g.prompt()})
	case embeddingsPath:
		r = append(r, member{key: "input", value: g.prompt()})
	case generatePath:
		r = append(r, member{key: "lora_path", value: g.list(2, func() any { return g.text() })})
		r = append(r, member{key: []string{"text", "input_ids", "token_ids", "inputs"}[rng.IntN(4)], value: g.prompt()})
	case poolingPath:
		r = append(r, []member{
			{key: "input", value: g.prompt()}, {key: "input", value: g.list(5, g.message)}, {key: "messages", value: g.list(5, g.message)},
			{key: "data", value: g.schema(), fixed: true}, {key: "text", value: g.prompt()},
		}[rng.IntN(5)])
	case rerankPath, scoringPath:
		r = append(r, g.pairs()...)
	}
	return append(r, member{key: "stream", value: rng.IntN(2) == 0}, member{key: "n", value: g.text()})
}

type generator struct {
	rng  *rand.Rand
	word string
}

func (g generator) text() string {
	return strings.Repeat(g.word, g.rng.IntN(3)) + strings.Repeat(fmt.Sprintf("%x\n", g.rng.Uint32()), g.rng.IntN(60))
}

func (g generator) list(n int, one func() any) []any {
	var out []any
	for range g.rng.IntN(n + 1) {
		out = append(out, one())
	}
	return out
}

func (g generator) message() any {
	m := object{{key: "role", value: []string{"user", "assistant", "tool"}[g.rng.IntN(3)]}}
	switch g.rng.IntN(5) {
	case 0:
		return object{{key: "call_id", value: "1"}, {key: "output", value: g.content(1)}}
	case 1:
		m = append(m, member{key: "content", value: nil}, member{key: "tool_calls", value: g.list(2, g.call)})
	case 2:
		m = append(m, member{key: "content", value: g.content(1)}, member{key: "name", value: g.text()})
	default:
		m = append(m, member{key: "content", value: g.content(1)})
	}
	return append(m, member{key: "id", value: g.text()})
}

func (g generator) content(depth int) any {
	if g.rng.IntN(2) == 0 {
		return g.text()
	}
	return g.list(4, func() any {
		switch g.rng.IntN(6) {
		case 0:
			return object{{key: "type", value: "image_url"}, {key: "image_url", value: object{{key: "url", value: g.text()}, {key: "detail", value: "low"}}}}
		case 1:
			return object{{key: "type", value: "tool_use"}, {key: "name", value: g.text()}, {key: "input", value: g.schema(), fixed: true}}
		case 2:
			if depth < 3 {
				return object{{key: "type", value: "tool_result"}, {key: "content", value: g.content(depth + 1)}, {key: "is_error", value: false}}
			}
		}
		return object{{key: "type", value: "text"}, {key: "text", value: g.text()}, {key: "cache_control", value: object{{key: "type", value: "x"}}}}
	})
}

func (g generator) call() any {
	return object{{key: "id", value: g.text()}, {key: "function", value: object{{key: "name", value: g.text()}, {key: "arguments", value: g.text()}}}}
}

func (g generator) tool() any {
	f := object{{key: "name", value: g.text()}, {key: "description", value: g.text()}, {key: "parameters", value: g.schema(), fixed: true}}
	if g.rng.IntN(2) == 0 {
		return f
	}
	return object{{key: "type", value: "function"}, {key: "function", value: f}}
}

func (g generator) schema() any {
	return object{{key: "type", value: "object"}, {key: g.word, value: []any{1, true, nil, g.text(), object{{key: "a", value: -2.5}}}}}
}

func (g generator) prompt() any {
	ids := func() any { return g.list(200, func() any { return g.rng.IntN(150_000) }) }
	switch g.rng.IntN(4) {
	case 0:
		return ids()
	case 1:
		return g.list(3, ids)
	case 2:
		return g.list(3, func() any { return g.text() })
	}
	return g.text()
}

// pairs are the members of a call that scores pairs.
func (g generator) pairs() object {
	first := g.rng.IntN(2) == 0
	query := member{key: []string{"query", "queries", "text_1"}[g.rng.IntN(3)], value: g.side(0)}
	documents := member{key: []string{"documents", "items", "texts", "text_2"}[g.rng.IntN(4)], value: g.side(4)}
	if first {
		return object{{key: "item_first", value: true}, {key: "instruct", value: g.text()}, documents, query}
	}
	return object{{key: "item_first", value: false}, {key: "instruct", value: g.text()}, query, documents}
}

// side is one side of pairs: a text, or a list of n at most.
func (g generator) side(n int) any {
	one := func() any {
		switch g.rng.IntN(4) {
		case 0:
			return g.list(200, func() any { return g.rng.IntN(150_000) })
		case 1:
			return object{{key: "text", value: g.text()}, {key: "id", value: g.text()}}
		case 2:
			return object{{key: "content", value: g.content(1)}}
		}
		return g.text()
	}
	if n == 0 || g.rng.IntN(4) == 0 {
		return one()
	}
	return g.list(n, one)
}

// writer prints a value as JSON: plainly, or in a random way if it has a source of randomness.
type writer struct {
	rng   *rand.Rand
	fixed bool
	out   []byte
}

func (w *writer) chance(n int) bool { return w.rng != nil && w.rng.IntN(n) == 0 }

func (w *writer) token(s string) {
	for w.chance(3) {
		w.out = append(w.out, " \n\r\t"[w.rng.IntN(4)])
	}
	w.out = append(w.out, s...)
}

func (w *writer) write(v any) {
	switch v := v.(type) {
	case object:
		w.object(v)
	case []any:
		w.token("[")
		for i, e := range v {
			if i > 0 {
				w.token(",")
			}
			w.write(e)
		}
		w.token("]")
	case string:
		w.string(v)
	case nil:
		w.token("null")
	default:
		w.token(fmt.Sprint(v))
	}
}

func (w *writer) object(o object) {
	if w.rng != nil && !w.fixed {
		o = append(object(nil), o...)
		w.rng.Shuffle(len(o), func(i, j int) { o[i], o[j] = o[j], o[i] })
	}
	w.token("{")
	for i, m := range o {
		if i > 0 {
			w.token(",")
		}
		w.string(m.key)
		w.token(":")
		before := w.fixed
		w.fixed = before || m.fixed
		w.write(m.value)
		w.fixed = before
	}
	w.token("}")
}

func (w *writer) string(s string) {
	w.token(`"`)
	for _, r := range s {
		w.out = w.rune(w.out, r)
	}
	w.out = append(w.out, '"')
}

var short = map[rune]string{'"': `\"`, '\\': `\\`, '/': `\/`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}

func (w *writer) rune(out []byte, r rune) []byte {
	code := "\\u%04x"
	if w.chance(2) {
		code = "\\u%04X"
	}
	switch s := short[r]; {
	case s != "" && (r != '/' || w.chance(2)) && !w.chance(4):
		return append(out, s...)
	case r >= ' ' && r != '"' && r != '\\' && !w.chance(6):
		return utf8.AppendRune(out, r)
	case r > 0xFFFF:
		high, low := utf16.EncodeRune(r)
		return fmt.Appendf(out, code+code, high, low)
	}
	return fmt.Appendf(out, code, r)
}
