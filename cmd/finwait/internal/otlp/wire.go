package otlp

import (
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// The numbers of the fields of opentelemetry.proto that are written here. pdata
// could write them; it takes three times as long, and two kilobytes of memory in
// two dozen pieces for each record.
const (
	requestResourceLogs protowire.Number = 1

	resourceLogsResource  protowire.Number = 1
	resourceLogsScopeLogs protowire.Number = 2
	resourceAttributes    protowire.Number = 1

	scopeLogsScope   protowire.Number = 1
	scopeLogsRecords protowire.Number = 2
	scopeName        protowire.Number = 1
	scopeVersion     protowire.Number = 2

	recordTime           protowire.Number = 1
	recordSeverityNumber protowire.Number = 2
	recordSeverityText   protowire.Number = 3
	recordBody           protowire.Number = 5
	recordAttributes     protowire.Number = 6
	recordObservedTime   protowire.Number = 11
	recordEventName      protowire.Number = 12

	keyValueKey   protowire.Number = 1
	keyValueValue protowire.Number = 2

	anyString protowire.Number = 1
	anyInt    protowire.Number = 3
	anyDouble protowire.Number = 4
)

// message is a protobuf message that is being written.
type message []byte

func (m *message) str(field protowire.Number, s string) {
	*m = append(appendStart(*m, field, len(s)), s...)
}

func (m *message) varint(field protowire.Number, n uint64) {
	*m = protowire.AppendVarint(append(*m, byte(field)<<3|byte(protowire.VarintType)), n)
}

func (m *message) fixed64(field protowire.Number, n uint64) {
	*m = protowire.AppendFixed64(append(*m, byte(field)<<3|byte(protowire.Fixed64Type)), n)
}

// start begins what has that size in a field.
func (m *message) start(field protowire.Number, size int) { *m = appendStart(*m, field, size) }

func appendStart(b []byte, field protowire.Number, size int) []byte {
	tag := byte(field)<<3 | byte(protowire.BytesType) // one byte, as those of all fields above
	if size < 1<<7 {
		return append(b, tag, byte(size))
	}
	return protowire.AppendVarint(append(b, tag), uint64(size))
}

// sizeOf is the size of a field that holds so many bytes.
func sizeOf(bytes int) int {
	if bytes < 1<<7 {
		return 2 + bytes
	}
	return 1 + protowire.SizeBytes(bytes)
}

// attribute begins an attribute, whose value is to follow and has that size.
func (m *message) attribute(field protowire.Number, key string, size int) {
	b := appendStart(*m, field, sizeOf(len(key))+sizeOf(size))
	b = append(appendStart(b, keyValueKey, len(key)), key...)
	*m = appendStart(b, keyValueValue, size)
}

// text writes an attribute. The value must be UTF-8.
func (m *message) text(field protowire.Number, key, value string) {
	m.attribute(field, key, sizeOf(len(value)))
	m.str(anyString, value)
}

// record is a log record that is being written.
type record struct{ message }

func (r *record) text(key, value string) { r.message.text(recordAttributes, key, value) }

// bytes writes text, which must be UTF-8.
func (r *record) bytes(key string, value []byte) {
	r.attribute(recordAttributes, key, sizeOf(len(value)))
	r.start(anyString, len(value))
	r.message = append(r.message, value...)
}

func (r *record) number(key string, n int64) {
	r.attribute(recordAttributes, key, 1+protowire.SizeVarint(uint64(n)))
	r.varint(anyInt, uint64(n))
}

func (r *record) real(key string, n float64) {
	r.attribute(recordAttributes, key, 1+8)
	r.fixed64(anyDouble, math.Float64bits(n))
}

func (r *record) body(text string) {
	r.start(recordBody, sizeOf(len(text)))
	r.str(anyString, text)
}

// origin is the messages that say who sends records, and by what.
type origin struct{ resource, scope message }

func newOrigin(resource []attribute, version string) origin {
	var o origin
	for _, a := range resource {
		o.resource.text(resourceAttributes, a.key, a.value)
	}
	o.scope.str(scopeName, scopeOf)
	o.scope.str(scopeVersion, version)
	return o
}

// request returns a request with those records, each of which is a field.
func (o *origin) request(records message) []byte {
	inner := sizeOf(len(o.scope)) + len(records)
	outer := sizeOf(len(o.resource)) + sizeOf(inner)
	m := make(message, 0, sizeOf(outer))
	m.start(requestResourceLogs, outer)
	m.start(resourceLogsResource, len(o.resource))
	m = append(m, o.resource...)
	m.start(resourceLogsScopeLogs, inner)
	m.start(scopeLogsScope, len(o.scope))
	m = append(m, o.scope...)
	return append(m, records...)
}
