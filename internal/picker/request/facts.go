// Package request reads the facts that a pick needs from a request's path and body. It knows the APIs of model servers,
// and must not know endpoints, pools or streams.
//
// A body is read once, from its first byte to its last, without a parse tree: its text is hashed block by block as it
// is read. The package does not validate. Where a body is not the JSON that its path promises, reading stops, and the
// facts are those that were read until then.
package request

import (
	"strings"
	"time"
)

const (
	// BlockBytes is the length of one prefix block, in bytes of the prompt's text: 64 tokens at four bytes a token.
	BlockBytes = 256
	// MaxBlocks bounds Facts.Blocks: 131,072 tokens. Prompts that agree in all of them are the same to a pick.
	MaxBlocks = 2048
	// MediaBytes is the length that one image, recording, video or file counts for in the prompt's text, however long its
	// URL or its base64 is: 1,024 tokens, about what vision models make of a picture of a million pixels.
	MediaBytes = 16 * BlockBytes
	// MaxModelBytes bounds Facts.Model: no server has a longer name, and names are logged and traced.
	MaxModelBytes = 512

	// BytesPerToken is how many bytes of text a token is taken to have: about what English has.
	BytesPerToken = 4
)

// Facts are what a pick needs to know of one request. A Facts is reused from request to request: Read overwrites
// everything, keeps the capacity of Blocks, and makes no new Model where the name is the one of the request before.
type Facts struct {
	// Seed is the seed of the hashes. The caller sets it, and Read leaves it unchanged.
	Seed uint64
	// API is the kind of call.
	API API
	// Model is the model's name in the body or, without one there, in the path, cut to MaxModelBytes at a whole character.
	// A LoRA adapter is named in the same field. SGLang's lora_path names an adapter beside the model, and wins.
	Model string
	// Stream says that the client asked for a streamed answer.
	Stream bool
	// PromptBytes is the length of the prompt's text that was read, in bytes: unescaped, with a few bytes for each role
	// and each part, MediaBytes for each image, and four bytes for each token id. All prompts of a batch count. Where one
	// query is scored with many documents, the query counts with each of them, up to MaxPairs and MaxRepeated.
	PromptBytes int
	// Blocks are the chained hashes of the prompt's whole blocks, from its head, at most MaxBlocks; of a batch, those of
	// the first prompt or pair. Each hash also stands for everything before its block, from the model's name and the salt
	// on. So two prompts agree in their first n blocks if their n-th hashes are equal.
	//
	// Equal text gives equal hashes under one Seed, and the hashes are not cryptographic. Whoever knows the Seed and
	// writes a prompt can make two texts collide; by chance it happens once in 2⁶⁴ pairs. A hash only serves to guess
	// which endpoint has a prefix cached. A collision sends a call to an endpoint with less cached than expected, and
	// costs a prefill. It never gives one tenant another's tokens, as model servers compare those by their own keys. A
	// tenant learns no more than any shared prefix cache shows: by timing, whether somebody sent the same prefix lately.
	// Tenants that must not learn that send a cache_salt of their own, which model servers require for it, and which
	// separates their blocks here too.
	Blocks []uint64
}

// API is the kind of call that a request makes, by the end of its path.
type API uint8

// The APIs whose prompts are understood, and two kinds for other paths.
const (
	// Unknown is a path that shows no API: the body's members show where a prompt is.
	Unknown API = iota
	// NoPrompt is a path whose body is known to hold nothing that is prefilled.
	NoPrompt
	// ChatCompletions is OpenAI's /v1/chat/completions.
	ChatCompletions
	// Completions is OpenAI's /v1/completions.
	Completions
	// Responses is OpenAI's /v1/responses.
	Responses
	// Embeddings is OpenAI's /v1/embeddings, which vLLM also takes chats at.
	Embeddings
	// Messages is Anthropic's /v1/messages.
	Messages
	// Pooling is vLLM's /pooling, and vLLM's and SGLang's /classify.
	Pooling
	// Pairs are /rerank and /score, in the forms of Cohere, Jina, vLLM and SGLang, and vLLM's /generative_scoring: a query is
	// scored with each of several documents.
	Pairs
	// Speech is OpenAI's /v1/audio/transcriptions and /v1/audio/translations.
	Speech
)

// ends are the ends of paths that show an API; of two that match, the longer comes first. The part before an end
// belongs to the gateway or the provider: /v1, a route's prefix that is rewritten behind the picker,
// /openai/deployments/<name>. The ends without a prompt take text that the server only counts, looks up or turns into
// pictures or sound. Without them, the body's text would pass for a prompt that is cached.
var ends = []struct {
	end string
	api API
}{
	{"/chat/completions", ChatCompletions},
	{"/completions", Completions},
	{"/responses", Responses},
	{"/embeddings", Embeddings},
	{"/messages", Messages},
	{"/pooling", Pooling},
	{"/classify", Pooling},
	{"/rerank", Pairs},
	{"/score", Pairs},
	{"/generative_scoring", Pairs},
	{"/audio/transcriptions", Speech},
	{"/audio/translations", Speech},
	{"/count_tokens", NoPrompt},
	{"/input_tokens", NoPrompt},
	{"/tokenize", NoPrompt},
	{"/detokenize", NoPrompt},
	{"/moderations", NoPrompt},
	{"/render", NoPrompt},
	{"/derender", NoPrompt},
	{"/parse_function_call", NoPrompt},
	{"/separate_reasoning", NoPrompt},
	{"/images/generations", NoPrompt},
	{"/images/edits", NoPrompt},
	{"/audio/speech", NoPrompt},
	{"/load_lora_adapter", NoPrompt},
	{"/unload_lora_adapter", NoPrompt},
}

// cleaned returns a path without its query and its trailing slashes.
func cleaned(path string) string {
	path, _, _ = strings.Cut(path, "?")
	return strings.TrimRight(path, "/")
}

// apiOf returns the API of a cleaned path.
func apiOf(path string) API {
	for _, e := range ends {
		if strings.HasSuffix(path, e.end) {
			return e.api
		}
	}
	return Unknown
}

// modelIn returns the model's name in a cleaned path, for APIs that have it there and not in the body: Azure's
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
func (f *Facts) PromptTokens() int { return f.PromptBytes / BytesPerToken }

// Head is what Read needs of a request's headers.
type Head struct {
	// Path may have a query.
	Path string
	// ContentType is the header's value. Only that of a form matters: all other bodies are read as JSON. Curl calls JSON a
	// form of the other kind, application/x-www-form-urlencoded, which no model server takes.
	ContentType string
	// ContentEncoding is the header's value.
	ContentEncoding string
}

// Read reads the facts of one request into f. The body may be only the first part of what the client sent. A body that
// is not understood is no error: the facts are then those that could be read, or zero.
//
// Where the path does not show the API, the body's members do: messages, prompt, input, text_input (Triton's), text and
// input_ids (SGLang's), token_ids (vLLM's) or inputs (TGI's) hold the prompt, with tools, system and instructions before
// it. An input that is a list of objects is read as of Responses, any other as of Embeddings.
//
// The prompt's text is in the order in which a model sees it, whatever the order in the body. In a request: tools, then
// system prompt or instructions, then messages, input or prompt. In a message: its role, then its content, then its
// calls. In a tool: its name, description and parameters. In a pair: instruction, query, document. Blocks do not depend
// on whitespace between JSON tokens, on escapes in strings and keys, or on the order of keys of the request, a message,
// a content part, a tool or a call. A content of one text part is the same as a string. Blocks do depend on the order of
// keys inside a tool's parameters and a call's JSON arguments, which model servers print in the order given, and on the
// spelling of numbers there.
//
// Members that no model sees (ids, cache_control, detail, unknown ones) are left out. Of a repeated key the last value
// counts for the model's name, the salt and the stream, as in the servers' parsers, and the first value for everything
// in the prompt.
//
// A body that is cut anywhere gives the first blocks of the whole body, if the model's name, the salt, and what a model
// sees before the messages (tools, system prompt, query) lie before the cut. Otherwise its blocks are those of a body
// without these members. They are still the same for the same head, so calls with an equal head still go to one
// endpoint.
//
// An encoded body has the facts of the first DecodedLimit bytes of the plain body, or, in an unknown encoding, those of
// an empty one. A form has a model and a stream; the prompt and the recording of Speech count, but give no blocks.
func (f *Facts) Read(head Head, body []byte) {
	if head.ContentEncoding == "" || len(body) == 0 || !head.Encoded() {
		f.read(head, body)
		return
	}
	d := decoders.Get().(*decoder)
	f.read(head, d.decode(head.ContentEncoding, body, time.Now().Add(decodingTime)))
	d.end()
	decoders.Put(d)
}

// read reads the facts of a body that is not encoded.
func (f *Facts) read(head Head, body []byte) {
	path := cleaned(head.Path)
	name := f.Model
	*f = Facts{Seed: f.Seed, API: apiOf(path), Blocks: f.Blocks[:0]}
	if head.isForm() {
		f.readForm(modelIn(path), name, head.ContentType, body)
		return
	}
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
