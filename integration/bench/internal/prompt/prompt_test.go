package prompt

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestChat(t *testing.T) {
	for _, size := range []int{1 << 10, 8 << 10, 64 << 10, 512 << 10} {
		body := Chat(size)
		if len(body) != size {
			t.Errorf("asked for %d bytes, got %d", size, len(body))
		}
		if !json.Valid(body) {
			t.Errorf("the body of %d bytes is no JSON", size)
		}
		if at := SerialAt(body); at < 0 || at > 100 || bytes.Count(body, []byte(zero)) != 1 {
			t.Errorf("the body of %d bytes has its serial number at %d", size, at)
		}
		if size > 8<<10 && !bytes.Contains(body, []byte(`\t\tfmt.Fprintf(os.Stderr, \"failed: %v\\n\"`)) {
			t.Errorf("the body of %d bytes has no code with escapes", size)
		}
		if !bytes.Equal(body, Chat(size)) {
			t.Errorf("two bodies of %d bytes differ", size)
		}
	}
}

func TestSetSerial(t *testing.T) {
	body := Chat(1 << 10)
	at := SerialAt(body)
	SetSerial(body[at:at+SerialLength], 0xabc)
	if got := string(body[at : at+SerialLength]); got != "0000000000000abc" {
		t.Errorf("serial number is %s", got)
	}
	if !json.Valid(body) {
		t.Error("the body is no JSON any more")
	}
}
