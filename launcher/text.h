/*
 * Paths and messages of the launcher.
 */

#include "kernel.h"

/* A string that grows; what does not fit ends the program, so no caller looks. */
struct text {
    unsigned int length;
    char bytes[PATH_SIZE];
};

__attribute__((noreturn)) static inline void die(const char *path, const char *what)
{
    const char *parts[] = {"pyoci: ", path, what, "\n"};
    char line[PATH_SIZE + 512];
    unsigned int i, j, n = 0;

    for (i = 0; i < 4; i++)
        for (j = 0; parts[i][j] && n < sizeof(line) - 1; j++)
            line[n++] = parts[i][j];
    line[n - 1] = '\n';
    kernel(WRITE, 2, (long)line, n, 0, 0, 0);
    for (;;)
        kernel(EXIT_GROUP, 1, 0, 0, 0, 0, 0);
}

#define RLIMIT_DATA 2
#define RLIMIT_STACK 3
#define RLIMIT_AS 9

/* What cannot do ends in SIGSEGV, or in the words of whoever happens to fail first: ours are better. */
static inline void expect_limit(long limit, unsigned long least, const char *name)
{
    unsigned long found[2]; /* struct rlimit64: soft, hard */

    if (kernel(PRLIMIT64, 0, limit, 0, (long)found, 0, 0) == 0 && found[0] < least)
        die(name, ": the limit is too small for an interpreter to start; raise it (ulimit, setrlimit(2))");
}

static inline void add(struct text *t, const char *s)
{
    while (*s) {
        if (t->length == PATH_SIZE - 1)
            die(t->bytes, ": path too long");
        t->bytes[t->length++] = *s++;
    }
    t->bytes[t->length] = 0;
}

static inline void cut(struct text *t, unsigned int length)
{
    t->length = length;
    t->bytes[length] = 0;
}

static inline void set(struct text *t, const char *a, const char *b)
{
    cut(t, 0);
    add(t, a);
    add(t, b);
}

/* /a/b -> /a; / stays */
static inline void parent(struct text *t)
{
    while (t->length > 1 && t->bytes[t->length - 1] != '/')
        t->length--;
    cut(t, t->length > 1 ? t->length - 1 : 1);
}

static inline int exists(const char *path, struct status *status)
{
    return kernel(STATX, HERE, (long)path, 0, ASK, (long)status, 0) == 0;
}

/* The path that `path` leads to after every symbolic link. */
static inline int resolve(const char *path, struct text *to)
{
    char name[] = "/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0";
    char digits[12];
    long fd = kernel(OPENAT, HERE, (long)path, O_PATH | O_CLOEXEC, 0, 0, 0), n;
    unsigned int i = 0, at = sizeof("/proc/self/fd/") - 1;

    if (fd < 0)
        return 0;
    n = fd;
    do
        digits[i++] = (char)('0' + n % 10);
    while (n /= 10);
    while (i)
        name[at++] = digits[--i];
    n = kernel(READLINKAT, HERE, (long)name, (long)to->bytes, PATH_SIZE - 1, 0, 0);
    kernel(CLOSE, fd, 0, 0, 0, 0, 0);
    if (n <= 0)
        return 0;
    cut(to, (unsigned int)n);
    return 1;
}
