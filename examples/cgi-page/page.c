// Answers with the template `page.html` of its assets, the request's path filled in.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void escaped(const char *text) {
  for (; *text; text++)
    switch (*text) {
    case '<': fputs("&lt;", stdout); break;
    case '>': fputs("&gt;", stdout); break;
    case '&': fputs("&amp;", stdout); break;
    case '"': fputs("&quot;", stdout); break;
    default: putchar(*text);
    }
}

int main(void) {
  static const char mark[] = "{{path}}";
  FILE *page = fopen("/page.html", "r");
  if (!page) {
    puts("Status: 404\nContent-Type: text/plain\n\nno page.html came with this module");
    return 0;
  }
  const char *path = getenv("PATH_INFO");
  puts("Content-Type: text/html; charset=utf-8\n");
  static char line[4096];
  while (fgets(line, sizeof line, page)) {
    char *rest = line, *found;
    while ((found = strstr(rest, mark))) {
      fwrite(rest, 1, found - rest, stdout);
      escaped(path ? path : "");
      rest = found + sizeof mark - 1;
    }
    fputs(rest, stdout);
  }
  return 0;
}
