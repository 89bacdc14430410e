package answer

import "bytes"

// deepest is the depth down to which members are visited.
const deepest = 2

// members calls visit for each member of the JSON object that ends doc, and of the objects in it, from the last to the
// first. Depth 1 is the object itself. Members are not visited if their beginning is cut off. A text that is not JSON
// yields some members, or none, and never a panic. Keys are as written, escapes included.
//
// It scans backwards. The end of the document is never inside a string. Backwards from a string's closing quote, the first
// quote without an escape before it opens the string.
func members(doc []byte, visit func(depth int, key, value []byte)) {
	doc = bytes.TrimRight(doc, jsonSpace)
	if !bytes.HasSuffix(doc, []byte{'}'}) {
		return
	}
	var (
		depth int
		ends  [deepest + 1]int // where the current member ends, by depth
		value = -1             // where the current value begins; -1 until its colon was read
	)
	for i := len(doc) - 1; i >= 0; i-- {
		switch doc[i] {
		case '}', ']':
			depth, value = depth+1, -1
			setEnd(&ends, depth, i)
		case '{', '[':
			depth, value = depth-1, -1
			if depth <= 0 {
				return // the object's beginning, or a text that is not JSON
			}
		case ',':
			value = -1
			setEnd(&ends, depth, i)
		case ':':
			value = i + 1
		case '"':
			from := stringStart(doc, i)
			if from < 0 {
				return
			}
			if value >= 0 && depth <= deepest {
				visit(depth, doc[from+1:i], bytes.Trim(doc[value:max(value, ends[depth])], jsonSpace))
			}
			i, value = from, -1
		}
	}
}

const jsonSpace = " \t\r\n"

func setEnd(ends *[deepest + 1]int, depth, at int) {
	if depth <= deepest {
		ends[depth] = at
	}
}

// stringStart returns the opening quote of the string that ends at a quote; -1 where it is cut off.
func stringStart(doc []byte, end int) int {
	for at := end; ; {
		at = bytes.LastIndexByte(doc[:at], '"')
		if at < 0 {
			return -1
		}
		escapes := 0
		for escapes < at && doc[at-1-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return at
		}
	}
}
