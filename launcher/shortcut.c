/*
 * The usual `start` and `delete` without an interpreter.
 *
 * Every container's life ends in two commands for which there is nothing to decide: start connects to a socket and waits
 * until it is closed, delete removes some directories.  An interpreter takes ten times as long to start as that takes.
 * So create leaves a file `shortcut` in the container's directory when no later command will have more to do (no hooks,
 * nothing but cgroups to take down: pyoci/shortcut.py), and this is what acts on it.
 *
 * It decides one thing: whether all is as usual.  Whatever is not (another flag, a lock that is held, a process that
 * still runs, a call that fails) is left to the interpreter, which starts from the beginning: everything here can be done
 * twice.  No message is ever written here.  The one thing that cannot be repeated is connecting to the waiting init; if
 * init then has something to say, the connection goes to the interpreter with the message still in it.
 *
 * The file, fields that end in NUL:
 *
 *     pyoci shortcut 1
 *     PID  START                 of the container's init: decimal, field 22 of /proc/PID/stat
 *     FILE or nothing            says whether the container is frozen: begins with T(HAWED) or 0 if not
 *     -DIRECTORY                 a cgroup of systemd's: once it is gone, so is the container's unit
 *     =DIRECTORY or +DIRECTORY   cgroups to remove, in order: the container's own, or one above that others may use
 *     end
 */

#include "kernel.h"
#include "shortcut.h"

#define AF_UNIX 1
#define SOCK_SEQPACKET 5
#define MSG_PEEK 2
#define LOCK_EX 2
#define LOCK_NB 4
#define DIRECTORY_FLAGS (O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define CONTENT 16384

struct words { /* the command line, as far as it is usual */
    const char *root, *log, *id;
    int delete, force;
};

struct container {
    long root, directory; /* descriptors */
    char content[CONTENT], *pid, *start, *frozen, *cgroups;
};

/* ---- the command line ---- */

/* The value of `--name value` or `--name=value`, in any of Go's spellings; NULL if `argv[*i]` is not that flag. */
static const char *value_of(long argc, char **argv, long *i, const char *name)
{
    const char *word = argv[*i] + 1;

    word += *word == '-';
    if (!starts(word, name))
        return 0;
    word += length_of(name);
    if (*word == '=')
        return word + 1;
    if (*word || *i + 1 >= argc)
        return 0;
    return argv[++*i];
}

static int usual_id(const char *id)
{
    unsigned int i;

    for (i = 0; id[i]; i++)
        if (!((id[i] >= 'a' && id[i] <= 'z') || (id[i] >= 'A' && id[i] <= 'Z') || (id[i] >= '0' && id[i] <= '9') ||
              id[i] == '_' || id[i] == '+' || (i && (id[i] == '-' || id[i] == '.'))))
            return 0;
    return i > 0 && i < 256;
}

static int read_words(long argc, char **argv, struct words *words)
{
    const char *value;
    long i;

    for (i = 1; i < argc && argv[i][0] == '-'; i++)
        if ((value = value_of(argc, argv, &i, "log-format"))) {
            if (!same(value, "json") && !same(value, "text"))
                return 0;
        } else if ((value = value_of(argc, argv, &i, "log")))
            words->log = value;
        else if ((value = value_of(argc, argv, &i, "root")))
            words->root = value;
        else if (!same(argv[i], "--systemd-cgroup"))
            return 0;
    if (i >= argc)
        return 0;
    words->delete = same(argv[i], "delete");
    if (!words->delete && !same(argv[i], "start"))
        return 0;
    for (i++; i < argc; i++)
        if (words->delete && (same(argv[i], "--force") || same(argv[i], "-force") || same(argv[i], "-f")))
            words->force = 1;
        else if (words->id || !usual_id(argv[i]))
            return 0;
        else
            words->id = argv[i];
    return words->id != 0;
}

/* ---- the container's directory ---- */

/* Nobody but us and root may decide what is removed. */
static int ours(long fd)
{
    struct status status;

    if (kernel(STATX, fd, (long)"", EMPTY_PATH, ASK, (long)&status, 0))
        return 0;
    return (status.uid == 0 || status.uid == kernel(GETEUID, 0, 0, 0, 0, 0, 0)) && !(status.mode & 022);
}

static long read_file(long directory, const char *path, char *to, long size)
{
    long fd = kernel(OPENAT, directory, (long)path, O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0, 0, 0), got, length = 0;

    if (fd < 0)
        return fd;
    while ((got = kernel(READ, fd, (long)to + length, size - 1 - length, 0, 0, 0)) > 0)
        length += got;
    kernel(CLOSE, fd, 0, 0, 0, 0, 0);
    to[length] = 0;
    return got < 0 ? got : length;
}

/* Is the directory that we hold (still) the one at its name?  Its last holder may have removed it before we had it. */
static int at_its_name(struct container *c, const char *id)
{
    struct status here, there;

    return !kernel(STATX, c->directory, (long)"", EMPTY_PATH, ASK, (long)&here, 0) &&
           !kernel(STATX, c->root, (long)id, SYMLINK_NOFOLLOW, ASK, (long)&there, 0) && here.inode == there.inode &&
           here.device[2] == there.device[2] && here.device[3] == there.device[3];
}

static int read_shortcut(struct container *c)
{
    long length = read_file(c->directory, "shortcut", c->content, CONTENT);
    struct status status;
    char *at = c->content;

    /* without it there is no container, for every other command */
    if (kernel(STATX, c->directory, (long)"state.json", SYMLINK_NOFOLLOW, ASK, (long)&status, 0))
        return 0;

    /* what is cut off is not acted upon */
    if (length < 8 || length >= CONTENT - 1 || !same(c->content + length - 5, "\nend") || c->content[length - 1] ||
        !same(at, "pyoci shortcut 1"))
        return 0;
    at += length_of(at) + 1;
    c->pid = at;
    at += length_of(at) + 1;
    c->start = at;
    at += length_of(at) + 1;
    c->frozen = at;
    at += length_of(at) + 1;
    c->cgroups = at;
    return at < c->content + length && *c->pid && *c->start;
}

static int open_container(struct words *words, struct container *c)
{
    char last = words->root[length_of(words->root) - 1];

    /* whose link it may be is looked at elsewhere; behind a name that ends so one would be followed */
    if (last == '/' || last == '.')
        return 0;
    c->root = kernel(OPENAT, HERE, (long)words->root, DIRECTORY_FLAGS, 0, 0, 0);
    if (c->root < 0 || !ours(c->root))
        return 0;
    c->directory = kernel(OPENAT, c->root, (long)words->id, DIRECTORY_FLAGS, 0, 0, 0);
    return c->directory >= 0 && ours(c->directory) && kernel(FLOCK, c->directory, LOCK_EX | LOCK_NB, 0, 0, 0, 0) == 0 &&
           at_its_name(c, words->id) && read_shortcut(c);
}

/* ---- start ---- */

static char option[] = "pyoci-connection=\0\0\0\0\0\0\0\0\0\0";

static const char *named(long fd)
{
    unsigned int end = sizeof("pyoci-connection=") - 1;
    long unit = 1;

    while (fd / unit > 9)
        unit *= 10;
    for (; unit; unit /= 10)
        option[end++] = (char)('0' + fd / unit % 10);
    return option;
}

/* Connecting tells init to go on.  Returns 1 when the program runs, 0 to let the interpreter start from the beginning,
 * or sets `connection`. */
static int start(struct container *c, const char **connection)
{
    struct {
        unsigned short family;
        char path[108];
    } address = {AF_UNIX, "/proc/self/fd/"};
    char state[2], byte;
    unsigned int end = length_of(address.path), i;
    const char *digits, *name = "/start.sock";
    long fd, got;

    if (*c->frozen && (read_file(HERE, c->frozen, state, sizeof(state)) < 1 || (state[0] != 'T' && state[0] != '0')))
        return 0;
    for (digits = named(c->directory) + sizeof("pyoci-connection=") - 1; *digits; digits++)
        address.path[end++] = *digits;
    for (i = 0; name[i]; i++)
        address.path[end++] = name[i];
    fd = kernel(SOCKET, AF_UNIX, SOCK_SEQPACKET | O_CLOEXEC, 0, 0, 0, 0);
    if (fd < 0 || kernel(CONNECT, fd, (long)&address, sizeof(address), 0, 0, 0))
        return 0;
    do
        got = kernel(RECVFROM, fd, (long)&byte, 1, MSG_PEEK, 0, 0);
    while (got == -EINTR);
    if (got == 0 || got == -ECONNRESET)
        return 1;
    kernel(FCNTL, fd, F_SETFD, 0, 0, 0, 0);
    for (i = sizeof("pyoci-connection=") - 1; option[i]; i++)
        option[i] = 0;
    *connection = named(fd);
    return 0;
}

/* ---- delete ---- */

/* Has the container's init ended?  A pid with another start time is somebody else's. */
static int ended(struct container *c)
{
    char path[64] = "/proc/", text[1024], *field;
    unsigned int end = length_of(path), i, n;
    int zombie;
    long length;

    for (i = 0; c->pid[i] && end < 40; i++)
        path[end++] = c->pid[i];
    for (i = 0; "/stat"[i]; i++)
        path[end++] = "/stat"[i];
    path[end] = 0;
    length = read_file(HERE, path, text, sizeof(text));
    if (length == -ENOENT) { /* if that is where processes are shown */
        struct status status;

        return kernel(STATX, HERE, (long)"/proc/self/stat", 0, ASK, (long)&status, 0) == 0;
    }
    if (length <= 0)
        return 0;
    /* the name in parentheses is the program's to choose */
    for (field = text + length; field > text && *field != ')';)
        field--;
    if (field == text)
        return 0;
    field += 2;
    if (*field == 'X' || *field == 'x')
        return 1;
    zombie = *field == 'Z';
    for (n = 3; n < 22 && *field; n++) {
        if (n == 20 && zombie) /* its first thread is one while others run (pthread_exit) */
            return (*field == '0' || *field == '1') && field[1] == ' ';
        while (*field && *field != ' ')
            field++;
        field += *field == ' ';
    }
    for (i = 0; c->start[i]; i++)
        if (field[i] != c->start[i])
            return 1;
    return field[i] != ' ';
}

static int remove_cgroups(char *at)
{
    struct status status;

    for (; *at == '-'; at += length_of(at) + 1)
        if (kernel(STATX, HERE, (long)(at + 1), SYMLINK_NOFOLLOW, ASK, (long)&status, 0) != -ENOENT)
            return 0;
    for (; !same(at, "\nend"); at += length_of(at) + 1) {
        long result = kernel(UNLINKAT, HERE, (long)(at + 1), REMOVEDIR, 0, 0, 0);

        if (result && result != -ENOENT && result != -ENODEV &&
            !(*at == '+' && (result == -EBUSY || result == -ENOTEMPTY)))
            return 0;
    }
    return 1;
}

/* Everything in the container's directory, state.json last: whoever is killed on the way can be repeated. */
static int remove_directory(struct container *c, const char *id)
{
    char buffer[4096] __attribute__((aligned(8)));
    long got, at;

    while ((got = kernel(GETDENTS64, c->directory, (long)buffer, sizeof(buffer), 0, 0, 0)) > 0)
        for (at = 0; at < got;) {
            const struct entry *entry = (const struct entry *)(buffer + at);

            at += entry->size;
            if (same(entry->name, ".") || same(entry->name, "..") || same(entry->name, "state.json"))
                continue;
            if (kernel(UNLINKAT, c->directory, (long)entry->name, 0, 0, 0, 0))
                return 0;
        }
    return got == 0 && !kernel(UNLINKAT, c->directory, (long)"state.json", 0, 0, 0, 0) &&
           !kernel(UNLINKAT, c->root, (long)id, REMOVEDIR, 0, 0, 0);
}

/* ---- what is usual ---- */

__attribute__((noreturn)) static void done(void)
{
    for (;;)
        kernel(EXIT_GROUP, 0, 0, 0, 0, 0, 0);
}

const char *take_shortcut(long argc, char **argv, char **environment)
{
    static struct container c;
    struct words words = {0, 0, 0, 0, 0};
    struct status status;
    const char *connection = 0;
    long fd;

    if (!read_words(argc, argv, &words))
        return 0;
    /* start may have to pass readiness on */
    for (; *environment; environment++)
        if (starts(*environment, "NOTIFY_SOCKET="))
            return 0;
    if (!words.root || !*words.root) {
        if (kernel(GETEUID, 0, 0, 0, 0, 0, 0) ||
            kernel(STATX, HERE, (long)"/proc/self/ns/user", 0, ASK, (long)&status, 0) ||
            status.inode != INITIAL_USER_NAMESPACE)
            return 0;
        words.root = "/run/pyoci";
    }
    if (words.log && *words.log) {
        /* no file, or not of that name */
        if (starts(words.log, "file:") || starts(words.log, "syslog:") || starts(words.log, "journald:"))
            return 0;
        /* a log that cannot be written is an error even when there is nothing to write */
        fd = kernel(OPENAT, HERE, (long)words.log, O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC,
                    0644, 0, 0);
        if (fd < 0)
            return 0;
        kernel(CLOSE, fd, 0, 0, 0, 0, 0);
    }
    if (open_container(&words, &c)) {
        if (!words.delete) {
            if (start(&c, &connection))
                done();
        } else if (ended(&c) && remove_cgroups(c.cgroups) && remove_directory(&c, words.id))
            done();
    } else if (words.delete && words.force && c.root >= 0 && c.directory == -ENOENT)
        done(); /* there is none, which is what was asked for */
    if (c.directory > 0)
        kernel(CLOSE, c.directory, 0, 0, 0, 0, 0);
    if (c.root > 0)
        kernel(CLOSE, c.root, 0, 0, 0, 0, 0);
    return connection;
}
