/* A process that dies between two writes to MLflow: preloaded. While the file $AVB_KILLING exists, the first process that
   has written before and would again takes the file away, and is killed before it sends anything. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int begins_a_write(const char *bytes, size_t count) {
    static const char *const methods[] = {"POST", "PUT", "PATCH", "DELETE"}, path[] = " /api/2.0/mlflow";
    size_t line = count < 120 ? count : 120;
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        size_t length = strlen(methods[i]);
        if (count > length + sizeof path && !memcmp(bytes, methods[i], length) &&
            !memcmp(bytes + length, path, sizeof path - 1))
            return !memmem(bytes, line, "/search", 7); /* which is asked by POST, and writes nothing */
    }
    return 0;
}

ssize_t send(int fd, const void *bytes, size_t count, int flags) {
    static ssize_t (*real)(int, const void *, size_t, int);
    static int written;
    const char *flag = getenv("AVB_KILLING");
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "send");
    if (flag && begins_a_write(bytes, count)) {
        if (written && !unlink(flag)) kill(getpid(), SIGKILL);
        written = 1;
    }
    return real(fd, bytes, count, flags);
}
