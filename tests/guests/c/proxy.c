// freestanding
// A proxy-wasm filter that runs scripts. The VM's script is its VM configuration and its plugin configuration, a stream's
// is the request header `x-run`; in each callback both run. A script is operations behind the callback they run in:
//
//     request_headers: get_property s:request%00path b; response_body: end? set_buffer_bytes 1 0 0 s:prefix
//
// An operation is a host function without `proxy_`, or a word of the table in `special`. Arguments, each a token:
//     12 -1 0xffffffff   a number
//     s:text             pointer and length of the text, %XX decoded
//     x:12               pointer and length of so many `x`
//     m:name=value,...   pointer and length of encoded pairs; a value `*12` is so many `x`
//     u U b              where the host puts a u32, a u64, pointer and length of bytes
//     $ $0..$4 $c        the last u32 that the host gave, the callback's arguments, the stream's context
// Conditions before an operation: `end?` `more?` (end of stream), `ok?` `denied?` `failed?` (an HTTP call's answer is 200,
// another, none), `all?` (no call of the stream is under way), `once?` (the callback's first run in this VM), `each` (for
// every paused stream).
//
// What operations gave is told as `name=status outs; ...`: a stream's in the response header `x-results`, the VM's by the
// operation `tell`. An out that the host did not write is `-`, bytes are in brackets, `[!]` is an empty one behind a pointer.
#include "proxy_wasm.h"

#define EXPORT(name) __attribute__((export_name(#name)))
#define LENGTH(array) (sizeof(array) / sizeof *(array))

enum Callback {
    START, CONFIGURE, CREATE, REQUEST_HEAD, REQUEST_BODY, REQUEST_TRAILERS, RESPONSE_HEAD, RESPONSE_BODY, RESPONSE_TRAILERS,
    CALL, QUEUE, TICK, DONE, LOG, DELETE, GRPC_INITIAL, GRPC_MESSAGE, GRPC_TRAILING, GRPC_CLOSE, FOREIGN, ALLOCATE, CALLBACKS
};
static const char *const names[CALLBACKS] = {
    "start", "configure", "create", "request_headers", "request_body", "request_trailers", "response_headers", "response_body",
    "response_trailers", "call", "queue", "tick", "done", "log", "delete", "grpc_initial", "grpc_message", "grpc_trailing",
    "grpc_close", "foreign", "allocate",
};

typedef struct {
    char *text;
    u32 n, cap;
} Text;
typedef struct {
    u32 id, calls;
    u8 paused;
    Text script, results;
    char script_text[8192], results_text[8192];
} Stream;
typedef struct {
    u32 id, stream;
    u8 grpc, unary;
} Call;

static Stream streams[128];
static Call calls[256];
static char vm_text[16384], vm_results_text[CALLBACKS][4000], arena[8 << 20];
static Text vm_script = {vm_text, 0, sizeof vm_text}, vm_results[CALLBACKS];
static u32 used, runs[CALLBACKS], last;
static u8 allocating;

// The callback under way. The allocator has one of its own.
typedef struct {
    enum Callback callback;
    u32 arguments[5];
    Stream *stream;
    u32 result;
} Frame;
static Frame *frame;

static u32 length(const char *s) {
    u32 n = 0;
    while (s[n]) n++;
    return n;
}
static int same(const char *s, u32 n, const char *word) {
    for (u32 i = 0; i < n; i++)
        if (!word[i] || s[i] != word[i]) return 0;
    return !word[n];
}
static void put(Text *to, char c) {
    if (to->n < to->cap) to->text[to->n++] = c;
}
static void put_text(Text *to, const char *s, u32 n) {
    while (n--) put(to, *s++);
}
static void put_number(Text *to, u64 value) {
    char digits[20];
    u32 n = sizeof digits;
    do digits[--n] = '0' + value % 10;
    while (value /= 10);
    put_text(to, digits + n, sizeof digits - n);
}
static void put_bytes(Text *to, const u8 *s, u32 n) {
    static const char hex[] = "0123456789abcdef";
    for (u32 i = 0; i < n && i < 1500; i++)
        if (s[i] > ' ' && s[i] < 127 && s[i] != '%' && s[i] != ';' && s[i] != '[' && s[i] != ']') put(to, s[i]);
        else put(to, '%'), put(to, hex[s[i] >> 4]), put(to, hex[s[i] & 15]);
}
static u32 alloc(u32 n) {
    u32 at = (used + 7) & ~7u;
    if (at > sizeof arena || n > sizeof arena - at) return 0;
    used = at + n;
    return (u32)(arena + at);
}

static Stream *stream_of(u32 id) {
    for (u32 i = 0; id && i < LENGTH(streams); i++)
        if (streams[i].id == id) return &streams[i];
    return 0;
}
static int hex_digit(char c) {
    return c <= '9' ? c - '0' : (c | 32) - 'a' + 10;
}
// Decodes up to a delimiter; leaves `*s` on it.
static u32 decode(const char **s, const char *end, char stop, char other, u8 *to) {
    u32 n = 0;
    for (; *s < end && **s != stop && **s != other; (*s)++) {
        u8 c = **s;
        if (c == '%' && *s + 2 < end) c = hex_digit((*s)[1]) << 4 | hex_digit((*s)[2]), *s += 2;
        to[n++] = c;
    }
    return n;
}
static const char *word_end(const char *s, const char *end, char stop) {
    while (s < end && *s != stop) s++;
    return s;
}
static void put_u32(u8 *at, u32 value) {
    for (u32 i = 0; i < 4; i++) at[i] = value >> 8 * i;
}
static u64 number(const char *s, const char *end);
static u32 repeated(u8 *to, u32 n) {
    // A plain loop would become a call of `memset`, which is not there.
    for (u32 i = 0; i < n; i++) *(volatile u8 *)(to + i) = 'x';
    return n;
}
// `name=value,...` as the ABI's pairs: count, lengths, then names and values with a NUL each.
static u32 pairs(const char *s, const char *end, u32 *size) {
    u32 count = s < end, n = end - s;
    for (const char *c = s; c < end; c++) {
        count += *c == ',';
        if (*c == '=' && c + 1 < end && c[1] == '*') n += number(c + 2, word_end(c, end, ','));
    }
    u8 *out = (u8 *)alloc(4 + count * 10 + n), *lengths = out + 4, *bytes = lengths + 8 * count;
    put_u32(out, count);
    for (; s < end; s++, lengths += 8) {
        u32 key = decode(&s, end, '=', '=', bytes);
        bytes[key] = 0, bytes += key + 1, s++;
        const char *stop = word_end(s, end, ',');
        u32 value = s < stop && *s == '*' ? repeated(bytes, number(s + 1, stop)) : decode(&s, end, ',', ',', bytes);
        s = stop;
        bytes[value] = 0, bytes += value + 1;
        put_u32(lengths, key), put_u32(lengths + 4, value);
    }
    *size = bytes - out;
    return (u32)out;
}

#define UNTOUCHED 0xaaaaaaaa
typedef struct {
    u64 a[16];
    u32 n;
    u32 cells[16] __attribute__((aligned(8)));
    u32 cell;
    char kinds[8];
    u32 outs;
} Arguments;

static u32 cell(Arguments *to, u32 n, char kind) {
    if (kind == 'U') to->cell = (to->cell + 1) & ~1u;
    u32 at = to->cell;
    for (u32 i = 0; i < n; i++) to->cells[to->cell++] = UNTOUCHED;
    return (u32)(to->cells + at);
}
static u64 number(const char *s, const char *end) {
    int minus = *s == '-';
    u64 value = 0;
    s += minus;
    if (end - s > 2 && s[1] == 'x')
        for (s += 2; s < end; s++) value = value << 4 | hex_digit(*s);
    else
        for (; s < end; s++) value = value * 10 + (*s - '0');
    return minus ? -value : value;
}
static void argument(Arguments *to, const char *s, u32 n) {
    const char *end = s + n;
    if (n >= 2 && s[1] == ':' && s[0] == 's') {
        u8 *text = (u8 *)alloc(n);
        s += 2;
        u32 size = decode(&s, end, 0, 0, text);
        to->a[to->n++] = (u32)text, to->a[to->n++] = size;
    } else if (n >= 2 && s[1] == ':' && s[0] == 'x') {
        u32 size = number(s + 2, end);
        u32 text = alloc(size);
        to->a[to->n++] = text, to->a[to->n++] = repeated((u8 *)text, size);
    } else if (n >= 2 && s[1] == ':' && s[0] == 'm') {
        u32 size;
        to->a[to->n++] = pairs(s + 2, end, &size);
        to->a[to->n++] = size;
    } else if (*s == 'u' || *s == 'U' || *s == 'b') {
        u32 at = cell(to, *s == 'u' ? 1 : 2, *s);
        to->kinds[to->outs++] = *s;
        to->a[to->n++] = at;
        if (*s == 'b') to->a[to->n++] = at + 4;
    } else if (*s == '$') {
        u32 stream = frame->stream ? frame->stream->id : 0;
        to->a[to->n++] = n == 1 ? last : s[1] == 'c' ? stream : frame->arguments[(s[1] - '0') % 5];
    } else {
        to->a[to->n++] = number(s, end);
    }
}
static void tell_outs(Arguments *from, Text *to) {
    u32 at = 0;
    for (u32 i = 0; i < from->outs; i++) {
        put(to, ' ');
        if (from->kinds[i] == 'U') at = (at + 1) & ~1u;
        u32 low = from->cells[at++], high = from->kinds[i] == 'u' ? UNTOUCHED : from->cells[at++];
        if (low == UNTOUCHED && high == UNTOUCHED) {
            put(to, '-');
        } else if (from->kinds[i] == 'u') {
            put_number(to, last = low);
        } else if (from->kinds[i] == 'U') {
            put_number(to, (u64)high << 32 | low);
        } else {
            put(to, '[');
            if (low && !high) put(to, '!');
            put_bytes(to, (const u8 *)low, high);
            put(to, ']');
        }
    }
}

typedef struct {
    const char *name;
    void *function;
    u32 parameters;
} Function;
#define ROW(fn, n) {#fn, (void *)proxy_##fn, n},
static const Function functions[] = {PROXY_WASM_FUNCTIONS(ROW)};
#undef ROW
#define CASE(n, ...) \
    case n: return ((u32(*)(ARGS_##n))f->function)(__VA_ARGS__);
static u32 call(const Function *f, const u64 *a) {
    switch (f->parameters) {
        CASE(0)
        CASE(1, a[0])
        CASE(2, a[0], a[1])
        CASE(3, a[0], a[1], a[2])
        CASE(4, a[0], a[1], a[2], a[3])
        CASE(5, a[0], a[1], a[2], a[3], a[4])
        CASE(6, a[0], a[1], a[2], a[3], a[4], a[5])
        CASE(8, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7])
        CASE(9, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8])
        CASE(10, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9])
        CASE(12, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11])
    }
    __builtin_trap();
}
static void remember_call(u32 id, int grpc, int unary) {
    for (u32 i = 0; frame->stream && i < LENGTH(calls); i++)
        if (!calls[i].id) {
            calls[i] = (Call){id, frame->stream->id, grpc, unary};
            frame->stream->calls++;
            return;
        }
}
// The stream that made the call whose callback this is, made the effective context.
static Stream *caller(enum Callback callback, u32 id) {
    if (callback != CALL && (callback < GRPC_INITIAL || callback > GRPC_CLOSE)) return 0;
    for (Call *call = calls; call < calls + LENGTH(calls); call++) {
        if (!id || call->id != id || call->grpc != (callback != CALL)) continue;
        Stream *stream = stream_of(call->stream);
        int last = callback == CALL || callback == GRPC_CLOSE || (call->unary && callback == GRPC_MESSAGE);
        if (last) call->id = 0;
        if (!stream || proxy_set_effective_context(stream->id)) return 0;
        if (last) stream->calls--;
        return stream;
    }
    return 0;
}
// The host function of this name; whether there is one.
static int host(const char *name, u32 n, Arguments *with, u32 *status) {
    for (u32 i = 0; i < LENGTH(functions); i++) {
        if (!same(name, n, functions[i].name)) continue;
        if (with->n != functions[i].parameters) __builtin_trap();
        *status = call(&functions[i], with->a);
        if (!*status && same(name, n, "http_call")) remember_call(with->cells[0], 0, 0);
        if (!*status && same(name, n, "grpc_call")) remember_call(with->cells[0], 1, 1);
        if (!*status && same(name, n, "grpc_stream")) remember_call(with->cells[0], 1, 0);
        if (frame->stream && (same(name, n, "continue_stream") || same(name, n, "send_local_response"))) frame->stream->paused = 0;
        return 1;
    }
    if (same(name, n, "record_metric")) *status = proxy_record_metric(with->a[0], with->a[1]);
    else if (same(name, n, "increment_metric")) *status = proxy_increment_metric(with->a[0], with->a[1]);
    else return 0;
    return 1;
}

static Text *results(void) {
    Text *vm = &vm_results[frame->callback];
    *vm = (Text){vm_results_text[frame->callback], vm->n, sizeof *vm_results_text};
    int ends = frame->callback == DONE || frame->callback == LOG || frame->callback == DELETE;
    return frame->stream && !ends ? &frame->stream->results : vm;
}
// All results of the VM and of the stream: as the body in a body callback, else as a local response.
static void tell(void) {
    Text text = {(char *)alloc(60000), 0, 60000};
    for (u32 i = 0; i < CALLBACKS; i++) {
        if (!vm_results[i].n) continue;
        put_text(&text, names[i], length(names[i])), put(&text, ':'), put(&text, ' ');
        put_text(&text, vm_results[i].text, vm_results[i].n), put(&text, '\n');
    }
    if (frame->stream) put_text(&text, frame->stream->results.text, frame->stream->results.n);
    if (frame->callback == RESPONSE_BODY) proxy_set_buffer_bytes(1, 0, -1, (u32)text.text, text.n);
    else proxy_send_local_response(200, 0, 0, (u32)text.text, text.n, 0, 0, -1), frame->result = PAUSE;
}
// A thousand items of a mebibyte, until one is refused; tells how many were taken.
static void flood(const char *word, u32 n, int queue) {
    char key[] = "flood-000";
    u32 taken = 0;
    for (; taken < 1000; taken++) {
        for (u32 i = 0, rest = taken; i < 3; i++, rest /= 10) key[8 - i] = '0' + rest % 10;
        if (queue ? proxy_enqueue_shared_queue(last, (u32)arena, 1 << 20)
                  : proxy_set_shared_data((u32)key, 9, (u32)arena, 1 << 20, 0)) break;
    }
    put_text(results(), word, n), put(results(), '='), put_number(results(), taken), put(results(), ';');
}
static void upper(u32 buffer) {
    u32 at = 0, n = 0;
    if (proxy_get_buffer_bytes(buffer, 0, -1, (u32)&at, (u32)&n)) __builtin_trap();
    for (u8 *c = (u8 *)at; n && c < (u8 *)at + n; c++)
        if (*c >= 'a' && *c <= 'z') *c -= 32;
    if (proxy_set_buffer_bytes(buffer, 0, -1, at, n)) __builtin_trap();
}
// What is no host function; whether the word is one.
static int special(const char *word, u32 n, Arguments *with) {
    if (same(word, n, "pause")) {
        frame->result = frame->callback == DONE ? 0 : PAUSE;
        if (frame->stream) frame->stream->paused = frame->callback < RESPONSE_HEAD ? 1 : 2;
    } else if (same(word, n, "returns")) { // this, from the callback
        frame->result = with->a[0];
    } else if (same(word, n, "trap")) {
        __builtin_trap();
    } else if (same(word, n, "spin")) {
        for (volatile u32 i = 0;; i++);
    } else if (same(word, n, "grow")) { // by so many pages
        u32 was = __builtin_wasm_memory_grow(0, with->a[0]);
        put_text(results(), was == -1u ? "grow=refused; " : "grow=done; ", was == -1u ? 14 : 11);
    } else if (same(word, n, "args")) { // tells the callback's
        put_text(results(), "args=", 5);
        for (u32 i = 1; i < 5; i++) put_number(results(), frame->arguments[i]), put(results(), i < 4 ? ',' : ';');
        put(results(), ' ');
    } else if (same(word, n, "upper")) { // a buffer, in place
        upper(with->a[0]);
    } else if (same(word, n, "flood_queue") || same(word, n, "flood_data")) {
        flood(word, n, same(word, n, "flood_queue"));
    } else if (same(word, n, "tell")) {
        tell();
    } else {
        return 0;
    }
    return 1;
}

static int call_status(void) {
    u32 at = 0, n = 0;
    if (!frame->arguments[2] || proxy_get_header_map_value(CALL_HEADERS, (u32) ":status", 7, (u32)&at, (u32)&n) || n != 3) return 0;
    return number((const char *)at, (const char *)at + 3);
}
static int holds(const char *word, u32 n) {
    u32 end = frame->arguments[2];
    if (same(word, n, "end?")) return end;
    if (same(word, n, "more?")) return !end;
    if (same(word, n, "ok?")) return call_status() == 200;
    if (same(word, n, "denied?")) return call_status() && call_status() != 200;
    if (same(word, n, "failed?")) return !call_status();
    if (same(word, n, "all?")) return !frame->stream || !frame->stream->calls;
    if (same(word, n, "once?")) return runs[frame->callback] == 1;
    __builtin_trap();
}

static u32 word(const char **s, const char *end) {
    while (*s < end && **s == ' ') (*s)++;
    u32 n = 0;
    while (*s + n < end && (*s)[n] != ' ') n++;
    return n;
}
static void operation(const char *s, const char *end) {
    u32 n;
    for (; n = word(&s, end), n && s[n - 1] == '?'; s += n)
        if (!holds(s, n)) return;
    if (same(s, n, "each")) {
        for (u32 i = 0; i < LENGTH(streams); i++) {
            if (!streams[i].id || !streams[i].paused) continue;
            proxy_set_effective_context(streams[i].id);
            frame->stream = &streams[i];
            operation(s + n, end);
            frame->stream = 0;
        }
        return;
    }
    const char *name = s;
    u32 name_n = n, status;
    Arguments arguments;
    arguments.n = arguments.cell = arguments.outs = 0;
    for (s += n; n = word(&s, end), n; s += n) argument(&arguments, s, n);
    if (special(name, name_n, &arguments)) return;
    if (!host(name, name_n, &arguments, &status)) __builtin_trap();
    Text *to = results();
    put_text(to, name, name_n), put(to, '='), put_number(to, status);
    tell_outs(&arguments, to);
    put(to, ';'), put(to, ' ');
}
static void script(const Text *text) {
    const char *s = text->text, *end = s + text->n;
    const char *name = names[frame->callback];
    u32 name_n = length(name);
    while (s < end) {
        while (s < end && (*s == ' ' || *s == ';')) s++;
        const char *stop = s;
        while (stop < end && *stop != ';') stop++;
        if ((u32)(stop - s) > name_n && same(s, name_n, name) && s[name_n] == ':') operation(s + name_n + 1, stop);
        s = stop;
    }
}
static u32 callback(enum Callback callback, u32 a, u32 b, u32 c, u32 d, u32 e, u32 result) {
    Frame this = {callback, {a, b, c, d, e}, stream_of(a), result};
    frame = &this;
    used = 0;
    runs[callback]++;
    if (!this.stream || callback >= DONE) vm_results[callback].n = 0;
    if (!this.stream) this.stream = caller(callback, b);
    script(&vm_script);
    if (this.stream) script(&this.stream->script);
    frame = 0;
    return this.result;
}

static void append(Text *to, u32 buffer) {
    u32 at = 0, n = 0;
    if (!proxy_get_buffer_bytes(buffer, 0, -1, (u32)&at, (u32)&n)) put_text(to, (char *)at, n);
    put(to, ';');
}

EXPORT(proxy_abi_version_0_2_1) void abi(void) {}
EXPORT(proxy_on_memory_allocate) u32 on_allocate(u32 n) {
    if (frame && !allocating) {
        Frame *outer = frame, this = {ALLOCATE, {n, 0, 0, 0, 0}, 0, 1};
        allocating = 1;
        frame = &this;
        script(&vm_script);
        if (outer->stream) script(&outer->stream->script);
        frame = outer;
        allocating = 0;
        if (this.result != 1) return this.result;
    }
    return alloc(n);
}
EXPORT(proxy_on_vm_start) u32 on_vm_start(u32 root, u32 size) {
    append(&vm_script, VM_CONFIG);
    return callback(START, root, size, 0, 0, 0, 1);
}
EXPORT(proxy_on_configure) u32 on_configure(u32 root, u32 size) {
    append(&vm_script, PLUGIN_CONFIG);
    return callback(CONFIGURE, root, size, 0, 0, 0, 1);
}
EXPORT(proxy_on_context_create) void on_create(u32 id, u32 parent) {
    for (u32 i = 0; parent && i < LENGTH(streams); i++)
        if (!streams[i].id) {
            Stream *to = &streams[i];
            to->id = id, to->calls = 0, to->paused = 0;
            to->script = (Text){to->script_text, 0, sizeof to->script_text};
            to->results = (Text){to->results_text, 0, sizeof to->results_text};
            break;
        }
    callback(CREATE, id, parent, 0, 0, 0, 0);
}
EXPORT(proxy_on_request_headers) u32 on_request_headers(u32 id, u32 n, u32 end) {
    Stream *stream = stream_of(id);
    u32 at = 0, size = 0;
    if (stream && !proxy_get_header_map_value(REQUEST_HEADERS, (u32) "x-run", 5, (u32)&at, (u32)&size))
        put_text(&stream->script, (char *)at, size);
    return callback(REQUEST_HEAD, id, n, end, 0, 0, CONTINUE);
}
EXPORT(proxy_on_request_body) u32 on_request_body(u32 id, u32 n, u32 end) {
    return callback(REQUEST_BODY, id, n, end, 0, 0, CONTINUE);
}
EXPORT(proxy_on_request_trailers) u32 on_request_trailers(u32 id, u32 n) {
    return callback(REQUEST_TRAILERS, id, n, 0, 0, 0, CONTINUE);
}
EXPORT(proxy_on_response_headers) u32 on_response_headers(u32 id, u32 n, u32 end) {
    Stream *stream = stream_of(id);
    u32 result = callback(RESPONSE_HEAD, id, n, end, 0, 0, CONTINUE);
    if (stream && stream->results.n)
        proxy_add_header_map_value(RESPONSE_HEADERS, (u32) "x-results", 9, (u32)stream->results.text, stream->results.n);
    return result;
}
EXPORT(proxy_on_response_body) u32 on_response_body(u32 id, u32 n, u32 end) {
    return callback(RESPONSE_BODY, id, n, end, 0, 0, CONTINUE);
}
EXPORT(proxy_on_response_trailers) u32 on_response_trailers(u32 id, u32 n) {
    return callback(RESPONSE_TRAILERS, id, n, 0, 0, 0, CONTINUE);
}
EXPORT(proxy_on_http_call_response) void on_call(u32 root, u32 id, u32 headers, u32 body, u32 trailers) {
    callback(CALL, root, id, headers, body, trailers, 0);
}
EXPORT(proxy_on_queue_ready) void on_queue(u32 root, u32 id) { callback(QUEUE, root, id, 0, 0, 0, 0); }
EXPORT(proxy_on_tick) void on_tick(u32 root) { callback(TICK, root, 0, 0, 0, 0, 0); }
EXPORT(proxy_on_done) u32 on_done(u32 id) { return callback(DONE, id, 0, 0, 0, 0, 1); }
EXPORT(proxy_on_log) void on_log(u32 id) { callback(LOG, id, 0, 0, 0, 0, 0); }
EXPORT(proxy_on_delete) void on_delete(u32 id) {
    callback(DELETE, id, 0, 0, 0, 0, 0);
    Stream *stream = stream_of(id);
    if (stream) stream->id = 0;
}
EXPORT(proxy_on_grpc_receive_initial_metadata) void on_grpc_initial(u32 root, u32 id, u32 n) {
    callback(GRPC_INITIAL, root, id, n, 0, 0, 0);
}
EXPORT(proxy_on_grpc_receive) void on_grpc_message(u32 root, u32 id, u32 n) { callback(GRPC_MESSAGE, root, id, n, 0, 0, 0); }
EXPORT(proxy_on_grpc_receive_trailing_metadata) void on_grpc_trailing(u32 root, u32 id, u32 n) {
    callback(GRPC_TRAILING, root, id, n, 0, 0, 0);
}
EXPORT(proxy_on_grpc_close) void on_grpc_close(u32 root, u32 id, u32 status) { callback(GRPC_CLOSE, root, id, status, 0, 0, 0); }
EXPORT(proxy_on_foreign_function) void on_foreign(u32 root, u32 id, u32 n) { callback(FOREIGN, root, id, n, 0, 0, 0); }
