/* LD_PRELOAD: open, read and opendir of paths that hold FAIL_PATH fail with errno FAIL_ERRNO, for FAIL_CALL of these. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
  const char *part = getenv("FAIL_PATH"), *which = getenv("FAIL_CALL");
  if (!part || !*part || !which || !path || strcmp(which, call) || !strstr(path, part)) return 0;
  errno = atoi(getenv("FAIL_ERRNO"));
  return 1;
}

static int fails_open_file(int fd) {
  char link[64], path[PATH_MAX];
  const char *part = getenv("FAIL_PATH");
  if (!part || !*part) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return fails("read", path);
}

#define NEXT(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
#define OPEN(name) int name(const char *path, int flags, ...) { NEXT(name); MODE return fails("open", path) ? -1 : real(path, flags, mode); }
#define OPENAT(name) int name(int dir, const char *path, int flags, ...) { NEXT(name); MODE return fails("open", path) ? -1 : real(dir, path, flags, mode); }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int fd, void *to, size_t size) { NEXT(read); return fails_open_file(fd) ? -1 : real(fd, to, size); }
ssize_t pread(int fd, void *to, size_t size, off_t at) { NEXT(pread); return fails_open_file(fd) ? -1 : real(fd, to, size, at); }
ssize_t pread64(int fd, void *to, size_t size, off64_t at) { NEXT(pread64); return fails_open_file(fd) ? -1 : real(fd, to, size, at); }

DIR *opendir(const char *path) { NEXT(opendir); return fails("list", path) ? NULL : real(path); }
