// A WASI command. Without arguments it writes its input in upper case; the first argument picks something else.
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int upper(void) {
  int c;
  while ((c = getchar()) != EOF)
    putchar(toupper(c));
  return 0;
}

// Files, environment and network of the host must be out of reach.
static int reach(void) {
  const char *paths[] = {"/etc/passwd", "/proc/self/environ", "../../etc/passwd", "/proc/self/root/etc/passwd"};
  for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
    FILE *file = fopen(paths[i], "r");
    printf("%s: %s\n", paths[i], file ? "open" : "denied");
  }
  return 0;
}

// Writes without end, in large pieces.
static int flood(void) {
  static char line[65536];
  memset(line, 'x', sizeof line);
  for (;;)
    if (fwrite(line, 1, sizeof line, stdout) == 0)
      return 1;
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "upper";
  if (!strcmp(what, "upper"))
    return upper();
  if (!strcmp(what, "args")) {
    for (int i = 1; i < argc; i++)
      puts(argv[i]);
    return 0;
  }
  if (!strcmp(what, "env")) {
    for (char **e = environ; *e; e++)
      puts(*e);
    return 0;
  }
  if (!strcmp(what, "exit")) {
    fputs("before the end\n", stdout);
    fflush(stdout);
    exit(atoi(argv[2]));
  }
  if (!strcmp(what, "stderr")) {
    fputs("to stdout\n", stdout);
    fputs("to stderr\n", stderr);
    return 0;
  }
  if (!strcmp(what, "binary")) {
    for (int i = 0; i < 256; i++)
      putchar(i);
    return 0;
  }
  if (!strcmp(what, "clock")) {
    printf("%d\n", time(NULL) > 1600000000);
    return 0;
  }
  if (!strcmp(what, "reach"))
    return reach();
  if (!strcmp(what, "flood"))
    return flood();
  if (!strcmp(what, "abort"))
    abort();
  for (volatile unsigned i = 0;; i++) // "spin"
    ;
}
