// Random work on few names, from the seed `argv[1]`, for `argv[2]` steps: nothing may hang, and all of it may fail.
#include "wasix.h"

static uint32_t state;

static uint32_t next(uint32_t n) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % n;
}

static const char *path(void) {
    static char paths[4][128];
    static int at;
    char *p = paths[at++ & 3];
    static const char *names[] = {"a", "b", "c", "..", ".", "l", "a/", ""};
    strcpy(p, next(8) ? "/tmp" : "");
    for (uint32_t n = next(4) + 1; n; n--) {
        strcat(p, next(16) ? "/" : "");
        strcat(p, names[next(8)]);
    }
    return p;
}

int main(int argc, char **argv) {
    state = (argc > 1 ? atoi(argv[1]) : 1) * 2654435761u | 1;
    int steps = argc > 2 ? atoi(argv[2]) : 1000, out, done = 0;
    char text[64];
    for (int n = 0; n < steps; n++) {
        int fd = next(14), e = 0;
        struct stat st;
        const char *a = path(), *b = path();
        switch (next(22)) {
        case 0: case 1: case 2: e = open(a, next(4) | (next(2) ? O_CREAT : 0) | (next(8) ? 0 : O_TRUNC) | (next(8) ? 0 : O_EXCL) | (next(8) ? 0 : O_DIRECTORY), 0644); break;
        case 3: case 4: if (fd > 2) e = close(fd); break;
        case 5: case 6: e = mkdir(a, 0755); break;
        case 7: e = rmdir(a); break;
        case 8: e = unlink(a); break;
        case 9: case 10: e = rename(a, b); break;
        case 11: case 12: e = symlink(b, a); break;
        case 13: e = readlink(a, text, sizeof text); break;
        case 14: e = next(2) ? stat(a, &st) : lstat(a, &st); break;
        case 15: e = fstat(fd, &st); break;
        case 16: if (fd > 2) e = write(fd, "some text", next(10)); break;
        case 17: e = read(fd, text, next(64)); break;
        case 18: e = fd > 4 ? ftruncate(fd, next(1 << 16)) : (int)lseek(fd, next(1 << 16), next(3)); break;
        case 19: e = fd > 4 ? wx_fd_renumber(fd, 5 + next(9)) : wx_fd_dup(fd, &out); break;
        case 20: { DIR *d = opendir(a); if (d) { while (readdir(d)) {} closedir(d); } else e = -1; } break;
        case 21: e = wx_chdir(a, strlen(a)); break;
        }
        done += e >= 0;
    }
    printf("%d\n", done);
    return 0;
}
