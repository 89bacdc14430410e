package modelmetrics

import (
	"bytes"
	"math"
	"strconv"
)

// metricName splits a line into the name that it begins with and the rest. A line of the Prometheus text format
// (version 0.0.4) that is no comment is
//
//	name{label="value",label="value"} value timestamp
//
// where only the name and the value are required. Reading is lenient: a malformed line yields a name that is not read,
// or a value that is no number.
func metricName(line []byte) (name, rest []byte) {
	end := len(line)
	for _, c := range [...]byte{'{', ' ', '\t'} { // each search covers only what the last one left, which is short
		if i := bytes.IndexByte(line[:end], c); i >= 0 {
			end = i
		}
	}
	return line[:end], line[end:]
}

// labelsAndValue splits the rest of a line into labels, without braces, and value. It drops the timestamp.
func labelsAndValue(rest []byte) (labels, value []byte) {
	rest = bytes.TrimLeft(rest, " \t")
	if len(rest) > 0 && rest[0] == '{' {
		// Only numbers follow the labels, so the last brace closes them, whatever their values contain.
		closing := bytes.LastIndexByte(rest, '}')
		if closing < 0 {
			return nil, nil
		}
		labels, rest = rest[1:closing], rest[closing+1:]
	}
	value = bytes.Trim(rest, " \t\r")
	if timestamp := bytes.IndexAny(value, " \t"); timestamp >= 0 {
		value = value[:timestamp]
	}
	return labels, value
}

// nextLabel splits off the first label; its value is as written, with its escapes. It reports false when no readable
// label is left.
func nextLabel(labels []byte) (name, value, rest []byte, ok bool) {
	labels = bytes.TrimLeft(labels, " \t,")
	equals := bytes.IndexByte(labels, '=')
	if equals < 0 {
		return nil, nil, nil, false
	}
	name = bytes.TrimRight(labels[:equals], " \t")
	quoted := bytes.TrimLeft(labels[equals+1:], " \t")
	if len(quoted) == 0 || quoted[0] != '"' {
		return nil, nil, nil, false
	}
	quoted = quoted[1:]
	end := closingQuote(quoted)
	if end < 0 {
		return nil, nil, nil, false
	}
	return name, quoted[:end], quoted[end+1:], true
}

// closingQuote returns the place of the first quote without a backslash before it, or -1.
func closingQuote(s []byte) int {
	for from := 0; ; {
		i := bytes.IndexByte(s[from:], '"')
		if i < 0 {
			return -1
		}
		end := from + i
		backslashes := 0
		for backslashes < end && s[end-1-backslashes] == '\\' {
			backslashes++
		}
		if backslashes%2 == 0 {
			return end
		}
		from = end + 1
	}
}

// unescape resolves the escapes of a label's value: \\, \" and \n.
func unescape(value []byte) string {
	if bytes.IndexByte(value, '\\') < 0 {
		return string(value)
	}
	out := make([]byte, 0, len(value))
	for i := 0; i < len(value); i++ {
		c := value[i]
		if c == '\\' && i+1 < len(value) {
			i++
			if c = value[i]; c == 'n' {
				c = '\n'
			}
		}
		out = append(out, c)
	}
	return string(out)
}

// number parses a value or a label as a count, a share or a time. It reports false if the number is not finite or is
// negative.
func number(text []byte) (float64, bool) {
	// No float needs more digits, and the bound keeps the conversion on the stack.
	if len(text) == 0 || len(text) > 32 {
		return 0, false
	}
	v, err := strconv.ParseFloat(string(text), 64)
	if err != nil || !(v >= 0) || math.IsInf(v, 1) {
		return 0, false
	}
	return v, true
}
