/* A disk that fails one write in ten: preloaded, while the file $AVB_FAILING exists, to all files on the same disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int fails(int fd) {
    static __thread unsigned int state;
    int before = errno;
    const char *flag = getenv("AVB_FAILING");
    struct stat wanted, found;
    if (!flag || stat(flag, &wanted) || fstat(fd, &found) || wanted.st_dev != found.st_dev || !S_ISREG(found.st_mode)) {
        errno = before;
        return 0;
    }
    if (!state) state = (unsigned int)getpid() ^ (unsigned int)(size_t)&state;
    errno = before;
    if (rand_r(&state) % 10) return 0;
    errno = EIO;
    return 1;
}

#define MAY_FAIL(type, name, declared, given)                  \
    type name declared {                                       \
        static type (*real) declared;                          \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);  \
        return fails(fd) ? -1 : real given;                    \
    }

MAY_FAIL(ssize_t, write, (int fd, const void *bytes, size_t count), (fd, bytes, count))
MAY_FAIL(ssize_t, pwrite, (int fd, const void *bytes, size_t count, off_t at), (fd, bytes, count, at))
MAY_FAIL(ssize_t, pwrite64, (int fd, const void *bytes, size_t count, off64_t at), (fd, bytes, count, at))
MAY_FAIL(int, fsync, (int fd), (fd))
MAY_FAIL(int, fdatasync, (int fd), (fd))
