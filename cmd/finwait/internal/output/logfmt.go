package output

// logfmtSyntax has key=value pairs, one event a line. A value that holds
// anything else than plain letters is quoted, with the escapes of JSON.
var logfmtSyntax = syntax{end: "\n", column: logfmtColumn}

func logfmtColumn(f *field) column {
	c := column{before: newLabel(f.name + "="), after: newLabel(" "), append: f.append}
	if f.kind == text {
		c.append = escaped(f, appendLogfmtText)
	}
	return c
}

func appendLogfmtText(dst, s []byte) []byte {
	if isBare(s) {
		return append(dst, s...)
	}
	return appendJSONString(dst, s)
}

// isBare says whether s is a logfmt value without quotes.
func isBare(s []byte) bool {
	for _, c := range s {
		if c <= ' ' || c == '=' || c == '"' || c == '\\' || c >= 0x7f {
			return false
		}
	}
	return len(s) > 0
}
