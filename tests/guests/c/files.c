// A WASI command that works on files. The first argument picks what it does; it prints what it found.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wasi/api.h>

static void show(const char *what, long long result) {
  if (result < 0)
    printf("%s: %s\n", what, strerror(errno));
  else
    printf("%s: %lld\n", what, result);
}

static int put(const char *path, const char *text) {
  FILE *file = fopen(path, "w");
  return file && fputs(text, file) >= 0 && fclose(file) == 0 ? 0 : -1;
}

static int cat(const char *path) {
  FILE *file = fopen(path, "r");
  if (!file)
    return printf("%s: %s\n", path, strerror(errno)), 0;
  for (int c; (c = getc(file)) != EOF;)
    putchar(c);
  return fclose(file);
}

// Every file below a folder, with its size.
static void list(const char *path) {
  DIR *dir = opendir(path);
  if (!dir) {
    printf("%s: %s\n", path, strerror(errno));
    return;
  }
  for (struct dirent *e; (e = readdir(dir));) {
    if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
      continue;
    char below[1024];
    snprintf(below, sizeof below, "%s%s%s", path, strcmp(path, "/") ? "/" : "", e->d_name);
    struct stat stat_;
    if (stat(below, &stat_) != 0)
      printf("%s: %s\n", below, strerror(errno));
    else if (S_ISDIR(stat_.st_mode) != (e->d_type == DT_DIR) || stat_.st_ino != e->d_ino)
      printf("%s: stat and readdir differ\n", below);
    else if (S_ISDIR(stat_.st_mode))
      printf("%s/\n", below), list(below);
    else
      printf("%s %lld\n", below, (long long)stat_.st_size);
  }
  closedir(dir);
}

static int roundtrip(void) {
  show("mkdir", mkdir("/tmp/d", 0777));
  FILE *file = fopen("/tmp/d/a", "w+");
  fputs("hello, files", file);
  fseek(file, 7, SEEK_SET);
  char word[16] = {0};
  fread(word, 1, 5, file);
  fseek(file, 0, SEEK_END);
  printf("%s %ld\n", word, ftell(file));
  show("ftruncate", ftruncate(fileno(file), 5));
  fclose(file);
  int fd = open("/tmp/d/a", O_WRONLY | O_APPEND);
  show("append", write(fd, "!", 1));
  close(fd);
  cat("/tmp/d/a"), puts("");
  show("rename", rename("/tmp/d/a", "/tmp/b"));
  list("/tmp");
  int kept = open("/tmp/b", O_RDWR);
  show("unlink", unlink("/tmp/b"));
  show("read what is unlinked", pread(kept, word, 16, 0));
  close(kept);
  show("rmdir", rmdir("/tmp/d"));
  list("/tmp");
  // A listing goes on by cookies while its entries are removed.
  for (int n = 0; n < 1000; n++) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/with-a-long-name-%d", n);
    put(path, "x");
  }
  DIR *dir = opendir("/tmp");
  int removed = 0;
  for (struct dirent *e; (e = readdir(dir));) {
    char path[300];
    snprintf(path, sizeof path, "/tmp/%s", e->d_name);
    removed += unlink(path) == 0;
  }
  closedir(dir);
  printf("removed %d\n", removed);
  list("/tmp");
  return 0;
}

// What must fail, each with its reason.
static int errors(void) {
  mkdir("/tmp/d", 0777), mkdir("/tmp/d/e", 0777), put("/tmp/f", "f");
  show("open absent", open("/tmp/absent", O_RDONLY));
  show("open in absent", open("/tmp/absent/x", O_WRONLY | O_CREAT, 0666));
  show("open below a file", open("/tmp/f/x", O_RDONLY));
  show("open file/", open("/tmp/f/", O_RDONLY));
  show("create excl", open("/tmp/f", O_WRONLY | O_CREAT | O_EXCL, 0666));
  show("write a folder", open("/tmp/d", O_WRONLY));
  show("file as folder", open("/tmp/f", O_RDONLY | O_DIRECTORY));
  show("mkdir there", mkdir("/tmp/d", 0777));
  show("mkdir over file", mkdir("/tmp/f", 0777));
  show("rmdir full", rmdir("/tmp/d"));
  show("rmdir file", rmdir("/tmp/f"));
  show("rmdir /tmp", rmdir("/tmp"));
  show("unlink folder", unlink("/tmp/d"));
  show("unlink absent", unlink("/tmp/absent"));
  show("rename into itself", rename("/tmp/d", "/tmp/d/e/g"));
  show("rename folder over file", rename("/tmp/d", "/tmp/f"));
  show("rename file over folder", rename("/tmp/f", "/tmp/d"));
  show("rename folder over full", (mkdir("/tmp/h", 0777), rename("/tmp/h", "/tmp/d")));
  show("rename /tmp", rename("/tmp", "/tmp/x"));
  show("rename onto /tmp", rename("/tmp/h", "/tmp"));
  show("asset write", open("/page.html", O_WRONLY));
  show("asset truncate", open("/page.html", O_RDONLY | O_TRUNC));
  show("asset create", open("/new", O_WRONLY | O_CREAT, 0666));
  show("asset mkdir", mkdir("/new", 0777));
  show("asset unlink", unlink("/page.html"));
  show("asset rmdir", rmdir("/sub"));
  show("asset rename", rename("/page.html", "/tmp/page.html"));
  show("rename over asset", rename("/tmp/f", "/page.html"));
  show("asset ftruncate", ftruncate(open("/page.html", O_RDONLY), 0));
  show("long name", open("/tmp/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789", O_RDONLY));
  char one;
  show("read a folder", read(open("/tmp", O_RDONLY), &one, 1));
  show("read what is write-only", read(open("/tmp/f", O_WRONLY), &one, 1));
  show("write what is read-only", write(open("/tmp/f", O_RDONLY), "x", 1));
  show("seek before the start", lseek(open("/tmp/f", O_RDONLY), -1, SEEK_SET));
  show("link", link("/tmp/f", "/tmp/l"));
  show("readlink", readlink("/tmp/f", &one, 1));
  show("closed", (close(7), close(7)));
  list("/tmp");
  return 0;
}

static void raw(const char *what, __wasi_errno_t errno_) { printf("%s: %s\n", what, errno_ ? strerror(errno_) : "done"); }

static __wasi_errno_t raw_open(__wasi_fd_t fd, const char *path, __wasi_oflags_t oflags, __wasi_fd_t *opened) {
  return __wasi_path_open(fd, 0, path, oflags, __WASI_RIGHTS_FD_READ, ~0ull, 0, opened);
}

// Straight at the functions, past what the C library makes of paths.
static int tricks(void) {
  __wasi_fd_t fd, dir;
  for (const char **p = (const char *[]){"/etc/passwd", "..", "../etc/passwd", "tmp/../../etc/passwd", "/", "", "tmp/./../page.html", NULL}; *p; p++)
    raw(*p, raw_open(3, *p, 0, &fd));
  raw("dir", __wasi_path_open(3, 0, "sub", __WASI_OFLAGS_DIRECTORY, __WASI_RIGHTS_PATH_OPEN, __WASI_RIGHTS_FD_READ, 0, &dir));
  raw("out of dir", raw_open(dir, "../page.html", 0, &fd));
  raw("more than the folder passes on", __wasi_path_open(dir, 0, "deep.txt", 0, __WASI_RIGHTS_FD_SEEK, 0, 0, &fd));
  raw("what it passes on", __wasi_path_open(dir, 0, "deep.txt", 0, __WASI_RIGHTS_FD_READ, 0, 0, &fd));
  raw("what it may not", __wasi_path_create_directory(dir, "x"));
  __wasi_filesize_t at;
  raw("seek without the right", __wasi_fd_seek(fd, 1, __WASI_WHENCE_SET, &at));
  raw("more rights", __wasi_fd_fdstat_set_rights(fd, ~0ull, 0));
  raw("nul", __wasi_path_create_directory(3, "tmp/\xff"));
  int big = open("/tmp/big", O_RDWR | O_CREAT, 0666);
  __wasi_ciovec_t iov = {.buf = (const uint8_t *)"x", .buf_len = 1};
  __wasi_size_t n;
  raw("pwrite at 2^63", __wasi_fd_pwrite(big, &iov, 1, 1ull << 63, &n));
  raw("pwrite at 2^63-1", __wasi_fd_pwrite(big, &iov, 1, (1ull << 63) - 1, &n));
  raw("pwrite at 2^62", __wasi_fd_pwrite(big, &iov, 1, 1ull << 62, &n));
  raw("set_size 2^62", __wasi_fd_filestat_set_size(big, 1ull << 62));
  raw("set_size 2^64-1", __wasi_fd_filestat_set_size(big, ~0ull));
  raw("allocate 2^64-1", __wasi_fd_allocate(big, 1, ~0ull));
  raw("seek 2^63-1", __wasi_fd_seek(big, (1ull << 63) - 1, __WASI_WHENCE_SET, &at));
  raw("seek on", __wasi_fd_seek(big, 1, __WASI_WHENCE_CUR, &at));
  raw("write there", __wasi_fd_write(big, &iov, 1, &n));
  struct stat stat_;
  fstat(big, &stat_);
  printf("size %lld\n", (long long)stat_.st_size);
  static uint8_t entries[1 << 16];
  __wasi_size_t used;
  for (__wasi_dircookie_t cookie = 0, n = 0; n < 8; n++, cookie = n < 6 ? n : ~0ull) {
    raw("readdir", __wasi_fd_readdir(3, entries, sizeof entries, cookie, &used));
    printf("from %lld: %s\n", (long long)cookie, used ? "some" : "none");
  }
  raw("renumber over root", __wasi_fd_renumber(big, 3));
  raw("renumber to nowhere", __wasi_fd_renumber(3, 9000));
  __wasi_prestat_t prestat;
  raw("prestat", __wasi_fd_prestat_get(3, &prestat));
  raw("open below a file", raw_open(3, "page.html", 0, &fd));
  return 0;
}

static int readdir_wild(void) {
  __wasi_size_t used;
  return __wasi_fd_readdir(3, (uint8_t *)65536, 0xFFFFFFFF, 0, &used);
}

static int fill(void) {
  static char block[65536];
  memset(block, 'x', sizeof block);
  long long total = 0;
  int fd = open("/tmp/fill", O_WRONLY | O_CREAT, 0666);
  for (size_t size = sizeof block; size > 0; size /= 2)
    for (ssize_t n; (n = write(fd, block, size)) > 0;)
      total += n;
  printf("%lld: %s\n", total, strerror(errno));
  show("another", put("/tmp/more", "x"));
  close(fd), unlink("/tmp/fill");
  show("after it is gone", put("/tmp/fill", "x"));
  return 0;
}

static int many(void) {
  int n = 0;
  for (char path[64];; n++) {
    snprintf(path, sizeof path, "/tmp/%d", n);
    int fd = open(path, O_WRONLY | O_CREAT, 0666);
    if (fd < 0)
      break;
    close(fd);
  }
  printf("%d: %s\n", n, strerror(errno));
  return 0;
}

static int descriptors(void) {
  int n = 0;
  while (n < 100000 && open("/tmp", O_RDONLY) >= 0)
    n++;
  printf("%d: %s\n", n, strerror(errno));
  return 0;
}

// Folders in each other without end, then a rename that has to look at all of them.
static int deep(void) {
  __wasi_fd_t dir = open("/tmp", O_RDONLY | O_DIRECTORY), next;
  mkdir("/tmp/x", 0777);
  int n = 0;
  while (__wasi_path_create_directory(dir, "d") == 0) {
    if (__wasi_path_open(dir, 0, "d", __WASI_OFLAGS_DIRECTORY, (1 << 28) - 1, (1 << 28) - 1, 0, &next))
      return 1;
    close(dir), dir = next, n++;
  }
  printf("%s\n", n > 10000 ? "deep" : "shallow");
  __wasi_fd_t tmp = open("/tmp", O_RDONLY | O_DIRECTORY);
  for (int i = 0; i < 100; i++)
    if (__wasi_path_rename(tmp, "d", dir, "y") != __WASI_ERRNO_INVAL)
      return 2;
  return 0;
}

// Finds /tmp empty, and leaves something there.
static int leave(void) {
  list("/tmp");
  show("left", put("/tmp/secret", "secret"));
  return 0;
}

// Works on files until its time is up.
static int busy(const char *what) {
  static char block[1 << 20];
  int fd = open("/tmp/busy", O_RDWR | O_CREAT, 0666);
  for (;;) {
    if (!strcmp(what, "write"))
      pwrite(fd, block, sizeof block, 0);
    else if (!strcmp(what, "stat"))
      access("/tmp/busy", F_OK);
    else if (!strcmp(what, "truncate"))
      ftruncate(fd, 8 << 20), pwrite(fd, block, sizeof block, 0), ftruncate(fd, 0);
    else
      close(open("/tmp/busy", O_RDONLY));
  }
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  if (!strcmp(what, "cat"))
    return cat(argv[2]);
  if (!strcmp(what, "list"))
    return list(argv[2]), 0;
  if (!strcmp(what, "busy"))
    return busy(argv[2]);
  struct { const char *name; int (*run)(void); } all[] = {
      {"roundtrip", roundtrip}, {"errors", errors}, {"tricks", tricks}, {"readdir-wild", readdir_wild},
      {"fill", fill}, {"many", many}, {"descriptors", descriptors}, {"deep", deep}, {"leave", leave},
  };
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
    if (!strcmp(what, all[i].name))
      return all[i].run();
  return 64;
}
