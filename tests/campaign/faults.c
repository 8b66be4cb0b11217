/* A preloaded library that counts the calls that change files below a folder, and lets chosen ones fail.

   `faults_arm` starts the count. The call of number `at` fails with `error`, or is met by `signal`. With `full`, every
   later call that needs space fails too, as on a full disk. A line on the descriptor `report` names each chosen call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long at, count;
static int error, full, report, chosen_signal, armed;

void faults_arm(const char *path, long number, int with, int is_full, int signal_number, int descriptor) {
    snprintf(folder, sizeof folder, "%s/", path);
    at = number, error = with, full = is_full, chosen_signal = signal_number, report = descriptor;
    count = 0, armed = 1;
}

long faults_count(void) { return count; }

static int chosen(const char *call, const char *path, int needs_space) {
    if (!armed || strncmp(path, folder, strlen(folder))) return 0;
    long number = __sync_add_and_fetch(&count, 1);
    if (number != at && !(full && number > at && needs_space)) return 0;
    dprintf(report, "%s %s\n", call, path + strlen(folder));
    if (chosen_signal) {
        syscall(SYS_kill, getpid(), chosen_signal);
        return 0;
    }
    errno = error;
    return 1;
}

static const char *of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return path;
}

static const char *of_name(int home, const char *name, char *path) {
    if (name[0] == '/') return name;
    if (home != AT_FDCWD) of_descriptor(home, path);
    else if (!getcwd(path, PATH_MAX)) path[0] = 0;
    size_t used = strlen(path);
    snprintf(path + used, PATH_MAX - used, "/%s", name);
    return path;
}

#define REAL(name, result, parameters) \
    static result(*real) parameters; \
    if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name)
#define ON_DESCRIPTOR(name, descriptor, space, result, parameters, arguments) \
    result name parameters { \
        char path[PATH_MAX]; \
        REAL(name, result, parameters); \
        return armed && chosen(#name, of_descriptor(descriptor, path), space) ? -1 : real arguments; \
    }
#define ON_NAME(name, home, file, space, parameters, arguments) \
    int name parameters { \
        char path[PATH_MAX]; \
        REAL(name, int, parameters); \
        return armed && chosen(#name, of_name(home, file, path), space) ? -1 : real arguments; \
    }
#define OPENS(name, home, parameters, arguments) \
    int name parameters { \
        char path[PATH_MAX]; \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        REAL(name, int, parameters); \
        int writes = flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC); \
        return armed && writes && chosen(#name, of_name(home, file, path), 1) ? -1 : real arguments; \
    }
#define STREAM(name) \
    FILE *name(const char *file, const char *mode) { \
        char path[PATH_MAX]; \
        REAL(name, FILE *, (const char *, const char *)); \
        int writes = strpbrk(mode, "wa+") != NULL; \
        return armed && writes && chosen(#name, of_name(AT_FDCWD, file, path), 1) ? NULL : real(file, mode); \
    }

ON_DESCRIPTOR(write, fd, 1, ssize_t, (int fd, const void *data, size_t size), (fd, data, size))
ON_DESCRIPTOR(pwrite, fd, 1, ssize_t, (int fd, const void *data, size_t size, off_t to), (fd, data, size, to))
ON_DESCRIPTOR(pwrite64, fd, 1, ssize_t, (int fd, const void *data, size_t size, off64_t to), (fd, data, size, to))
ON_DESCRIPTOR(writev, fd, 1, ssize_t, (int fd, const struct iovec *data, int parts), (fd, data, parts))
ON_DESCRIPTOR(fsync, fd, 1, int, (int fd), (fd))
ON_DESCRIPTOR(fdatasync, fd, 1, int, (int fd), (fd))
ON_DESCRIPTOR(fchmod, fd, 0, int, (int fd, mode_t mode), (fd, mode))
ON_DESCRIPTOR(ftruncate, fd, 1, int, (int fd, off_t size), (fd, size))
ON_DESCRIPTOR(ftruncate64, fd, 1, int, (int fd, off64_t size), (fd, size))
ON_DESCRIPTOR(fallocate, fd, 1, int, (int fd, int mode, off_t to, off_t size), (fd, mode, to, size))
ON_DESCRIPTOR(fallocate64, fd, 1, int, (int fd, int mode, off64_t to, off64_t size), (fd, mode, to, size))
ON_DESCRIPTOR(sendfile, fd, 1, ssize_t, (int fd, int in, off_t *from, size_t size), (fd, in, from, size))
ON_DESCRIPTOR(sendfile64, fd, 1, ssize_t, (int fd, int in, off64_t *from, size_t size), (fd, in, from, size))
ON_DESCRIPTOR(copy_file_range, fd, 1, ssize_t,
              (int in, off64_t *from, int fd, off64_t *to, size_t size, unsigned flags),
              (in, from, fd, to, size, flags))
ON_NAME(rename, AT_FDCWD, to, 1, (const char *from, const char *to), (from, to))
ON_NAME(renameat, home, to, 1, (int old, const char *from, int home, const char *to), (old, from, home, to))
ON_NAME(renameat2, home, to, 1, (int old, const char *from, int home, const char *to, unsigned flags),
        (old, from, home, to, flags))
ON_NAME(link, AT_FDCWD, to, 1, (const char *from, const char *to), (from, to))
ON_NAME(linkat, home, to, 1, (int old, const char *from, int home, const char *to, int flags),
        (old, from, home, to, flags))
ON_NAME(symlink, AT_FDCWD, to, 1, (const char *from, const char *to), (from, to))
ON_NAME(chmod, AT_FDCWD, file, 0, (const char *file, mode_t mode), (file, mode))
ON_NAME(mkdir, AT_FDCWD, file, 1, (const char *file, mode_t mode), (file, mode))
ON_NAME(mkdirat, home, file, 1, (int home, const char *file, mode_t mode), (home, file, mode))
ON_NAME(unlink, AT_FDCWD, file, 0, (const char *file), (file))
ON_NAME(unlinkat, home, file, 0, (int home, const char *file, int flags), (home, file, flags))
ON_NAME(rmdir, AT_FDCWD, file, 0, (const char *file), (file))
ON_NAME(truncate, AT_FDCWD, file, 1, (const char *file, off_t size), (file, size))
ON_NAME(truncate64, AT_FDCWD, file, 1, (const char *file, off64_t size), (file, size))
OPENS(open, AT_FDCWD, (const char *file, int flags, ...), (file, flags, mode))
OPENS(open64, AT_FDCWD, (const char *file, int flags, ...), (file, flags, mode))
OPENS(openat, home, (int home, const char *file, int flags, ...), (home, file, flags, mode))
OPENS(openat64, home, (int home, const char *file, int flags, ...), (home, file, flags, mode))
STREAM(fopen)
STREAM(fopen64)
