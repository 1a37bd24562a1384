// Assets are there to read, and nothing changes them.
#define _GNU_SOURCE
#include "wasix.h"
#include <wasi/api.h>

static char names_of_root[4096];

int main(void) {
    char text[32] = {0};
    struct stat st;
    int fd = open("/data/deep/hello", O_RDONLY), names = 0;
    CHECK(fd > 2 && read(fd, text, sizeof text) == 5 && strcmp(text, "hello") == 0);
    CHECK(pread(fd, text, 2, 3) == 2 && memcmp(text, "lo", 2) == 0 && fstat(fd, &st) == 0 && st.st_size == 5);
    CHECK(write(fd, "x", 1) == -1 && ftruncate(fd, 0) == -1 && close(fd) == 0);
    CHECK(open("/data/deep/hello", O_RDWR) == -1 && open("/data/deep/hello", O_RDONLY | O_TRUNC) == -1);
    CHECK(open("/data/new", O_RDWR | O_CREAT, 0644) == -1 && mkdir("/data/new", 0755) == -1);
    CHECK(unlink("/data/deep/hello") == -1 && rmdir("/data/deep") == -1 && rename("/data", "/other") == -1);
    CHECK(rename("/data/deep/hello", "/tmp/hello") == -1 && symlink("/data", "/data/link") == -1);
    CHECK(rmdir("/tmp") == -1 && rename("/tmp", "/data/tmp") == -1);
    CHECK(symlink("/data/deep", "/tmp/link") == 0 && stat("/tmp/link/hello", &st) == 0 && st.st_size == 5);
    CHECK((fd = open("/data/deep/hello", O_RDONLY)) > 2 && read(fd, text, 5) == 5 && memcmp(text, "hello", 5) == 0);
    DIR *dir = opendir("/");
    CHECK(dir);
    for (struct dirent *e; (e = readdir(dir));) names += e->d_name[0] != '.';
    CHECK(names == 2);
    // Both descriptors that a run begins with are the same folder.
    for (int root = 3; root <= 4; root++) {
        size_t used = 0;
        CHECK(__wasi_fd_readdir(root, (uint8_t *)names_of_root, sizeof names_of_root, 0, &used) == 0);
        CHECK(memmem(names_of_root, used, "data", 4) && memmem(names_of_root, used, "tmp", 3));
        CHECK(fstatat(root, "data/deep/hello", &st, 0) == 0 && st.st_size == 5);
    }
    return 0;
}
