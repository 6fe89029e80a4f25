package sysctl

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// PortRange is the ports from First to Last, both of them among it.
type PortRange struct{ First, Last uint16 }

// Equal reports whether two values are the same to the kernel, of which one may be
// written in a file and the other read from it: whitespace does not count, 0x10 is 16,
// 010 is 8 (proc_get_long), and "8080,8081" is "8080-8081" (proc_do_large_bitmap).
func Equal(a, b string) bool {
	return slices.EqualFunc(strings.Fields(a), strings.Fields(b), equalWords)
}

func equalWords(a, b string) bool {
	if a == b {
		return true
	}
	m, aNumber := ParseInt(a)
	n, bNumber := ParseInt(b)
	if aNumber && bNumber {
		return m == n
	}
	p, aPorts := parsePorts(a)
	q, bPorts := parsePorts(b)
	return aPorts && bPorts && slices.Equal(p, q)
}

// ParseInt reads a number as the kernel does when it is written to a sysctl
// (proc_get_long): no plus sign, and no more characters than its buffer has.
func ParseInt(text string) (int64, bool) {
	digits, negative := strings.CutPrefix(text, "-")
	if digits == "" || digits[0] < '0' || digits[0] > '9' || len(text) > 20 {
		return 0, false
	}
	base := 10
	if len(digits) > 1 && digits[0] == '0' {
		base = 8
		if digits[1] == 'x' || digits[1] == 'X' {
			base, digits = 16, digits[2:]
		}
	}
	n, err := strconv.ParseUint(digits, base, 63)
	if err != nil {
		return 0, false
	}
	if negative {
		return -int64(n), true
	}
	return int64(n), true
}

// parsePorts reads a list of ports such as "8080,9000-9010" and puts it in order.
func parsePorts(text string) ([]PortRange, bool) {
	var ranges []PortRange
	text = strings.TrimSuffix(text, ",")
	if text == "" {
		return nil, true
	}
	for item := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		a, okFirst := parsePort(first)
		b, okLast := parsePort(last)
		if !okFirst || !okLast || a > b {
			return nil, false
		}
		ranges = append(ranges, PortRange{a, b})
	}
	slices.SortFunc(ranges, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	merged := ranges[:1]
	for _, r := range ranges[1:] {
		last := &merged[len(merged)-1]
		if int(r.First) > int(last.Last)+1 {
			merged = append(merged, r)
			continue
		}
		last.Last = max(last.Last, r.Last)
	}
	return merged, true
}

func parsePort(text string) (uint16, bool) {
	n, ok := ParseInt(text)
	return uint16(n), ok && n >= 0 && n <= 65535
}
