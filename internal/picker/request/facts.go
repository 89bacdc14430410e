// Package request reads from a request's path and body the facts that a pick needs. It knows the APIs of model
// servers and nothing of endpoints, pools or streams.
//
// A body is read once, from its first byte to its last, without a tree: text goes from the body's bytes straight into
// the hash of its block. It is no validator. Where a body is not the JSON that its path promises, reading stops and
// the facts are those that were read until then.
package request

import "strings"

const (
	// BlockBytes is the length of one prefix block, in bytes of the prompt's text: 64 tokens at four bytes a token.
	BlockBytes = 256
	// MaxBlocks bounds Facts.Blocks: 131,072 tokens. Prompts that agree so far are the same to a pick.
	MaxBlocks = 2048
	// MediaBytes is what one image, recording, video or file counts for in the prompt's text, however long its URL or
	// its base64 is: 1,024 tokens, about what vision models make of a picture of a million pixels.
	MediaBytes = 16 * BlockBytes
	// MaxModelBytes bounds Facts.Model: no server has a name that is longer, and names are logged and traced.
	MaxModelBytes = 512

	bytesPerToken = 4
)

// Facts are what a pick needs to know of one request. A Facts is reused from request to request: Read overwrites
// everything, keeps the capacity of Blocks, and makes no new Model where the name is the one of the request before.
type Facts struct {
	// Seed begins the hashes. It is for the caller to set, and Read leaves it as it is.
	Seed uint64
	// API is the kind of call.
	API API
	// Model is the model's name as the client gave it in the body or, without one there, in the path; no more than its
	// first MaxModelBytes, to a whole character. A LoRA adapter is addressed by the same field.
	Model string
	// Stream says that the client asked for a streamed answer.
	Stream bool
	// PromptBytes is the length of the prompt's text that was seen, in bytes: unescaped, with a few bytes for each
	// role and each part, MediaBytes for each image, and four bytes for each token id. All prompts of a batch count.
	PromptBytes int
	// Blocks are the chained hashes of the prompt's whole blocks, from its head, at most MaxBlocks; of a batch of
	// prompts, those of the first. Each stands for everything before it too, beginning with the model's name and the
	// cache salt, so two prompts agree in their first n blocks where their n-th hashes are equal.
	//
	// The hashes are equal where the Seed is and are not cryptographic: whoever knows the Seed and writes a prompt can
	// make two texts collide, by chance it happens once in 2⁶⁴ pairs. All that a hash is used for is the
	// guess which endpoint has a prefix in its cache. A collision makes a call go where it finds less cached than
	// expected, and costs a prefill; it never gives one tenant another's tokens, which model servers compare by
	// their own keys. What a tenant can learn is what a shared prefix cache tells anyway: by timing, whether somebody
	// sent the same prefix lately. Tenants that must not learn that send a cache_salt of their own, as the model
	// servers want it, and then share no block here either.
	Blocks []uint64
}

// API is the kind of call that a request makes, as its path's end tells it.
type API uint8

// The APIs whose prompts are understood, and two for the paths of others.
const (
	// Unknown is a path that says nothing: the body's members tell where a prompt is.
	Unknown API = iota
	// NoPrompt is a path that says that nothing of the body is prefilled.
	NoPrompt
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

// ends are the ends of paths that tell an API; of two that fit, the longer stands first. What stands before an end is
// the gateway's or the provider's: /v1, a route's prefix that is rewritten behind the picker,
// /openai/deployments/<name>. Those without a prompt take text that the server only counts, looks up or makes a
// picture or a sound of; without them a body's shape would pass for a prompt that is cached.
var ends = []struct {
	end string
	api API
}{
	{"/chat/completions", ChatCompletions},
	{"/completions", Completions},
	{"/responses", Responses},
	{"/embeddings", Embeddings},
	{"/messages", Messages},
	{"/count_tokens", NoPrompt},
	{"/input_tokens", NoPrompt},
	{"/tokenize", NoPrompt},
	{"/detokenize", NoPrompt},
	{"/moderations", NoPrompt},
	{"/images/generations", NoPrompt},
	{"/audio/speech", NoPrompt},
	{"/load_lora_adapter", NoPrompt},
	{"/unload_lora_adapter", NoPrompt},
}

// cleaned is a path without its query and without slashes at its end.
func cleaned(path string) string {
	path, _, _ = strings.Cut(path, "?")
	return strings.TrimRight(path, "/")
}

// apiOf tells the API of a cleaned path.
func apiOf(path string) API {
	for _, e := range ends {
		if strings.HasSuffix(path, e.end) {
			return e.api
		}
	}
	return Unknown
}

// modelIn is the model's name in a cleaned path, where the path has it and not the body: Azure's
// /openai/deployments/<name>/…, Triton's /v2/models/<name>/…
func modelIn(path string) string {
	for _, before := range []string{"/deployments/", "/models/"} {
		if _, after, found := strings.Cut(path, before); found {
			if name, _, more := strings.Cut(after, "/"); more {
				return name
			}
		}
	}
	return ""
}

// PromptTokens estimates the prompt's length in tokens, at four bytes a token.
func (f *Facts) PromptTokens() int { return f.PromptBytes / bytesPerToken }

// Read takes the facts of one request into f. The path may have a query, and the body may be only the first part of what
// the client sent. A body that is not understood is no error: the facts are then those that could be read, at least the
// zero ones.
//
// Where the path does not tell the API, the body's members do: messages, prompt, input or text_input (Triton's) hold
// the prompt, with tools, system and instructions before it. An input is then read as a response's where it is a list
// of objects, and else as an embedding's.
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
// counts for the model's name, the salt and the stream, as in the servers' parsers, and the first one for everything
// that makes up the prompt.
//
// A body cut anywhere gives the first of the blocks that the whole body gives, if the model's name, the salt, and
// what a model sees before the messages (tools, system prompt) lie before the cut. Otherwise its blocks are those of
// a body without them: still the same for the same head, so calls with an equal head still meet.
func (f *Facts) Read(path string, body []byte) {
	name := f.Model
	path = cleaned(path)
	*f = Facts{Seed: f.Seed, API: apiOf(path), Blocks: f.Blocks[:0]}
	r := readers.Get().(*reader)
	r.begin(f, modelIn(path), body)
	r.request()
	f.Model = r.modelName(name)
	f.Stream = r.stream
	f.PromptBytes = r.promptBytes
	f.Blocks = r.chain()
	r.end()
	readers.Put(r)
}
