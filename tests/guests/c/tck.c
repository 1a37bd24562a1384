// freestanding
// The guest of the http-wasm conformance checks (tests/it/http_wasm_tck.rs), in our own words: the request header
// `x-httpwasm-tck-testid` names the check, as `group/name`. It always sets `x-httpwasm-tck-handled: 1` on the
// response before it goes on; a failed assertion answers 500 with the reason in `x-httpwasm-tck-failed`.
typedef unsigned int u32;
typedef int i32;
typedef long long i64;
typedef unsigned long long u64;

#define HOST(name) __attribute__((import_module("http_handler"), import_name(#name)))
HOST(enable_features) u32 enable_features(u32 features);
HOST(get_method) u32 get_method(char *buf, u32 cap);
HOST(set_method) void set_method(const char *s, u32 n);
HOST(get_uri) u32 get_uri(char *buf, u32 cap);
HOST(set_uri) void set_uri(const char *s, u32 n);
HOST(get_protocol_version) u32 get_protocol_version(char *buf, u32 cap);
HOST(get_header_names) u64 get_header_names(u32 kind, char *buf, u32 cap);
HOST(get_header_values) u64 get_header_values(u32 kind, const char *name, u32 n, char *buf, u32 cap);
HOST(set_header_value) void set_header_value(u32 kind, const char *name, u32 n, const char *value, u32 v);
HOST(add_header_value) void add_header_value(u32 kind, const char *name, u32 n, const char *value, u32 v);
HOST(remove_header) void remove_header(u32 kind, const char *name, u32 n);
HOST(read_body) u64 read_body(u32 kind, char *buf, u32 cap);
HOST(write_body) void write_body(u32 kind, const char *s, u32 n);
HOST(set_status_code) void set_status_code(u32 code);
HOST(get_source_addr) u32 get_source_addr(char *buf, u32 cap);

enum { REQUEST = 0, RESPONSE = 1 };

static char buf[8192];
static char test[256];

static u32 length(const char *s) {
    u32 n = 0;
    while (s[n]) n++;
    return n;
}
static int same(const char *a, u32 n, const char *b) {
    if (n != length(b)) return 0;
    for (u32 i = 0; i < n; i++)
        if (a[i] != b[i]) return 0;
    return 1;
}
static int is(const char *name) { return same(test, length(test), name); }
// The part of the test id behind `group/`, or 0.
static const char *in(const char *group) {
    u32 n = length(group);
    for (u32 i = 0; i < n; i++)
        if (test[i] != group[i]) return 0;
    return test[n] == '/' ? test + n + 1 : 0;
}

static i64 fail(const char *why, const char *got, u32 n) {
    static const char name[] = "x-httpwasm-tck-failed";
    set_status_code(500);
    set_header_value(RESPONSE, name, sizeof name - 1, why, length(why));
    write_body(RESPONSE, got, n);
    return 0;
}
static i64 go_on(void) { return 1; }

static void set(const char *name, const char *value) {
    set_header_value(REQUEST, name, length(name), value, length(value));
}
static void add(const char *name, const char *value) {
    add_header_value(REQUEST, name, length(name), value, length(value));
}

// What a `count_len` of values gives, checked against a NUL-terminated list that ends in an empty item.
static i64 values_are(const char *name, const char *want, u32 count) {
    u64 got = get_header_values(REQUEST, name, length(name), buf, sizeof buf);
    u32 n = (u32)got, bytes = 0;
    for (u32 i = 0; i < count; i++) bytes += length(want + bytes) + 1;
    if ((u32)(got >> 32) != count || n != bytes) return fail("wrong count or length", buf, n);
    for (u32 i = 0; i < n; i++)
        if (buf[i] != want[i]) return fail("wrong values", buf, n);
    return go_on();
}

static i64 header_names(void) {
    u64 got = get_header_names(REQUEST, buf, sizeof buf);
    u32 n = (u32)got, count = 0, found = 0;
    for (u32 at = 0; at < n; count++) {
        u32 item = length(buf + at);
        for (u32 i = 0; i < item; i++)
            if (buf[at + i] >= 'A' && buf[at + i] <= 'Z') return fail("a name is not in lower case", buf + at, item);
        found += same(buf + at, item, "a-header") || same(buf + at, item, "b-header");
        at += item + 1;
    }
    if (count != (u32)(got >> 32)) return fail("wrong count", buf, n);
    return found == 2 ? go_on() : fail("names are missing", buf, n);
}

// The body must be `a` repeated, as often as the test id's digits say, in two reads where it can be.
static i64 body(const char *digits) {
    u32 want = 0, n = 0, eof = 0;
    for (; *digits; digits++) want = want * 10 + (u32)(*digits - '0');
    while (!eof) {
        u64 got = read_body(REQUEST, buf + n, 2048);
        eof = (u32)(got >> 32);
        if (!eof && (u32)got != 2048) return fail("a read that is not the last was short", buf, 0);
        n += (u32)got;
    }
    if (n != want) return fail("wrong length", buf, n);
    for (u32 i = 0; i < n; i++)
        if (buf[i] != 'a') return fail("wrong bytes", buf, n);
    return go_on();
}

static i64 source_address(void) {
    u32 n = get_source_addr(buf, sizeof buf), start = length("127.0.0.1:");
    if (n <= start || !same(buf, start, "127.0.0.1:")) return fail("not 127.0.0.1 and a port", buf, n);
    for (u32 i = start; i < n; i++)
        if (buf[i] < '0' || buf[i] > '9') return fail("not a port", buf, n);
    return go_on();
}

static i64 run(void) {
    const char *rest;
    u32 n;
    if (is("get_protocol_version")) {
        n = get_protocol_version(buf, sizeof buf);
        write_body(RESPONSE, buf, n);
        return go_on();
    }
    if ((rest = in("get_method"))) {
        n = get_method(buf, sizeof buf);
        return same(buf, n, rest) ? go_on() : fail("wrong method", buf, n);
    }
    if (is("set_method")) {
        set_method("POST", 4);
        return go_on();
    }
    if ((rest = in("get_uri"))) {
        n = get_uri(buf, sizeof buf);
        return same(buf, n, rest) ? go_on() : fail("wrong URI", buf, n);
    }
    if ((rest = in("set_uri"))) {
        set_uri(rest, length(rest));
        return go_on();
    }
    if (is("get_header_values/lower")) return values_are("single-header", "value", 1);
    if (is("get_header_values/mixed")) return values_are("Single-Header", "value", 1);
    if (is("get_header_values/absent")) return values_are("not-header", "", 0);
    if (is("get_header_values/two")) return values_are("multi-header", "value1\0value2\0", 2);
    if (is("get_header_names")) return header_names();
    if (is("set_header_value/new") || is("set_header_value/existing")) {
        set("new-header", "value");
        set("existing-header", "value");
        return go_on();
    }
    if (is("add_header_value/new") || is("add_header_value/existing")) {
        add("new-header", "value");
        add("existing-header", "value");
        return go_on();
    }
    if (is("remove_header/new") || is("remove_header/existing")) {
        remove_header(REQUEST, "new-header", 10);
        remove_header(REQUEST, "Existing-Header", 15);
        return go_on();
    }
    if ((rest = in("read_body"))) return body(rest);
    if (is("get_source_addr")) return source_address();
    return fail("no such check", test, length(test));
}

__attribute__((export_name("_start"))) void start(void) { enable_features(7); }

__attribute__((export_name("handle_request"))) i64 handle_request(void) {
    static const char id[] = "x-httpwasm-tck-testid", handled[] = "x-httpwasm-tck-handled";
    u64 got = get_header_values(REQUEST, id, sizeof id - 1, test, sizeof test);
    if ((u32)(got >> 32) != 1 || (u32)got > sizeof test) return fail("no test id", test, 0);
    set_header_value(RESPONSE, handled, sizeof handled - 1, "1", 1);
    return run();
}

__attribute__((export_name("handle_response"))) void handle_response(u32 context, u32 is_error) {
    (void)context;
    (void)is_error;
}
