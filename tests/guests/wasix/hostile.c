// One attack by its name, `argv[1]`. Whoever gets what it must not have exits with 1.
#include "wasix.h"

#define NOTSUP 58
#define DENIED(call) do { int e = (call); if (e != NOTSUP) { fprintf(stderr, "%s: %d\n", #call, e); denied = false; } } while (0)

static char scratch[4096];
static const char nul[256];

static int deny(void) {
    bool denied = true;
    int fd = -1, other = -1;
    DENIED(wx_sock_open(1, 1, 6, &fd));
    DENIED(wx_sock_pair(1, 1, 6, &fd, &other));
    DENIED(wx_sock_connect(0, scratch));
    DENIED(wx_sock_bind(0, scratch));
    DENIED(wx_resolve("localhost", 9, 80, scratch, 4, scratch + 2048));
    DENIED(wx_port_bridge("net", 3, "token", 5, 0));
    DENIED(wx_port_dhcp_acquire());
    DENIED(wx_port_addr_list(scratch, (uint32_t *)(scratch + 2048)));
    DENIED(wx_thread_spawn(scratch, &fd));
    DENIED(wx_thread_join(1));
    DENIED(wx_thread_signal(1, 9));
    DENIED(wx_futex_wait(scratch, 0, scratch + 64, scratch + 128));
    DENIED(wx_futex_wake(scratch, scratch + 128));
    DENIED(wx_proc_fork(1, &fd));
    DENIED(wx_proc_spawn("/bin/sh", 7, 0, "", 0, "", 0, 0, 1, 2, "/", 1, scratch));
    DENIED(wx_proc_join(scratch, 0, scratch + 64));
    DENIED(wx_proc_signal(1, 9));
    DENIED(wx_proc_parent(1, &fd));
    DENIED(wx_proc_raise_interval(14, 1, 1));
    DENIED(wx_proc_snapshot());
    DENIED(wx_stack_checkpoint(scratch, scratch + 64));
    DENIED(wx_fd_pipe(&fd, &other));
    DENIED(wx_fd_event(0, 0, &fd));
    DENIED(wx_epoll_create(&fd));
    DENIED(wx_tty_set(scratch));
    DENIED(wx_clock_time_set(0, 1));
    DENIED(wx_dlopen("/tmp/x", 6, 0, scratch, 64, "", 0, &fd));
    DENIED(wx_path_link(3, 0, "tmp", 3, 3, "tmp/tmp", 7));
    return denied && fd == -1 && other == -1 ? 0 : 1;
}

static void sleep_hours(void) { wx_thread_sleep(3600000000000000ull); }

static void poll_hours(void) {
    uint8_t in[48] = {0}, out[32];
    uint64_t hours = 3600000000000000ull;
    uint32_t n;
    memcpy(in + 24, &hours, 8);
    in[16] = 1;
    wx_poll_oneoff(in, out, 1, &n);
}

// Tables.

static int duplicates(void) {
    int fd, most = 0, e;
    for (int n = 0; n < 1000000; n++) {
        if ((e = wx_fd_dup(1, &fd))) break;
        most = fd;
    }
    CHECK(e == 33 && most < 1024);
    CHECK(wx_fd_dup(1, &fd) == 33 && wx_fd_dup2(1, 2000000000, 0, &fd) == 8 && wx_fd_dup2(1, 65000, 0, &fd) == 8);
    CHECK(wx_fd_renumber(1, 65000) == 8 && wx_fd_renumber(1, -1) == 8);
    for (fd = 5; fd <= most; fd++) close(fd);
    CHECK(open("/tmp/x", O_RDWR | O_CREAT, 0644) >= 0);
    return 0;
}

// Files.

static long filled(const char *path, long step, long most) {
    long sum = 0, n;
    int fd = open(path, O_RDWR | O_CREAT, 0644);
    if (fd < 0) return 0;
    static char buffer[1 << 16];
    while (sum < most && (n = write(fd, buffer, step)) > 0) sum += n;
    close(fd);
    return sum;
}

static int fill(void) {
    long all = filled("/tmp/a", 1 << 16, 1l << 30);
    all += filled("/tmp/b", 1 << 12, 1l << 30);
    unlink("/tmp/a");
    long again = filled("/tmp/c", 1 << 16, 1l << 30);
    printf("%ld %ld\n", all, again);
    return 0;
}

static int sparse(void) {
    int fd = open("/tmp/a", O_RDWR | O_CREAT, 0644);
    struct stat st;
    CHECK(ftruncate(fd, 1ll << 40) == -1 && fstat(fd, &st) == 0 && st.st_size == 0);
    CHECK(ftruncate(fd, 1 << 20) == 0 && fstat(fd, &st) == 0 && st.st_size == 1 << 20);
    CHECK(pwrite(fd, "x", 1, (1ll << 40) - 1) == -1 && pwrite(fd, "x", 1, 1ll << 61) == -1);
    CHECK(ftruncate(fd, 1ll << 62) == -1 && posix_fallocate(fd, 1ll << 61, 1ll << 61) != 0);
    CHECK(lseek(fd, 1ll << 62, SEEK_SET) == 1ll << 62 && write(fd, "x", 1) == -1 && read(fd, scratch, 1) <= 0);
    CHECK(ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0 && read(fd, scratch, 1) == 0);
    return 0;
}

static int many(void) {
    char path[320];
    int files = 0, folders = 0, links = 0;
    for (; files < 100000; files++) {
        snprintf(path, sizeof path, "/tmp/f%d", files);
        int fd = open(path, O_RDWR | O_CREAT, 0644);
        if (fd < 0) break;
        close(fd);
    }
    for (int n = 0; n < files; n++) {
        snprintf(path, sizeof path, "/tmp/f%d", n);
        CHECK(unlink(path) == 0);
    }
    memset(path, 'n', sizeof path);
    for (; folders < 100000; folders++) {
        snprintf(path, sizeof path, "/tmp/%d", folders);
        size_t len = strlen(path);
        memset(path + len, 'n', 200);
        path[len + 200] = 0;
        if (mkdir(path, 0755)) break;
    }
    CHECK(symlink("x", "/tmp/z") == -1);
    for (int n = 0; n < folders; n++) {
        snprintf(path, sizeof path, "/tmp/%d", n);
        size_t len = strlen(path);
        memset(path + len, 'n', 200);
        path[len + 200] = 0;
        CHECK(rmdir(path) == 0);
    }
    for (; links < 100000; links++) {
        snprintf(path, sizeof path, "/tmp/l%d", links);
        if (symlink(path, path)) break;
    }
    CHECK(open("/tmp/l0", O_RDWR | O_CREAT, 0644) == -1);
    printf("%d %d %d\n", files, folders, links);
    return 0;
}

static int deep(void) {
    int depth = 0;
    char path[2048] = "/tmp";
    while (depth < 900 && mkdir(strcat(path, "/d"), 0755) == 0) depth++;
    path[strlen(path) - 2] = 0;
    CHECK(wx_chdir(path, strlen(path)) == 0);
    uint32_t len = sizeof path;
    CHECK(wx_getcwd(path, &len) == 0 && len <= 1024);
    for (int n = 0; n < 10000; n++) CHECK(wx_chdir("./././././././././.", 19) == 0 || n > 0);
    CHECK(rename("/tmp/d", "/tmp/a much longer name for it") == -1);
    CHECK(rename("/tmp/d", "/tmp/e") == 0 && rename("/tmp/e", "/tmp/e/d/x") == -1);
    printf("%d\n", depth);
    return 0;
}

// The longest that following links takes: as many as may be in a row, each with as many names as it may have.
static int chain(void) {
    char from[32], to[300];
    mkdir("/tmp/d", 0755);
    for (int n = 0; n < 200; n++) {
        snprintf(from, sizeof from, "/tmp/l%d", n);
        snprintf(to, sizeof to, "d/../d/../d/../d/../d/../d/../d/../l%d", n + 1);
        CHECK(symlink(to, from) == 0);
    }
    for (int n = 0; n < 1000000; n++) CHECK(open("/tmp/l0", O_RDWR | O_CREAT, 0644) == -1);
    return 0;
}

// Calls that ask for too much at once.

static int huge(void) {
    static char block[1 << 20];
    static vec_t vecs[1024];
    uint32_t n = 0;
    for (int i = 0; i < 1024; i++) vecs[i] = (vec_t){block, sizeof block};
    CHECK(wx_fd_write(2, vecs, 0xffffffff, &n) != 0 && wx_fd_read(0, vecs, 0x7fffffff, &n) != 0);
    CHECK(wx_fd_write(2, vecs, 1024, &n) == 0 && n == 1 << 20 && vecs[1].len == sizeof block);
    vecs[0].len = 0x40000000;
    CHECK(wx_fd_write(2, vecs, 1, &n) == 0 ? n == 1 << 20 : vecs[0].len == 0x40000000);
    CHECK(wx_chdir(block, 0xffffffff) == 37 && wx_chdir(block, sizeof block) == 37);
    CHECK(wx_path_symlink("a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s", 37, 3, "tmp/l", 5) == 37);
    for (;;) wx_random_get(block, sizeof block);
}

static int writes_for_ever(void) {
    static char block[1 << 20];
    vec_t vec = {block, sizeof block};
    uint32_t n;
    for (;;) wx_fd_write(2, &vec, 1, &n);
}

static int calls_for_ever(void) {
    struct stat st;
    for (;;) stat("/tmp", &st);
}

static int output_without_end(void) {
    static char block[1 << 16];
    for (;;) if (write(1, block, sizeof block) < 0) return 1;
}

// What makes wasmer-wasix assert.

static int below_a_file(void) {
    close(open("/tmp/f", O_RDWR | O_CREAT, 0644));
    wx_path_symlink("x", 1, 3, "tmp/f/y", 7);
    return 0;
}

static int links_to_itself(void) {
    mkdir("/tmp/d", 0755);
    CHECK(wx_path_link(3, 0, "tmp/d", 5, 3, "tmp/d/d", 7) == NOTSUP);
    CHECK(rename("/tmp/d", "/tmp/e") == 0);
    return 0;
}

static int bad_pointers(void) {
    uint32_t n;
    int fd;
    vec_t vec = {(void *)0xfffffff0, 100}, odd[2] = {{scratch, 1}, {scratch, 1}};
    CHECK(wx_fd_write(1, &vec, 1, &n) != 0 && wx_fd_read(0, &vec, 1, &n) != 0);
    CHECK(wx_fd_write(1, (vec_t *)((char *)odd + 1), 1, &n) != 0);
    CHECK(wx_chdir((char *)0xfffffff0, 100) != 0 && wx_getcwd((char *)0xfffffff0, &n) != 0);
    CHECK(wx_path_open2(3, 1, nul, 0, 0, -1, -1, 0, 0, &fd) != 0 && wx_path_open2(3, 1, nul, 255, 9, -1, -1, 0, 0, &fd) != 0);
    CHECK(wx_path_open2(77, 1, "tmp", 3, 0, -1, -1, 0, 0, &fd) != 0 && wx_path_open2(3, 1, "\xff\xfe", 2, 9, -1, -1, 0, 0, &fd) != 0);
    wx_fd_write(1, (vec_t *)0xfffffff0, 4, &n);
    return 1;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "deny")) return deny();
    if (!strcmp(what, "exec")) { wx_proc_exec("/bin/sh", 7, "", 0); return 0; }
    if (!strcmp(what, "restore")) { wx_stack_restore(scratch, 1); return 0; }
    if (!strcmp(what, "exit")) wx_thread_exit(9);
    if (!strcmp(what, "sleep")) sleep_hours();
    if (!strcmp(what, "poll")) poll_hours();
    if (!strcmp(what, "empty-input")) return read(0, scratch, 1) == 0 ? 0 : 1;
    if (!strcmp(what, "duplicates")) return duplicates();
    if (!strcmp(what, "fill")) return fill();
    if (!strcmp(what, "sparse")) return sparse();
    if (!strcmp(what, "many")) return many();
    if (!strcmp(what, "deep")) return deep();
    if (!strcmp(what, "chain")) return chain();
    if (!strcmp(what, "huge")) return huge();
    if (!strcmp(what, "writes")) return writes_for_ever();
    if (!strcmp(what, "calls")) return calls_for_ever();
    if (!strcmp(what, "output")) return output_without_end();
    if (!strcmp(what, "below-a-file")) return below_a_file();
    if (!strcmp(what, "links")) return links_to_itself();
    if (!strcmp(what, "pointers")) return bad_pointers();
    return 1;
}
