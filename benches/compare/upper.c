// The command that the comparison executes: standard input in upper case.
#include <ctype.h>
#include <stdio.h>

int main(void) {
  char line[4096];
  size_t n;
  while ((n = fread(line, 1, sizeof line, stdin)) > 0) {
    for (size_t i = 0; i < n; i++)
      line[i] = toupper((unsigned char)line[i]);
    printf("%.*s", (int)n, line);
  }
  return 0;
}
