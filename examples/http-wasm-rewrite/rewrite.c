// An http-wasm handler that rewrites bodies: in `text/plain` answers it writes every ASCII letter in upper case, and
// says so in a header. It shows what `buffer_response` is for: with it, `handle_response` may read and change the
// whole answer; without it, the answer streams past and writing to it traps.
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define HOST(name) __attribute__((import_module("http_handler"), import_name(#name)))
#define EXPORT(name) __attribute__((export_name(#name)))
HOST(enable_features) u32 enable_features(u32 features);
HOST(get_header_values) u64 get_header_values(u32 kind, const char *name, u32 n, char *buf, u32 cap);
HOST(set_header_value) void set_header_value(u32 kind, const char *name, u32 n, const char *value, u32 v);
HOST(read_body) u64 read_body(u32 kind, char *buf, u32 cap);
HOST(write_body) void write_body(u32 kind, const char *s, u32 n);

enum { BUFFER_RESPONSE = 2, RESPONSE = 1 };

// The first write discards the answer, so all of it is read first.
static char body[1 << 20];

EXPORT(_initialize) void initialize(void) { enable_features(BUFFER_RESPONSE); }

EXPORT(handle_request) i64 handle_request(void) { return 1; }

static int is_text(void) {
    static const char want[] = "text/plain";
    char got[128];
    u64 found = get_header_values(RESPONSE, "content-type", 12, got, sizeof got);
    if ((u32)found < sizeof want || (u32)found > sizeof got) return 0;
    for (u32 i = 0; i < sizeof want - 1; i++)
        if (got[i] != want[i]) return 0;
    return 1;
}

EXPORT(handle_response) void handle_response(u32 context, u32 is_error) {
    (void)context;
    if (is_error || !is_text()) return;
    u32 n = 0, eof = 0;
    while (!eof) {
        if (n == sizeof body) return; // Larger than this handler's buffer: left as it is.
        u64 got = read_body(RESPONSE, body + n, sizeof body - n);
        n += (u32)got;
        eof = (u32)(got >> 32);
    }
    for (u32 i = 0; i < n; i++)
        if (body[i] >= 'a' && body[i] <= 'z') body[i] -= 'a' - 'A';
    set_header_value(RESPONSE, "x-rewritten", 11, "upper", 5);
    write_body(RESPONSE, body, n);
}
