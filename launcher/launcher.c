/*
 * pyoci: finds the interpreter and the package that this file was installed with, and becomes
 *
 *     python3.X -I -S -X utf8 -c START PACKAGES OTHERS ARGUMENT...        (see pyoci/__main__.py)
 *
 * A script with a #! line would do the same at the price of `site`, of an interpreter path that is fixed when the wheel
 * is made, and of an environment that engines fill: LD_LIBRARY_PATH, PYTHONPATH, no PATH at all.  Everything is found
 * from /proc/self/exe, so a symbolic link to this file works and the environment has no say:
 *
 *     PREFIX/bin/pyoci                                     this file
 *     PREFIX/lib/python3.X/site-packages/pyoci             the package (or lib64, or dist-packages); the newest X
 *     PREFIX/pyvenv.cfg                                    names a virtual environment's interpreter: `home` is used
 *                                                          directly, which saves the interpreter a search of 1.5 ms
 *
 * When root runs it, nothing that decides what happens next may be writable by anybody else: this file, the
 * interpreter, the package with every file in it, the directories that modules come from, and all directories above
 * these.  Otherwise it refuses, naming the file.  What is in those directories besides is judged when it is imported
 * (pyoci/trust.py).  What the interpreter's own library contains is its distributor's business.
 *
 * No libc, so that it is the same file on every Linux and takes 0.1 ms; no heap; no configuration.
 */

#include "shortcut.h"
#include "snapshot.h"
#include "text.h"
#include "trust.h"

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n"
        "    xor %ebp, %ebp\n    mov %rsp, %rdi\n    and $-16, %rsp\n    call launch\n    hlt\n");
#else
__asm__(".globl _start\n_start:\n    mov x29, #0\n    mov x0, sp\n    bl launch\n    brk #0\n");
#endif

static const char start[] =
    "import sys\n"
    "if 'pyoci' in sys._xoptions:\n"
    "    import posix, marshal\n"
    "    from _frozen_importlib_external import MAGIC_NUMBER\n"
    "    try:\n"
    "        f = posix.open('%s/pyoci/__pycache__/pyoci.%s.%s.archive' % (\n"
    "            sys.argv[1], sys.implementation.cache_tag, sys._xoptions['pyoci']), 524288)\n"
    "        a = posix.read(f, 1048576)\n"
    "        posix.close(f)\n"
    "        if a[:12] == MAGIC_NUMBER + len(a).to_bytes(8, 'little'):\n"
    "            a = marshal.loads(memoryview(a)[20:])\n"
    "            g = {}\n"
    "            exec(a[1][2], g)\n"
    "            g['adopt'](a)\n"
    "    except OSError:\n"
    "        pass\n"
    "w = sys.dont_write_bytecode\n"
    "sys.dont_write_bytecode = True\n"
    "sys.path.insert(0, sys.argv[1])\n"
    "from pyoci.__main__ import start\n"
    "sys.dont_write_bytecode = w\n"
    "start()\n";

/* ---- what was installed where ---- */

struct install {
    struct text prefix, python, packages, others;
    char name[16];     /* python3.11; python3 where a distribution packaged pyoci */
    int minor, debian; /* 11; is it dist-packages, whose interpreter is Debian's /usr/bin/python3.11 */
};

/* `python3.11` -> 11, `python3` -> 0, anything else (so whatever is longer than install.name) -> -1 */
static int minor_of(const char *name)
{
    int minor = 0;

    if (!starts(name, "python3"))
        return -1;
    name += 7;
    if (!*name)
        return 0;
    if (*name++ != '.' || !*name || (*name == '0' && name[1]))
        return -1;
    for (; *name; name++) {
        if (*name < '0' || *name > '9' || minor > 999)
            return -1;
        minor = minor * 10 + *name - '0';
    }
    return minor;
}

static void find_package(struct install *in, const char *lib)
{
    static const char *const leaves[] = {"/site-packages", "/dist-packages"};
    char buffer[8192] __attribute__((aligned(8)));
    struct text path;
    long fd, got, at;

    set(&path, in->prefix.bytes, lib);
    fd = kernel(OPENAT, HERE, (long)path.bytes, O_DIRECTORY | O_CLOEXEC, 0, 0, 0);
    if (fd == -ENFILE || fd == -EMFILE)
        die(path.bytes, ": cannot be opened: too many open files");
    if (fd < 0)
        return;
    while ((got = kernel(GETDENTS64, fd, (long)buffer, sizeof(buffer), 0, 0, 0)) > 0)
        for (at = 0; at < got;) {
            const struct entry *entry = (const struct entry *)(buffer + at);
            int minor = minor_of(entry->name), leaf;

            at += entry->size;
            for (leaf = 0; minor > in->minor && leaf < 2; leaf++) {
                struct status status;
                unsigned int end;

                set(&path, in->prefix.bytes, lib);
                add(&path, "/");
                add(&path, entry->name);
                add(&path, leaves[leaf]);
                end = path.length;
                add(&path, "/pyoci/__main__.py");
                if (!exists(path.bytes, &status))
                    continue;
                cut(&path, end);
                set(&in->packages, path.bytes, "");
                for (end = 0; entry->name[end]; end++)
                    in->name[end] = entry->name[end];
                in->name[end] = 0;
                in->minor = minor;
                in->debian = leaf;
            }
        }
    kernel(CLOSE, fd, 0, 0, 0, 0, 0);
}

static int find_python(struct install *in, const char *directory, const char *sub)
{
    struct text path;

    set(&path, directory, sub);
    add(&path, "/");
    add(&path, in->name);
    return resolve(path.bytes, &in->python);
}

static void other(struct install *in, const char *prefix, const char *lib, const char *name, const char *leaf)
{
    if (in->others.length)
        add(&in->others, ":");
    add(&in->others, prefix);
    add(&in->others, lib);
    add(&in->others, name);
    add(&in->others, leaf);
}

/* The value of `key = value` in a pyvenv.cfg, or NULL.  Ends the value in place: ask for one key of one copy. */
static const char *setting(char *line, const char *key)
{
    while (*line) {
        char *end = line;

        while (*end && *end != '\n')
            end++;
        if (starts(line, key)) {
            line += length_of(key);
            while (*line == ' ')
                line++;
            if (*line == '=') {
                line++;
                while (*line == ' ')
                    line++;
                while (end > line && (end[-1] == ' ' || end[-1] == '\r'))
                    end--;
                *end = 0;
                return line;
            }
        }
        if (!*end)
            break;
        line = end + 1;
    }
    return 0;
}

/*
 * Fill in `python` and `others`: where the third-party modules are that pip found present and so did not install.  An
 * environment of its own has one place; otherwise it may be any of the system's, and a directory that does not exist
 * does no harm in sys.path.
 */
static void find_interpreter(struct install *in)
{
    struct text path, base;
    char config[4096], copy[4096];
    const char *home, *shared;
    long fd, n, i;
    int found = 0, alone = 0;

    set(&path, in->prefix.bytes, "/pyvenv.cfg");
    fd = kernel(OPENAT, HERE, (long)path.bytes, O_CLOEXEC, 0, 0, 0);
    if (fd >= 0) {
        n = kernel(READ, fd, (long)config, sizeof(config) - 1, 0, 0, 0);
        kernel(CLOSE, fd, 0, 0, 0, 0, 0);
        for (i = 0; i < n; i++)
            copy[i] = config[i];
        config[n > 0 ? n : 0] = copy[n > 0 ? n : 0] = 0;
        home = setting(config, "home");
        shared = setting(copy, "include-system-site-packages");
        alone = !shared || !starts(shared, "true");
        if (home && home[0] == '/')
            found = find_python(in, home, "");
    }
    if (!found && in->debian)
        found = find_python(in, "/usr/bin", "");
    if (!found && !find_python(in, in->prefix.bytes, "/bin") && !find_python(in, "/usr/local/bin", "") &&
        !find_python(in, "/usr/bin", ""))
        die(in->name, ": no such interpreter; pyoci is installed for it: install it again for the one you have");

    set(&base, in->python.bytes, "");
    parent(&base);
    parent(&base);
    if (base.length == 1)
        cut(&base, 0);
    cut(&in->others, 0);
    other(in, in->prefix.bytes, "/lib/", in->name, "/site-packages");
    other(in, in->prefix.bytes, "/lib64/", in->name, "/site-packages");
    if (!alone) {
        other(in, base.bytes, "/lib/", in->name, "/site-packages");
        other(in, "/usr/local", "/lib/", in->name, "/dist-packages");
        other(in, "/usr", "/lib/", "python3", "/dist-packages");
    }
}

/* Refuse what root should not run. */
static void judge_install(struct install *in, const char *self)
{
    struct status status;
    struct text path;
    char *directory, *end;

    mapped = exists("/proc/self/ns/user", &status) && status.inode != INITIAL_USER_NAMESPACE;
    judge_one(self);
    judge_one(in->python.bytes);
    set(&path, in->prefix.bytes, "/pyvenv.cfg");
    judge_one(path.bytes);
    for (directory = end = in->others.bytes; *end; directory = end) {
        while (*end && *end != ':')
            end++;
        set(&path, directory, "");
        cut(&path, (unsigned int)(end - directory));
        judge_one(path.bytes);
        if (*end)
            end++;
    }
    set(&path, in->python.bytes, "");
    parent(&path);
    add(&path, "/../lib/");
    add(&path, in->name);
    judge_one(path.bytes);
    set(&path, in->packages.bytes, "/pyoci");
    judge_one(in->packages.bytes);
    judge_one(path.bytes);
}

/* Look at every file of the package: judge it for root, and find out which files these are.  Then at its byte code. */
static void look_at_package(struct install *in, int root, int byte_code)
{
    struct text path;
    long fd;

    set(&path, in->packages.bytes, "/pyoci");
    fd = kernel(OPENAT, HERE, (long)path.bytes, O_DIRECTORY | O_CLOEXEC, 0, 0, 0);
    if (fd >= 0)
        judge_below(fd, &path, 0, root, byte_code);
    else if (root)
        die(path.bytes, ": cannot be examined");
    if (unknown)
        fingerprint = 0;
}

static void sixteen_digits(char *to, unsigned long number)
{
    int i;

    for (i = 15; i >= 0; i--, number >>= 4)
        to[i] = "0123456789abcdef"[number & 15];
}

/* `pyoci=` and 16 digits */
static const char *named_fingerprint(void)
{
    static char text[] = "pyoci=0123456789abcdef";

    sixteen_digits(text + 6, fingerprint);
    return text;
}

/* The snapshot of an interpreter that has imported this package, on this machine (pyoci/snapshot.py). */
static const char *name_snapshot(struct install *in, unsigned long machine, int trial)
{
    static struct text path;
    char digits[17] = {0};

    set(&path, in->packages.bytes, "/pyoci/__pycache__/");
    add(&path, in->name);
    add(&path, ".");
    add(&path, named_fingerprint() + sizeof("pyoci=") - 1);
    add(&path, ".");
    sixteen_digits(digits, machine);
    add(&path, digits);
    add(&path, ".snapshot");
    if (trial)
        add(&path, ".trial");
    return path.bytes;
}

/* Can a file be made beside `path`?  Whoever cannot need not try. */
static int may_make(const char *path)
{
    struct text directory;

    set(&directory, path, "");
    parent(&directory);
    return kernel(FACCESSAT, HERE, (long)directory.bytes, 2 /* W_OK */, 0, 0, 0) == 0;
}

static const char *name_wanted(const char *path)
{
    static struct text option;

    set(&option, "pyoci-snapshot=", path);
    return option.bytes;
}

/* An interpreter that has no descriptor 2 writes its messages into the next file it opens, and none starts with a
 * directory for a standard input; a resumed one would go on. */
static void fill_standard_streams(void)
{
    long fd;

    static const char *const names[] = {"standard input", "standard output", "standard error"};
    struct status status;

    for (fd = 0; fd < 3; fd++)
        if (kernel(STATX, fd, (long)"", EMPTY_PATH, ASK, (long)&status, 0) == -EBADF)
            kernel(OPENAT, HERE, (long)"/dev/null", O_RDWR, 0, 0, 0);
        else if ((status.mode & TYPE) == DIRECTORY)
            die(names[fd], ": is a directory, and would be a container's way to the host");
}

/*
 * What would change which code is mapped by the interpreter's own loader, or by its C library for the conversion of
 * characters: a locale of LOCPATH names a character set, GCONV_PATH the module for it, and the first message of an
 * errno is converted.  (pyoci/waiting.py: FORBIDDEN)
 */
static void drop_loader_variables(char **environment)
{
    char **to = environment;

    for (; *environment; environment++)
        if (!starts(*environment, "LD_") && !starts(*environment, "GLIBC_TUNABLES=") &&
            !starts(*environment, "GCONV_PATH=") && !starts(*environment, "LOCPATH="))
            *to++ = *environment;
    *to = 0;
}

__attribute__((noreturn, noinline)) static void become(long *stack)
{
    static struct install in;
    static struct text self;
    long argc = stack[0], i, n, mask;
    int root;
    char **argv = (char **)(stack + 1), **environment = argv + argc + 1;
    char *next[argc + 18]; /* at most 16 words before the arguments, and NULL */
    const char *connection, *wanted = 0;
    unsigned long machine;
    int may_write, trial;

    fill_standard_streams();
    connection = take_shortcut(argc, argv, environment);
    n = kernel(READLINKAT, HERE, (long)"/proc/self/exe", (long)self.bytes, PATH_SIZE - 1, 0, 0);
    if (n <= 0)
        die("/proc/self/exe", ": cannot be read; is /proc mounted?");
    cut(&self, (unsigned int)n);
    set(&in.prefix, self.bytes, "");
    parent(&in.prefix);
    parent(&in.prefix);
    if (in.prefix.length == 1)
        cut(&in.prefix, 0);
    in.minor = -1;
    find_package(&in, "/lib");
    find_package(&in, "/lib64");
    if (in.minor < 0)
        die(in.prefix.bytes, "/lib*/python3*/{site,dist}-packages/pyoci: no such package; install pyoci-runtime again");
    find_interpreter(&in);
    root = kernel(GETEUID, 0, 0, 0, 0, 0, 0) == 0;
    if (root)
        judge_install(&in, self.bytes);
    look_at_package(&in, root, 0);
    /* byte code written under a lax umask could be written by others, and root would refuse it next time */
    mask = kernel(UMASK, 022, 0, 0, 0, 0, 0);
    kernel(UMASK, mask, 0, 0, 0, 0, 0);
    may_write = (mask & 022) == 022;
    trial = argc > 0 && same(argv[0], "pyoci (trial)"); /* pyoci/snapshot_write.py: no file has this name */
    machine = fingerprint ? kind_of_machine(environment) : 0;
    if (machine) {
        struct words_for_python words = {
            name_snapshot(&in, machine, trial), argc, argv, environment, connection, may_write, trial,
        };

        if (resume_snapshot(&words) && may_write && !trial && may_make(words.path))
            wanted = words.path;
    }
    if (root)
        look_at_package(&in, root, 1);
    drop_loader_variables(environment);

    n = 0;
    next[n++] = in.python.bytes;
    next[n++] = "-I";
    next[n++] = "-S";
    next[n++] = "-X";
    next[n++] = "utf8";
    if (fingerprint) {
        next[n++] = "-X";
        next[n++] = (char *)named_fingerprint();
    }
    if (connection) {
        next[n++] = "-X";
        next[n++] = (char *)connection;
    }
    if (wanted) {
        next[n++] = "-X";
        next[n++] = (char *)name_wanted(wanted);
    }
    if (!may_write)
        next[n++] = "-B";
    next[n++] = "-c";
    next[n++] = (char *)start;
    next[n++] = in.packages.bytes;
    next[n++] = in.others.bytes;
    for (i = 1; i < argc; i++)
        next[n++] = argv[i];
    next[n] = 0;
    expect_limit(RLIMIT_AS, 16ul << 20, "RLIMIT_AS");
    expect_limit(RLIMIT_DATA, 8ul << 20, "RLIMIT_DATA");
    kernel(EXECVE, (long)in.python.bytes, (long)next, (long)environment, 0, 0, 0);
    die(in.python.bytes, ": cannot be executed");
}

/* By itself, as it needs no more of the stack than it says. */
__attribute__((noreturn, used)) void launch(long *stack)
{
    expect_limit(RLIMIT_STACK, 64ul << 10, "RLIMIT_STACK");
    become(stack);
}
