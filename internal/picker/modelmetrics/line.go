package modelmetrics

import (
	"bytes"
	"math"
	"strconv"
)

// metricName is the name that a line begins with, and what is behind it. A line of the Prometheus text format (version
// 0.0.4) that is no comment is
//
//	name{label="value",label="value"} value timestamp
//
// where all but the name and the value may be missing. Reading is lenient: what is no such line has a name that nobody
// knows, or a value that is no number.
func metricName(line []byte) (name, rest []byte) {
	end := len(line)
	for _, c := range [...]byte{'{', ' ', '\t'} { // each search is of what the one before left, which is short
		if i := bytes.IndexByte(line[:end], c); i >= 0 {
			end = i
		}
	}
	return line[:end], line[end:]
}

// labelsAndValue cuts what is behind a name: the labels are without their braces. The timestamp is left out.
func labelsAndValue(rest []byte) (labels, value []byte) {
	rest = bytes.TrimLeft(rest, " \t")
	if len(rest) > 0 && rest[0] == '{' {
		// Behind the labels come only numbers, so the last brace is theirs whatever the labels' values hold.
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

// nextLabel cuts the first label off; its value is as written, escapes and all. It reports false when there is none
// any more, or none that can be read.
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

// closingQuote is the place of the first quote that no backslash escapes, or -1.
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

// unescape undoes the escapes of a label's value: \\, \" and \n.
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

// number is the number that a value or label is, if it is one that a count, a share or a time can be: finite and not
// negative.
func number(text []byte) (float64, bool) {
	// No float has need of more digits; the bound keeps the conversion on the stack.
	if len(text) == 0 || len(text) > 32 {
		return 0, false
	}
	v, err := strconv.ParseFloat(string(text), 64)
	if err != nil || !(v >= 0) || math.IsInf(v, 1) {
		return 0, false
	}
	return v, true
}
