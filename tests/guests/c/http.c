// freestanding: an http-wasm handler. Its configuration picks what it does.
typedef __SIZE_TYPE__ size_t;
#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(fn) __attribute__((import_module("http_handler"), import_name(#fn))) extern

IMPORT(enable_features) unsigned enable_features(unsigned);
IMPORT(get_config) unsigned get_config(char *, unsigned);
IMPORT(get_uri) unsigned get_uri(char *, unsigned);
IMPORT(set_uri) void set_uri(const char *, unsigned);
IMPORT(get_header_names) unsigned long long get_header_names(unsigned, char *, unsigned);
IMPORT(get_header_values) unsigned long long get_header_values(unsigned, const char *, unsigned, char *, unsigned);
IMPORT(set_header_value) void set_header_value(unsigned, const char *, unsigned, const char *, unsigned);
IMPORT(remove_header) void remove_header(unsigned, const char *, unsigned);
IMPORT(read_body) unsigned long long read_body(unsigned, char *, unsigned);
IMPORT(write_body) void write_body(unsigned, const char *, unsigned);
IMPORT(set_status_code) void set_status_code(unsigned);

enum { REQUEST = 0, RESPONSE = 1 };
enum { STOP = 0, NEXT = 1 };

static char config[256], body[1 << 20], names[65536], values[65536];
static unsigned config_len, requests;

static unsigned len(const char *s) {
  unsigned n = 0;
  while (s[n])
    n++;
  return n;
}

static int is(const char *mode) {
  unsigned n = len(mode);
  if (n != config_len)
    return 0;
  for (unsigned i = 0; i < n; i++)
    if (config[i] != mode[i])
      return 0;
  return 1;
}

static void set(unsigned kind, const char *name, const char *value) {
  set_header_value(kind, name, len(name), value, len(value));
}

static void upper(unsigned kind) {
  unsigned total = 0;
  for (;;) {
    unsigned long long got = read_body(kind, body + total, sizeof body - total);
    total += (unsigned)got;
    if (got >> 32 || total == sizeof body)
      break;
  }
  for (unsigned i = 0; i < total; i++)
    if (body[i] >= 'a' && body[i] <= 'z')
      body[i] -= 32;
  write_body(kind, body, total);
}

// Every header of the request as `name: value` lines, and the URI.
static void tell(void) {
  unsigned n = get_uri(values, sizeof values);
  write_body(RESPONSE, values, n);
  write_body(RESPONSE, "\n", 1);
  unsigned count = get_header_names(REQUEST, names, sizeof names) >> 32;
  for (const char *name = names; count > 0; count--, name += len(name) + 1) {
    unsigned got = get_header_values(REQUEST, name, len(name), values, sizeof values) >> 32;
    for (const char *value = values; got > 0; got--, value += len(value) + 1) {
      write_body(RESPONSE, name, len(name));
      write_body(RESPONSE, ": ", 2);
      write_body(RESPONSE, value, len(value));
      write_body(RESPONSE, "\n", 1);
    }
  }
}

EXPORT("handle_request") long long handle_request(void) {
  requests++;
  config_len = get_config(config, sizeof config);
  if (is("header")) {
    set(REQUEST, "x-guest", "was here");
    // Set ahead of time, which needs no buffering; the gateway merges it into the upstream's answer.
    set(RESPONSE, "x-guest-response", "was here too");
  } else if (is("transform")) {
    // ABI section 3: without it, writing to the answer's head behind the upstream is a trap.
    enable_features(2);
    set(REQUEST, "x-guest", "was here");
    remove_header(REQUEST, "x-remove-me", 11);
    // Set ahead of time, which needs no buffering; the gateway merges it into the upstream's answer.
    set(RESPONSE, "x-guest-response", "was here too");
  } else if (is("answer")) {
    set_status_code(202);
    set(RESPONSE, "x-guest", "answered");
    write_body(RESPONSE, "answered by a guest\n", 20);
    return STOP;
  } else if (is("tell")) {
    tell();
    return STOP;
  } else if (is("count")) {
    char digits[10];
    unsigned n = sizeof digits, rest = requests;
    do
      digits[--n] = '0' + rest % 10;
    while (rest /= 10);
    write_body(RESPONSE, digits + n, sizeof digits - n);
    return STOP;
  } else if (is("rewrite")) {
    set_uri("/rewritten?by=guest", 19);
  } else if (is("upper-request")) {
    enable_features(1);
    upper(REQUEST);
  } else if (is("upper-response")) {
    enable_features(2);
  } else if (is("spin")) {
    for (volatile unsigned i = 0;; i++)
      ;
  } else if (is("trap-request")) {
    __builtin_trap();
  }
  return NEXT;
}

EXPORT("handle_response") void handle_response(unsigned ctx, unsigned is_error) {
  (void)ctx;
  if (is("unbuffered"))
    set(RESPONSE, "x-too-late", "the head has gone out");
  if (is("upper-response") && !is_error)
    upper(RESPONSE);
  if (is("trap-response"))
    __builtin_trap();
}
