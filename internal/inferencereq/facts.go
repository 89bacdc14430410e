// Package inferencereq reads from a request's path and body the facts that a pick needs. It knows the APIs of model
// servers and nothing of endpoints, pools or streams.
//
// A body is read once, from its first byte to its last, without a tree: text goes from the body's bytes straight into
// the hash of its block. It is no validator. Where a body is not the JSON that its path promises, reading stops and
// the facts are those that were read until then.
package inferencereq

import "strings"

const (
	// BlockBytes is the length of one prefix block, in bytes of the prompt's text: 64 tokens at four bytes a token.
	BlockBytes = 256
	// MaxBlocks bounds Facts.Blocks: 131,072 tokens. Prompts that agree so far are the same to a pick.
	MaxBlocks = 2048
	// MediaBytes is what one image, recording, video or file counts for in the prompt's text, however long its URL or
	// its base64 is: 1,024 tokens, about what vision models make of a picture of a million pixels.
	MediaBytes = 16 * BlockBytes

	bytesPerToken = 4
)

// Facts are what a pick needs to know of one request. A Facts is reused from request to request: Read overwrites
// everything, keeps the capacity of Blocks, and makes no new Model where the name is the one of the request before.
type Facts struct {
	// API is the kind of call; Unknown is passed through and picked by load alone.
	API API
	// Model is the model's name as the client gave it. A LoRA adapter is addressed by the same field.
	Model string
	// Stream says that the client asked for a streamed answer.
	Stream bool
	// MaxTokens is the client's limit on the answer, in tokens; 0 where it gave none.
	MaxTokens int
	// PromptBytes is the length of the prompt's text that was seen, in bytes: unescaped, with a few bytes for each
	// role and each part, MediaBytes for each image, and four bytes for each token id. All prompts of a batch count.
	PromptBytes int
	// Blocks are the chained hashes of the prompt's whole blocks, from its head, at most MaxBlocks; of a batch of
	// prompts, those of the first. Each stands for everything before it too, beginning with the model's name and the
	// cache salt, so two prompts agree in their first n blocks where their n-th hashes are equal.
	//
	// The hashes are equal in every replica of the picker and are not cryptographic: whoever writes a prompt can,
	// with effort, make two texts collide, by chance it happens once in 2⁶⁴ pairs. All that a hash is used for is the
	// guess which endpoint has a prefix in its cache. A collision makes a call go where it finds less cached than
	// expected, and costs a prefill; it never gives one tenant another's tokens, which model servers compare by
	// their own keys. What a tenant can learn is what a shared prefix cache tells anyway: by timing, whether somebody
	// sent the same prefix lately. Tenants that must not learn that send a cache_salt of their own, as the model
	// servers want it, and then share no block here either.
	Blocks []uint64
	// Truncated says that the body went on beyond what was seen: the prompt is at least this long.
	Truncated bool
}

// API is the kind of call that a request makes.
type API uint8

// The APIs whose prompts are understood.
const (
	Unknown API = iota
	// ChatCompletions is OpenAI's /v1/chat/completions.
	ChatCompletions
	// Completions is OpenAI's /v1/completions.
	Completions
	// Responses is OpenAI's /v1/responses.
	Responses
	// Embeddings is OpenAI's /v1/embeddings.
	Embeddings
	// Messages is Anthropic's /v1/messages.
	Messages
)

// apiOf tells the API from a path by its end: gateways put prefixes before it, clients a query behind it.
func apiOf(path string) API {
	path, _, _ = strings.Cut(path, "?")
	_, call, found := cutLast(strings.TrimSuffix(path, "/"), "/v1/")
	if !found {
		return Unknown
	}
	switch call {
	case "chat/completions":
		return ChatCompletions
	case "completions":
		return Completions
	case "responses":
		return Responses
	case "embeddings":
		return Embeddings
	case "messages":
		return Messages
	}
	return Unknown
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// PromptTokens estimates the prompt's length in tokens, at four bytes a token.
func (f *Facts) PromptTokens() int { return f.PromptBytes / bytesPerToken }

// Read takes the facts of one request into f. The path may have a query. Truncated says that body is only the first
// part of what the client sent. A body that is not understood is no error: the facts are then those that could be
// read, at least the zero ones. Of an Unknown call the model's name and the limits are read if its body is a JSON
// object, and no prompt.
//
// The prompt's text is put together in the order in which a model sees it, whatever the order in the body: tools,
// then system prompt or instructions, then messages, input or prompt; in a message its role, then its content, then
// its calls; in a tool its name, description and parameters. So Blocks do not change with whitespace between JSON
// tokens, with the escapes chosen in strings and keys, with the order of keys of the request, of a message, a content
// part, a tool, a call, or with a content of one text part instead of a string. They do change with the order of keys
// inside a tool's parameters and a call's JSON arguments, which model servers print in the order given, and with the
// spelling of numbers there.
//
// Members that no model sees (ids, cache_control, detail, unknown ones) are left out. Of a repeated key the last one
// counts for the model's name, the salt and the limits, as in the servers' parsers, and the first one for everything
// that makes up the prompt.
//
// A body cut anywhere gives the first of the blocks that the whole body gives, if the model's name, the salt, and
// what a model sees before the messages (tools, system prompt) lie before the cut. Otherwise its blocks are those of
// a body without them: still the same for the same head, so calls with an equal head still meet.
func (f *Facts) Read(path string, body []byte, truncated bool) {
	name := f.Model
	*f = Facts{API: apiOf(path), Blocks: f.Blocks[:0], Truncated: truncated}
	r := reader{body: body, api: f.API}
	r.prompt.hashes = f.Blocks
	r.digest.folding = true
	r.request()
	f.Model = r.modelName(name)
	f.Stream = r.stream
	f.MaxTokens = r.maxTokens()
	f.PromptBytes = r.promptBytes
	f.Blocks = r.chain()
}
