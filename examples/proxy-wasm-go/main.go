// A proxy-wasm filter in Go with its standard library alone: it greets the upstream in a header, says in the answer how
// many requests its VM has seen, and puts the request's body into an upper-case answer for paths that end in `/shout`.
package main

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"unsafe"
)

//go:wasmimport env proxy_log
func proxyLog(level uint32, message unsafe.Pointer, size uint32) uint32

//go:wasmimport env proxy_get_buffer_bytes
func proxyGetBufferBytes(buffer, start, max uint32, data, size unsafe.Pointer) uint32

//go:wasmimport env proxy_get_header_map_value
func proxyGetHeaderMapValue(kind uint32, key unsafe.Pointer, keySize uint32, data, size unsafe.Pointer) uint32

//go:wasmimport env proxy_replace_header_map_value
func proxyReplaceHeaderMapValue(kind uint32, key unsafe.Pointer, keySize uint32, value unsafe.Pointer, valueSize uint32) uint32

//go:wasmimport env proxy_send_local_response
func proxySendLocalResponse(status uint32, details unsafe.Pointer, detailsSize uint32, body unsafe.Pointer, bodySize uint32, headers unsafe.Pointer, headersSize, grpcStatus uint32) uint32

const (
	requestHeaders, responseHeaders = 0, 2
	requestBody, pluginConfig       = 0, 7
	goOn, pause                     = 0, 1
	levelInfo                       = 2
)

// What the host was given to write into, until the callback that asked for it has taken it over.
var allocated = map[uint32][]byte{}

//go:wasmexport proxy_on_memory_allocate
func onMemoryAllocate(size uint32) unsafe.Pointer {
	block := make([]byte, size)
	at := unsafe.Pointer(unsafe.SliceData(block))
	allocated[uint32(uintptr(at))] = block
	return at
}

// What the host wrote.
func take(at, size uint32) []byte {
	block := allocated[at]
	delete(allocated, at)
	return block[:min(int(size), len(block))]
}

func pointer(text string) (unsafe.Pointer, uint32) {
	return unsafe.Pointer(unsafe.StringData(text)), uint32(len(text))
}

// Where the host puts address and size of what it hands out.
var at, size uint32

func header(kind uint32, name string) string {
	key, n := pointer(name)
	if proxyGetHeaderMapValue(kind, key, n, unsafe.Pointer(&at), unsafe.Pointer(&size)) != 0 {
		return ""
	}
	return string(take(at, size))
}

func setHeader(kind uint32, name, value string) {
	key, n := pointer(name)
	text, m := pointer(value)
	if status := proxyReplaceHeaderMapValue(kind, key, n, text, m); status != 0 {
		panic(fmt.Sprintf("setting %s: status %d", name, status))
	}
}

func buffer(id uint32) []byte {
	if proxyGetBufferBytes(id, 0, ^uint32(0), unsafe.Pointer(&at), unsafe.Pointer(&size)) != 0 {
		return nil
	}
	return take(at, size)
}

var (
	greeting string
	seen     int
	paths    = map[uint32]string{}
)

//go:wasmexport proxy_abi_version_0_2_1
func abiVersion() {}

//go:wasmexport proxy_on_configure
func onConfigure(root, configSize uint32) uint32 {
	greeting = string(buffer(pluginConfig))
	message, n := pointer("configured by " + runtime.Version())
	proxyLog(levelInfo, message, n)
	return 1
}

//go:wasmexport proxy_on_request_headers
func onRequestHeaders(context, count, endOfStream uint32) uint32 {
	seen++
	paths[context] = header(requestHeaders, ":path")
	setHeader(requestHeaders, "x-go-greeting", greeting)
	return goOn
}

//go:wasmexport proxy_on_request_body
func onRequestBody(context, bodySize, endOfStream uint32) uint32 {
	if !strings.HasSuffix(paths[context], "/shout") {
		return goOn
	}
	if endOfStream != 0 {
		body := string(bytes.ToUpper(buffer(requestBody)))
		text, n := pointer(body)
		proxySendLocalResponse(200, nil, 0, text, n, nil, 0, ^uint32(0))
	}
	return pause
}

//go:wasmexport proxy_on_response_headers
func onResponseHeaders(context, count, endOfStream uint32) uint32 {
	setHeader(responseHeaders, "x-go-requests", fmt.Sprint(seen))
	return goOn
}

//go:wasmexport proxy_on_delete
func onDelete(context uint32) {
	delete(paths, context)
}

func main() {}
