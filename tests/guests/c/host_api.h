// Runs scripts of calls to the gateway's own functions, one a line (or between `;`), and writes a line for each:
// `name=result`, then what it got. Arguments are words; `-` is nothing, `*N` is N times `x`.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../examples/sdk/c/wasmgate.h"

static char script_text[1 << 16], out[1 << 18], got[1 << 17], big[1 << 20];
static unsigned out_len;

static void say(const char *text, unsigned len) {
  if (len > sizeof out - out_len)
    len = sizeof out - out_len;
  memcpy(out + out_len, text, len);
  out_len += len;
}

typedef struct {
  const char *at;
  unsigned len;
} Word;

static Word word(char *text) {
  if (!text || !strcmp(text, "-"))
    return (Word){"", 0};
  if (*text == '*') {
    memset(big, 'x', sizeof big);
    return (Word){big, (unsigned)atoi(text + 1)};
  }
  return (Word){text, (unsigned)strlen(text)};
}

static void told(const char *name, int result, const char *text, unsigned len) {
  char line[64];
  say(line, (unsigned)snprintf(line, sizeof line, "%s=%d", name, result));
  if (text && result >= 0) {
    say(" [", 2);
    say(text, len);
    say("]", 1);
  }
  say("\n", 1);
}

#define A(n) w[n].at, w[n].len
#define N(n) (words[n] ? atoll(words[n]) : 0)
#define NAMED(text) (!strcmp(words[0], text))

// Adds 1 to a value so many times, by get and cas alone.
static int cas_add(Word key, long long times) {
  for (long long n = 0; n < times;) {
    uint64_t version = 0;
    char digits[24];
    int len = wg_kv_get(key.at, key.len, digits, sizeof digits - 1, &version);
    digits[len < 0 ? 0 : len] = 0;
    char next[24];
    int size = snprintf(next, sizeof next, "%lld", (len < 0 ? 0 : atoll(digits)) + 1);
    int result = wg_kv_cas(key.at, key.len, next, (unsigned)size, 0, len < 0 ? 0 : version);
    if (result == WG_OK)
      n++;
    else if (result != WG_CONFLICT)
      return result;
  }
  return 0;
}

// Sets keys `PREFIX0`, `PREFIX1` ... until one is refused; how many were not, and why it was.
static void fill(Word prefix, long long most, unsigned size) {
  char key[64];
  int result = 0;
  long long n = 0;
  memset(big, 'x', sizeof big);
  for (; n < most && result == 0; n += result == 0) {
    int len = snprintf(key, sizeof key, "%.*s%lld", (int)prefix.len, prefix.at, n);
    result = wg_kv_set(key, (unsigned)len, big, size, 0);
  }
  char text[24];
  told("fill", (int)n, text, (unsigned)snprintf(text, sizeof text, "%d", result));
}

static void run_line(char *line) {
  char *words[8] = {0};
  Word w[8];
  char *save;
  for (int i = 0; i < 8; i++)
    words[i] = strtok_r(i ? NULL : line, " ", &save);
  if (!words[0])
    return;
  for (int i = 0; i < 8; i++)
    w[i] = word(words[i]);
  int result = -99;
  const char *text = NULL;
  char number[64];
  unsigned len = 0;
  memset(got, '~', 16);
  if (NAMED("config"))
    result = wg_config(got, sizeof got), text = got;
  else if (NAMED("log"))
    wg_log((int)N(1), A(2)), result = 0;
  else if (NAMED("principal"))
    result = wg_principal(A(1), got, sizeof got), text = got;
  else if (NAMED("value_get"))
    result = wg_value_get(A(1), got, sizeof got), text = got;
  else if (NAMED("value_set"))
    result = wg_value_set(A(1), A(2));
  else if (NAMED("kv_get"))
    result = wg_kv_get(A(1), got, sizeof got, NULL), text = got;
  else if (NAMED("kv_peek")) // into a buffer of so many bytes
    result = wg_kv_get(A(1), got, (unsigned)N(2), NULL), text = got, len = 4;
  else if (NAMED("kv_set"))
    result = wg_kv_set(A(1), A(2), N(3));
  else if (NAMED("kv_cas"))
    result = wg_kv_cas(A(1), A(2), N(3), (uint64_t)N(4));
  else if (NAMED("kv_recas")) { // with the number that it has now
    uint64_t version = 0;
    wg_kv_get(A(1), NULL, 0, &version);
    result = wg_kv_cas(A(1), A(2), N(3), version);
  } else if (NAMED("kv_incr")) {
    int64_t sum = 0;
    result = wg_kv_incr(A(1), N(2), N(3), &sum);
    text = number, len = (unsigned)snprintf(number, sizeof number, "%lld", (long long)sum);
  } else if (NAMED("kv_delete"))
    result = wg_kv_delete(A(1));
  else if (NAMED("rate_check"))
    result = wg_rate_check(A(1), (int)N(2));
  else if (NAMED("http_call")) { // UPSTREAM TIMEOUT METHOD PATH BODY FIELD
    char head[512];
    int size = snprintf(head, sizeof head, "%s %s\n%s\n", words[3] ? words[3] : "", words[4] ? words[4] : "",
                        words[6] ? words[6] : "");
    result = wg_http_call(A(1), head, (unsigned)size, A(5), (unsigned)N(2));
  } else if (NAMED("http_raw")) // UPSTREAM HEAD
    result = wg_http_call(A(1), A(2), "", 0, 1000);
  else if (NAMED("head"))
    result = wg_http_answer_head(got, sizeof got), text = got;
  else if (NAMED("body"))
    result = wg_http_answer_body(got, sizeof got), text = got;
  else if (NAMED("metric_define"))
    result = wg_metric_define((int)N(1), A(2));
  else if (NAMED("metric_record"))
    result = wg_metric_record((int)N(1), N(2));
  else if (NAMED("metric_increment"))
    result = wg_metric_increment((int)N(1), N(2));
  else if (NAMED("cas_add"))
    result = cas_add(w[1], N(2));
  else if (NAMED("fill")) {
    fill(w[1], N(2), (unsigned)N(3));
    return;
  } else if (NAMED("wild_get")) // a pointer to nowhere
    result = wg_kv_get((const char *)0xfffffff0u, 64, got, 4, NULL);
  else if (NAMED("wild_version"))
    result = wg_kv_get(A(1), got, sizeof got, (uint64_t *)0xfffffff0u);
  else if (NAMED("wild_sum"))
    result = wg_kv_incr(A(1), 1, 0, (int64_t *)0xfffffff0u);
  else if (NAMED("wild_set"))
    result = wg_kv_set(A(1), (const char *)0x7fffffff, 0x7fffffff, 0);
  else if (NAMED("wild_call"))
    result = wg_http_call(A(1), (const char *)0xffffffffu, 2, "", 0, 0);
  told(words[0], result, text, len ? len : (unsigned)(result < 0 ? 0 : result));
}

static void run(char *script) {
  char *save;
  for (char *line = strtok_r(script, ";\n", &save); line; line = strtok_r(NULL, ";\n", &save))
    run_line(line);
}
