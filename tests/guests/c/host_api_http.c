// An http-wasm handler. `X-Run` and, of the answer, `X-Run-After` are scripts of `host_api.h`. With `X-Answer` it answers with
// what came of the body as a script; else that of `X-Run-After` is in the answer's `X-After`.
#include "host_api.h"

#define EXPORT(name) __attribute__((export_name(#name)))
#define HOST(name) __attribute__((import_module("http_handler"), import_name(#name))) extern
HOST(enable_features) unsigned enable_features(unsigned);
HOST(get_header_values) unsigned long long get_header_values(unsigned, const char *, unsigned, char *, unsigned);
HOST(set_header_value) void set_header_value(unsigned, const char *, unsigned, const char *, unsigned);
HOST(read_body) unsigned long long read_body(unsigned, char *, unsigned);
HOST(write_body) void write_body(unsigned, const char *, unsigned);

int main(void) { return 0; }

static int header(const char *name) {
  script_text[0] = 0;
  return get_header_values(0, name, (unsigned)strlen(name), script_text, sizeof script_text) >> 32;
}

EXPORT(handle_request) long long handle_request(void) {
  out_len = 0;
  if (header("x-run"))
    run(script_text);
  if (header("x-run-after"))
    enable_features(2);
  if (!header("x-answer"))
    return 1;
  out_len = 0;
  unsigned n = (unsigned)read_body(0, script_text, sizeof script_text - 1);
  script_text[n] = 0;
  run(script_text);
  write_body(1, out, out_len);
  return 0;
}

EXPORT(handle_response) void handle_response(unsigned context, unsigned is_error) {
  (void)context, (void)is_error;
  if (!header("x-run-after"))
    return;
  out_len = 0;
  run(script_text);
  for (unsigned i = 0; i < out_len; i++)
    if (out[i] == '\n')
      out[i] = ';';
  set_header_value(1, "x-after", 7, out, out_len);
}
