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
  const char *paths[] = {"/etc/passwd", "/proc/self/environ", "../../etc/passwd", "."};
  for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
    FILE *file = fopen(paths[i], "r");
    printf("%s: %s\n", paths[i], file ? "open" : "denied");
  }
  return 0;
}

// Writes without end, in large pieces.
static int flood(FILE *to) {
  static char line[65536];
  memset(line, 'x', sizeof line);
  for (;;)
    if (fwrite(line, 1, sizeof line, to) == 0)
      return 1;
}

// A page of fresh memory, or NULL. Not through malloc, whose calls the compiler may leave out.
static volatile unsigned char *fresh(size_t pages) {
  size_t before = __builtin_wasm_memory_grow(0, pages);
  return before == (size_t)-1 ? NULL : (volatile unsigned char *)(before << 16);
}

// Takes memory a MiB at a time until there is no more, touching all of it.
static int grow(void) {
  size_t mib = 0;
  for (volatile unsigned char *p; (p = fresh(16)) != NULL; mib++)
    for (size_t i = 0; i < 1 << 20; i += 4096)
      p[i] = 1;
  printf("%zu\n", mib);
  return 0;
}

// Fresh memory reads zero; then a canary is left behind for whoever comes next.
static int canary(void) {
  size_t size = 8 << 20, dirty = 0;
  volatile unsigned char *p = fresh(size >> 16);
  for (size_t i = 0; i < size; i++) {
    dirty += p[i] != 0;
    p[i] = 0xA5;
  }
  printf("%zu\n", dirty);
  return 0;
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
    return flood(stdout);
  if (!strcmp(what, "flood-stderr"))
    return flood(stderr);
  if (!strcmp(what, "grow"))
    return grow();
  if (!strcmp(what, "canary"))
    return canary();
  if (!strcmp(what, "abort"))
    abort();
  for (volatile unsigned i = 0;; i++) // "spin"
    ;
}
