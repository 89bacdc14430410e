package request

// key is a member's name, if it has a meaning in one of the APIs.
type key uint8

// Keys of a prompt's items come first, in the order in which their values enter the text.
const (
	keyOther key = iota

	keyRole
	keyContent
	keyOutput
	keyText // of a part; also the prompt of SGLang's own calls
	keyThinking
	keyFunction
	keyName
	keyDescription
	keyParameters
	keyArguments
	keyInput // of a call; also the prompt of responses, embeddings and pooling
	keyToolCalls
	keyMedium
	keyRefusal
	itemKeys // the number of the keys above

	keyURL  // where a medium is
	keyData // a medium's bytes; also the input of vLLM's plugins
	keyModel
	keyStream
	keyCacheSalt
	keyTools
	keySystem
	keyInstructions
	keyMessages
	keyPrompt
	keyTextInput
	keyInputs
	keyTokenIDs
	keyInstruction
	keyQuery
	keyQueries
	keyDocuments
	keyItemFirst
	keyAdapter
)

// longestKey bounds the length of keys that are unescaped before they are looked up.
const longestKey = len("reasoning_content")

// keyOf looks up a key as it is written in the body.
func keyOf(raw []byte) key {
	if len(raw) > 6*longestKey { // each byte written as \u00XX
		return keyOther
	}
	if nextQuote(raw) < len(raw) {
		return lookUpEscaped(raw)
	}
	return lookUp(raw)
}

// lookUpEscaped looks up a key with escapes. If it were inlined, its text would be on the stack of every look-up.
//
//go:noinline
func lookUpEscaped(raw []byte) key {
	var t text
	t.unescape(raw)
	return lookUp(t.buf[:t.n])
}

func lookUp(name []byte) key {
	switch string(name) {
	case "role":
		return keyRole
	case "text":
		return keyText
	case "thinking", "reasoning_content", "reasoning":
		return keyThinking
	case "content":
		return keyContent
	case "output":
		return keyOutput
	case "function", "function_call":
		return keyFunction
	case "name":
		return keyName
	case "description":
		return keyDescription
	case "parameters", "input_schema":
		return keyParameters
	case "arguments":
		return keyArguments
	case "input":
		return keyInput
	case "tool_calls":
		return keyToolCalls
	case "image_url", "source", "input_audio", "audio_url", "video_url", "file", "file_data", "file_id", "file_url":
		return keyMedium
	case "refusal":
		return keyRefusal
	case "url":
		return keyURL
	case "data":
		return keyData
	case "model":
		return keyModel
	case "stream":
		return keyStream
	case "cache_salt":
		return keyCacheSalt
	case "tools", "functions":
		return keyTools
	case "system":
		return keySystem
	case "instructions":
		return keyInstructions
	case "messages":
		return keyMessages
	case "prompt":
		return keyPrompt
	case "text_input":
		return keyTextInput
	case "inputs":
		return keyInputs
	case "input_ids", "token_ids":
		return keyTokenIDs
	case "instruction", "instruct":
		return keyInstruction
	case "query":
		return keyQuery
	case "queries", "text_1", "data_1":
		return keyQueries
	case "documents", "items", "texts", "text_2", "data_2":
		return keyDocuments
	case "item_first":
		return keyItemFirst
	case "lora_path":
		return keyAdapter
	}
	return keyOther
}
