// A command, or a CGI program: its input is a script of `host_api.h`, its output what came of it.
#include "host_api.h"

int main(void) {
  size_t n = fread(script_text, 1, sizeof script_text - 1, stdin);
  script_text[n] = 0;
  run(script_text);
  if (getenv("GATEWAY_INTERFACE"))
    fputs("Content-Type: text/plain\n\n", stdout);
  fwrite(out, 1, out_len, stdout);
  return 0;
}
