// An http-wasm handler that counts the requests of each caller in the gateway's key-value store, by day: it tells the
// upstream and the client the count in `x-visits`, and answers 429 itself beyond the limit that it is configured with.
#include "wasmgate.h"

#define HOST(name) __attribute__((import_module("http_handler"), import_name(#name))) extern
#define EXPORT(name) __attribute__((export_name(#name)))
HOST(get_source_addr) uint32_t get_source_addr(char *buf, uint32_t cap);
HOST(set_header_value) void set_header_value(uint32_t kind, const char *name, uint32_t n, const char *value, uint32_t v);
HOST(set_status_code) void set_status_code(uint32_t status);

enum { REQUEST = 0, RESPONSE = 1, STOP = 0, NEXT = 1 };
static const int64_t DAY = 86400000;

// `visits/` and who calls: the key's owner, else the address without its port.
static uint32_t key_of_caller(char *key, uint32_t cap) {
  static const char prefix[] = "visits/";
  uint32_t n = 0;
  for (; prefix[n]; n++)
    key[n] = prefix[n];
  int32_t owner = wg_principal("owner", 5, key + n, cap - n);
  if (owner > 0)
    return n + (uint32_t)owner;
  n += get_source_addr(key + n, cap - n);
  while (key[n - 1] != ':')
    n--;
  return n - 1;
}

static int64_t number(const char *text, int32_t len) {
  int64_t n = 0;
  for (int32_t i = 0; i < len && text[i] >= '0' && text[i] <= '9' && n < DAY; i++)
    n = n * 10 + text[i] - '0';
  return n;
}

EXPORT(handle_request) long long handle_request(void) {
  char key[128], limit[16], digits[20];
  int64_t visits = 0;
  int32_t result = wg_kv_incr(key, key_of_caller(key, sizeof key), 1, DAY, &visits);
  if (result != WG_OK) {
    // The count is not worth a request.
    wg_log(WG_WARN, "a visit is not counted", 22);
    return NEXT;
  }
  uint32_t at = sizeof digits;
  int64_t rest = visits;
  do
    digits[--at] = (char)('0' + rest % 10);
  while (rest /= 10);
  set_header_value(REQUEST, "x-visits", 8, digits + at, sizeof digits - at);
  set_header_value(RESPONSE, "x-visits", 8, digits + at, sizeof digits - at);
  int32_t len = wg_config(limit, sizeof limit);
  if (len <= 0 || len > (int32_t)sizeof limit || visits <= number(limit, len))
    return NEXT;
  set_status_code(429);
  return STOP;
}

EXPORT(handle_response) void handle_response(uint32_t context, uint32_t is_error) {
  (void)context;
  (void)is_error;
}
