package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// errOther is the error of a prompt whose tokens are not those of its text alone.
var errOther = errors.New("the call's tokens depend on more than its text")

// kept are the members of a body that the picker reads the prompt's text from, and by which a server tokenizes.
var kept = []string{"model", "messages", "tools", "prompt"}

// others are the members that change a prompt's tokens, or the names of its blocks, and not its text. A caller who sends one must not
// change what is known of others' prompts with the same text.
var others = []string{
	"cache_salt", "chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "add_special_tokens",
	"documents", "mm_processor_kwargs", "prompt_embeds", "truncate_prompt_tokens", "tool_choice", "reasoning_effort", "suffix",
}

// questionOf returns the body by which a server is asked for the tokens of a call. A body that has a member twice is none: the picker
// reads the first of the two, and a server the last.
func questionOf(body []byte) ([]byte, error) {
	members, err := membersOf(body)
	if err != nil {
		return nil, errOther
	}
	for _, name := range others {
		if value, has := members[name]; has && string(value) != "null" {
			return nil, errOther
		}
	}
	question := map[string]any{"return_token_strs": true}
	for _, name := range kept {
		if value, has := members[name]; has {
			question[name] = value
		}
	}
	return json.Marshal(question)
}

// membersOf returns the members of an object. The error says that the text is no object, or has one of them twice.
func membersOf(text []byte) (map[string]json.RawMessage, error) {
	in := json.NewDecoder(bytes.NewReader(text))
	if open, err := in.Token(); err != nil || open != json.Delim('{') {
		return nil, errOther
	}
	members := map[string]json.RawMessage{}
	for in.More() {
		name, err := in.Token()
		if err != nil {
			return nil, err
		}
		key, _ := name.(string)
		if _, twice := members[key]; twice {
			return nil, errOther
		}
		var value json.RawMessage
		if err := in.Decode(&value); err != nil {
			return nil, err
		}
		members[key] = value
	}
	if _, err := in.Token(); err != nil { // the object's end
		return nil, err
	}
	if _, err := in.Token(); !errors.Is(err, io.EOF) {
		return nil, errOther
	}
	return members, nil
}
