// The gateway's own functions for guests: the import module `wasmgate_v1` of wasmgate. For modules with the ABI
// `http-wasm`, `command` or `cgi`; works without a C library.
//
// Buffers: a function with `buf` and `cap` gives the true length of what it has and writes it only if it fits into
// `cap` bytes; nothing is ever cut. Ask with `cap` 0 to learn the length. Refusals are negative (WG_*). A pointer that is
// outside of the guest's memory ends the guest.
#ifndef WASMGATE_H
#define WASMGATE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  WG_OK = 0,
  WG_NOT_FOUND = -1,    // there is no such thing
  WG_DENIED = -2,       // it is not granted here
  WG_BAD_ARGUMENT = -3, // it is too long, negative, malformed, or more than there will ever be
  WG_FULL = -4,         // there is no room for it
  WG_CONFLICT = -5,     // the value is another one than expected, or no number
  WG_TIMEOUT = -6,      // it took too long
  WG_UNAVAILABLE = -7,  // the store or the upstream fails
};

enum { WG_DEBUG = -1, WG_INFO = 0, WG_WARN = 1, WG_ERROR = 2 };
enum { WG_COUNTER = 0, WG_GAUGE = 1, WG_HISTOGRAM = 2 };

#define WG_IMPORT(name) __attribute__((import_module("wasmgate_v1"), import_name(#name))) extern

// The handler's `config`; empty in executions.
WG_IMPORT(config) int32_t wg_config(char *buf, uint32_t cap);
// To the gateway's log; in executions to standard error.
WG_IMPORT(log) void wg_log(int32_t level, const char *text, uint32_t len);
// What is known of the caller: `key_id`, `owner`, `tier`, `route`, `params.NAME`. WG_NOT_FOUND: nothing of that.
WG_IMPORT(principal) int32_t wg_principal(const char *field, uint32_t field_len, char *buf, uint32_t cap);

// Values that handlers of one request hand on to later ones: at most 64, of 64 KiB with the name.
WG_IMPORT(value_get) int32_t wg_value_get(const char *name, uint32_t name_len, char *buf, uint32_t cap);
WG_IMPORT(value_set) int32_t wg_value_set(const char *name, uint32_t name_len, const char *value, uint32_t len);

// Values that the module's owner keeps, for all of its modules: keys of 1 to 512 bytes, values of at most 64 KiB, 10,000
// of them and 16 MiB with their keys. A write is on the disk when it returns. `ttl_ms`: 0 for ever.
// `version` may be null; else it gets the value's number, another one after every write.
WG_IMPORT(kv_get) int32_t wg_kv_get(const char *key, uint32_t key_len, char *buf, uint32_t cap, uint64_t *version);
WG_IMPORT(kv_set) int32_t wg_kv_set(const char *key, uint32_t key_len, const char *value, uint32_t len, int64_t ttl_ms);
// Only while the value has this number; 0: only while there is none. WG_CONFLICT: it was not written.
WG_IMPORT(kv_cas) int32_t wg_kv_cas(const char *key, uint32_t key_len, const char *value, uint32_t len, int64_t ttl_ms,
                                    uint64_t version);
// Adds to a number, which is kept in decimal digits, in one step; one that is not there is 0 and gets the time to live.
// WG_CONFLICT: the value is no number, or the sum is too large.
WG_IMPORT(kv_incr) int32_t wg_kv_incr(const char *key, uint32_t key_len, int64_t by, int64_t ttl_ms, int64_t *sum);
WG_IMPORT(kv_delete) int32_t wg_kv_delete(const char *key, uint32_t key_len);

// Charges a quota of the caller's tier, by its name, `cost` requests beside the one that the request itself counts as.
// WG_OK: there was room. Positive: the seconds until there is; nothing was charged. WG_NOT_FOUND: the caller has no
// such quota. WG_BAD_ARGUMENT: more than it ever admits. WG_DENIED in executions.
WG_IMPORT(rate_check) int32_t wg_rate_check(const char *quota, uint32_t quota_len, int32_t cost);

// A request to an upstream that the handler's `upstreams` name; WG_DENIED for any other, and in executions. `head` is
// `METHOD /path`, then `name: value`, each on a line of its own; without a `host` it is the upstream's name. Gives the
// status of the answer. It waits `timeout_ms`, 0 for 60 s, and never past the end of the guest's own time.
WG_IMPORT(http_call) int32_t wg_http_call(const char *upstream, uint32_t upstream_len, const char *head,
                                          uint32_t head_len, const char *body, uint32_t body_len, uint32_t timeout_ms);
// The last answer, until the next call or the end of the phase: `name: value` lines, and the body (at most `max_buffer`).
WG_IMPORT(http_answer_head) int32_t wg_http_answer_head(char *buf, uint32_t cap);
WG_IMPORT(http_answer_body) int32_t wg_http_answer_body(char *buf, uint32_t cap);

// Metrics of the handler, at /metrics; WG_DENIED in executions, WG_FULL beyond 100. Gives the metric's number.
WG_IMPORT(metric_define) int32_t wg_metric_define(int32_t kind, const char *name, uint32_t name_len);
// Adds to a counter, sets a gauge, observes in a histogram.
WG_IMPORT(metric_record) int32_t wg_metric_record(int32_t metric, int64_t value);
WG_IMPORT(metric_increment) int32_t wg_metric_increment(int32_t metric, int64_t by);

#ifdef __cplusplus
}
#endif

#endif
