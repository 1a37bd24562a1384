// Functions of `wasix_32v1`, as wasmer-wasix 0.704 has them. Results are error numbers (0: success).
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WASIX(name) __attribute__((import_module("wasix_32v1"), import_name(#name))) extern

typedef struct { void *at; uint32_t len; } vec_t;

WASIX(chdir) int wx_chdir(const char *path, uint32_t len);
WASIX(getcwd) int wx_getcwd(char *path, uint32_t *len);
WASIX(fd_dup) int wx_fd_dup(int fd, int *out);
WASIX(fd_dup2) int wx_fd_dup2(int fd, int min, int cloexec, int *out);
WASIX(fd_renumber) int wx_fd_renumber(int from, int to);
WASIX(fd_write) int wx_fd_write(int fd, const vec_t *iovs, uint32_t n, uint32_t *written);
WASIX(fd_read) int wx_fd_read(int fd, const vec_t *iovs, uint32_t n, uint32_t *read);
WASIX(fd_pwrite) int wx_fd_pwrite(int fd, const vec_t *iovs, uint32_t n, uint64_t at, uint32_t *written);
WASIX(fd_pipe) int wx_fd_pipe(int *rx, int *tx);
WASIX(fd_event) int wx_fd_event(uint64_t initial, int flags, int *out);
WASIX(path_open2) int wx_path_open2(int dir, int dirflags, const char *path, uint32_t len, int oflags, uint64_t base,
                                    uint64_t inheriting, int fdflags, int fdext, int *out);
WASIX(path_link) int wx_path_link(int old, int flags, const char *from, uint32_t from_len, int to_fd, const char *to,
                                  uint32_t to_len);
WASIX(path_symlink) int wx_path_symlink(const char *target, uint32_t target_len, int fd, const char *path, uint32_t len);
WASIX(path_rename) int wx_path_rename(int from_fd, const char *from, uint32_t from_len, int to_fd, const char *to,
                                      uint32_t to_len);
WASIX(thread_sleep) int wx_thread_sleep(uint64_t nanos);
WASIX(thread_spawn_v2) int wx_thread_spawn(void *args, int *tid);
WASIX(thread_join) int wx_thread_join(int tid);
WASIX(thread_signal) int wx_thread_signal(int tid, int signal);
WASIX(thread_exit) void wx_thread_exit(int code);
WASIX(futex_wait) int wx_futex_wait(void *futex, uint32_t expected, const void *timeout, void *woken);
WASIX(futex_wake) int wx_futex_wake(void *futex, void *woken);
WASIX(poll_oneoff) int wx_poll_oneoff(const void *in, void *out, uint32_t n, uint32_t *count);
WASIX(epoll_create) int wx_epoll_create(int *out);
WASIX(proc_fork) int wx_proc_fork(int copy, int *pid);
WASIX(proc_exec) void wx_proc_exec(const char *name, uint32_t len, const char *args, uint32_t args_len);
WASIX(proc_spawn) int wx_proc_spawn(const char *name, uint32_t name_len, int chroot, const char *args,
                                    uint32_t args_len, const char *preopen, uint32_t preopen_len, int in, int out,
                                    int err, const char *dir, uint32_t dir_len, void *handles);
WASIX(proc_join) int wx_proc_join(void *pid, int flags, void *status);
WASIX(proc_signal) int wx_proc_signal(int pid, int signal);
WASIX(proc_id) int wx_proc_id(int *pid);
WASIX(proc_parent) int wx_proc_parent(int pid, int *parent);
WASIX(proc_raise_interval) int wx_proc_raise_interval(int signal, uint64_t interval, int repeat);
WASIX(proc_snapshot) int wx_proc_snapshot(void);
WASIX(stack_checkpoint) int wx_stack_checkpoint(void *snapshot, void *value);
WASIX(stack_restore) void wx_stack_restore(void *snapshot, uint64_t value);
WASIX(sock_open) int wx_sock_open(int family, int type, int protocol, int *out);
WASIX(sock_pair) int wx_sock_pair(int family, int type, int protocol, int *a, int *b);
WASIX(sock_connect) int wx_sock_connect(int fd, void *address);
WASIX(sock_bind) int wx_sock_bind(int fd, void *address);
WASIX(resolve) int wx_resolve(const char *host, uint32_t len, int port, void *addresses, uint32_t n, void *count);
WASIX(port_bridge) int wx_port_bridge(const char *net, uint32_t net_len, const char *token, uint32_t token_len,
                                      int security);
WASIX(port_addr_list) int wx_port_addr_list(void *addresses, uint32_t *n);
WASIX(port_dhcp_acquire) int wx_port_dhcp_acquire(void);
WASIX(tty_set) int wx_tty_set(void *state);
WASIX(dlopen) int wx_dlopen(const char *path, uint32_t len, int flags, char *error, uint32_t error_len,
                            const char *paths, uint32_t paths_len, void *out);
WASIX(clock_time_set) int wx_clock_time_set(int clock, uint64_t time);
WASIX(random_get) int wx_random_get(void *buffer, uint32_t len);

#define CHECK(what) do { if (!(what)) { fprintf(stderr, "line %d: %s, errno %d\n", __LINE__, #what, errno); _Exit(1); } } while (0)
