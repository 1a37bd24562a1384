// A CGI program (RFC 3875): says what it was asked. The query picks other answers.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

static const char *meta(const char *name) {
  const char *value = getenv(name);
  return value ? value : "-";
}

int main(void) {
  const char *query = meta("QUERY_STRING");
  if (!strcmp(query, "teapot")) {
    fputs("Status: 418 Teapot\r\nContent-Type: text/plain\r\nX-Kind: stout\r\n\r\nshort\n", stdout);
    return 0;
  }
  if (!strcmp(query, "redirect")) {
    fputs("Location: https://example.com/elsewhere\n\n", stdout);
    return 0;
  }
  fputs("Content-Type: text/plain\n\n", stdout);
  if (!strcmp(query, "env")) {
    for (char **e = environ; *e; e++)
      puts(*e);
    return 0;
  }
  printf("%s %s%s ?%s %s\n", meta("REQUEST_METHOD"), meta("SCRIPT_NAME"), meta("PATH_INFO"), query, meta("SERVER_PROTOCOL"));
  printf("type=%s length=%s greeting=%s\n", meta("CONTENT_TYPE"), meta("CONTENT_LENGTH"), meta("GREETING"));
  for (int c; (c = getchar()) != EOF;)
    putchar(c);
  return 0;
}
