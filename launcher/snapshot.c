/*
 * An interpreter that has started already.
 *
 * Two thirds of a short command are the interpreter's start and the import of fifty modules, and end in the same memory
 * every time.  So this memory is kept: pyoci/snapshot.py starts an interpreter, lets it import everything and wait in
 * read(2) for its command line, and writes down its mappings, its registers and nothing else.  Here they are mapped again,
 * privately, page by page as they are touched; read(2) is made again, of a memfd with the command line in it; and the
 * interpreter goes on as if it had been waiting for just that.
 *
 * What a process is besides its memory is this process's own: descriptors, directory, ids, limits, signals, its parent.
 * What memory knows of the kernel is put right: addresses in the vdso, the thread's register, the end of the heap.
 *
 * A snapshot fits if package, kernel and processor (they are in its name), interpreter and every file that was mapped are
 * the same as when it was made.  It is as trustworthy as the package that it lies in, whose owners and modes have been
 * judged by now.  It was tried before it was given its name.  If anything fails here, nothing is lost: the interpreter is
 * started in the usual way, and that execve drops what was mapped.
 *
 * The processor, because a C library has chosen its memcpy(3) and the size of what it saves by it: an image of a disk is
 * started on another one, with the same kernel and the same files.
 *
 * All sizes and addresses in the file are 64 bits; what is mapped from it is aligned to pages.
 */

#include "kernel.h"
#include "snapshot.h"

#if defined(__x86_64__)

#define MAGIC "pyoci snapshot 5"
#define HEAD 65536
#define PROT_WRITE 2
#define MAP_PRIVATE 2
#define MAP_ANONYMOUS 0x20
#define MAP_NORESERVE 0x4000
#define MAP_FIXED_NOREPLACE 0x100000
#define MFD_CLOEXEC 1
#define ARCH_SET_FS 0x1002
#define AT_HWCAP 16
#define AT_HWCAP2 26
#define AT_SYSINFO_EHDR 33
#define AT_MINSIGSTKSZ 51
#define OSXSAVE (1u << 27) /* in ecx of leaf 1: xgetbv may be asked */
#define VDSO_LOOKED_AT 4096 /* bytes: headers, symbols with their places, and the build id */
#define SIG_IGN 1
#define SIGXFSZ 25
#define NAME 65
#define MAP_FIXED 0x10
#define PAGE 4096
#define FILE_TYPE 0100000 /* S_IFREG */
#define HUGE (2ul << 20)
#define MADV_HUGEPAGE 14
#define LATE 0x100 /* to be read-only when addresses in it have been put right */
#define OF_SNAPSHOT (-1)
#define OF_NOTHING (-2)
#define DENSE (-3) /* of the snapshot as well; in its 2 MiB there is nothing else, and most of it will be written to */
#define FIRST 8192 /* bytes of the file that are read at once: enough for the heads that were seen */
#define MOST 65000 /* bytes of command line and environment: what the waiting read(2) has room for */

struct mapping {
    unsigned long start, length, offset;
    int protection, file; /* PROT_*, perhaps LATE; index of a file, or OF_* */
};

struct mapped_file {
    char path[208];
    unsigned long inode, size;
    long modified, changed; /* seconds */
    unsigned int modified_nanoseconds, changed_nanoseconds, major, minor;
};

struct head {
    char magic[16];
    unsigned long check; /* of all that follows, up to the last address: what is wrong in here would be jumped to */
    unsigned long registers[17]; /* in the order of `load_registers` */
    unsigned long thread;      /* base of fs */
    unsigned long vdso, vdso_end;
    /* where it may grow to; the last `stack_used` bytes.  They end the file, so whoever has read them has a whole one. */
    unsigned long stack, stack_end, stack_offset, stack_used;
    unsigned long mappings, files, addresses, ranges; /* how many follow: struct mapping, struct mapped_file, unsigned long, struct range */
};

struct range { /* memory that commands use: to be filled in one go */
    unsigned long start, length, advice; /* MADV_POPULATE_READ, MADV_POPULATE_WRITE */
};

_Static_assert(sizeof(struct mapping) == 32 && sizeof(struct mapped_file) == 256 && sizeof(struct head) == 248, "snapshot.py");

struct message { /* what the interpreter reads; the words follow, as they lie on the stack */
    unsigned int arguments, variables, may_write;
    int descriptor, connection;
    unsigned int trial;
    unsigned long ignored; /* bit N: signal N + 1 */
};

struct action { /* struct sigaction, the kernel's */
    unsigned long handler, flags, restorer, mask;
};

_Static_assert(sizeof(struct message) == 32, "waiting.py");

static union {
    struct head head;
    char bytes[HEAD];
} snapshot;
static unsigned long saved[17] __attribute__((used));

/* Never returns: it goes on where the snapshot was taken, at a `syscall` instruction. */
__attribute__((noreturn)) static void load_registers(void)
{
    __asm__ volatile("mov saved+0, %%r15\n mov saved+8, %%r14\n mov saved+16, %%r13\n mov saved+24, %%r12\n"
                     "mov saved+32, %%rbp\n mov saved+40, %%rbx\n mov saved+64, %%r10\n mov saved+72, %%r9\n"
                     "mov saved+80, %%r8\n mov saved+88, %%rax\n mov saved+96, %%rdx\n mov saved+104, %%rsi\n"
                     "mov saved+112, %%rdi\n mov saved+128, %%rsp\n jmp *saved+120\n" ::: "memory");
    __builtin_unreachable();
}

static long map(const struct mapping *m, long fd)
{
    long flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | (fd < 0 ? MAP_ANONYMOUS | MAP_NORESERVE : 0);

    int protection = m->protection & LATE ? (m->protection & ~LATE) | PROT_WRITE : m->protection;

    return kernel(MMAP, (long)m->start, (long)m->length, protection, flags, fd, (long)m->offset);
}

/*
 * With one huge page, if the kernel has one at hand, instead of a fault and a copy for each page that is written to.
 * Whatever is not the snapshot's in these 2 MiB is empty.
 */
static long map_dense(const struct mapping *m, long fd)
{
    static unsigned char resident[HUGE / PAGE];
    struct mapping all = {m->start & ~(HUGE - 1), HUGE, 0, m->protection, OF_NOTHING};

    if (map(&all, -1) != (long)all.start)
        return -1;
    /* one byte is touched: all of the page is there if it is a huge one */
    if (kernel(MADVISE, (long)all.start, HUGE, MADV_HUGEPAGE, 0, 0, 0) == 0 &&
        kernel(PREAD64, fd, (long)m->start, 1, (long)m->offset, 0, 0) == 1 &&
        kernel(MINCORE, (long)all.start, HUGE, (long)resident, 0, 0, 0) == 0 && (resident[0] & resident[HUGE / PAGE - 1] & 1))
        return kernel(PREAD64, fd, (long)m->start, (long)m->length, (long)m->offset, 0, 0) == (long)m->length ? (long)m->start : -1;
    return kernel(MMAP, (long)m->start, (long)m->length, m->protection, MAP_PRIVATE | MAP_FIXED, fd, (long)m->offset);
}

static long open_same(const struct mapped_file *file)
{
    struct status s;
    long fd = kernel(OPENAT, HERE, (long)file->path, O_CLOEXEC, 0, 0, 0);

    if (fd < 0)
        return fd;
    if (kernel(STATX, fd, (long)"", EMPTY_PATH, ASK, (long)&s, 0) || s.inode != file->inode || s.size != file->size ||
        s.modified.seconds != file->modified || s.modified.nanoseconds != file->modified_nanoseconds ||
        s.changed.seconds != file->changed || s.changed.nanoseconds != file->changed_nanoseconds ||
        s.device[2] != file->major || s.device[3] != file->minor) {
        kernel(CLOSE, fd, 0, 0, 0, 0, 0);
        return -1;
    }
    return fd;
}

/* A descriptor from which the interpreter reads its command line; negative if it does not fit. */
static long write_words(const struct words_for_python *words)
{
    struct message message = {0, 0, 0, 0, -1, 0, 0};
    struct action action;
    static const struct action ignore = {SIG_IGN, 0, 0, 0};
    char *begin = words->argv[0], *end = begin;
    long fd, i, written;
    const char *digit;

    if (words->argc < 1) /* before Linux 5.18 */
        return -1;
    for (i = 0; i < words->argc; i++)
        end = words->argv[i] + length_of(words->argv[i]) + 1;
    for (i = 0; words->environment[i]; i++)
        end = words->environment[i] + length_of(words->environment[i]) + 1;
    /* the kernel lays them out one behind the other (execve(2)); who calls us in another way goes the usual way */
    for (i = 1; i < words->argc; i++)
        if (words->argv[i] != words->argv[i - 1] + length_of(words->argv[i - 1]) + 1)
            return -1;
    message.arguments = (unsigned int)words->argc;
    message.may_write = (unsigned int)words->may_write;
    message.trial = (unsigned int)words->trial;
    for (i = 0; words->environment[i]; i++) {
        const char *before = i ? words->environment[i - 1] : words->argv[words->argc - 1];

        if (words->environment[i] != before + length_of(before) + 1)
            return -1;
        message.variables++;
    }
    if (words->connection) {
        message.connection = 0;
        for (digit = words->connection; *digit; digit++)
            if (*digit >= '0' && *digit <= '9')
                message.connection = message.connection * 10 + *digit - '0';
    }
    /* a limit of files' sizes is one of memfds, too; the interpreter ignores the signal as well */
    for (i = 1; i <= 64; i++)
        if (kernel(RT_SIGACTION, i, i == SIGXFSZ ? (long)&ignore : 0, (long)&action, 8, 0, 0) == 0 &&
            action.handler == SIG_IGN)
            message.ignored |= 1ul << (i - 1);
    if (end - begin > MOST)
        return -1;
    fd = kernel(MEMFD_CREATE, (long)"pyoci", MFD_CLOEXEC, 0, 0, 0, 0);
    if (fd < 0)
        return fd;
    message.descriptor = (int)fd;
    written = kernel(WRITE, fd, (long)&message, sizeof(message), 0, 0, 0);
    if (written == (long)sizeof(message))
        written = kernel(WRITE, fd, (long)begin, end - begin, 0, 0, 0);
    if (written != end - begin || kernel(LSEEK, fd, 0, 0, 0, 0, 0)) {
        kernel(CLOSE, fd, 0, 0, 0, 0, 0);
        return -1;
    }
    return fd;
}

/* A word of the auxiliary vector, which is behind the environment. */
static unsigned long auxiliary(char **environment, unsigned long type)
{
    unsigned long *entry;

    while (*environment)
        environment++;
    for (entry = (unsigned long *)(environment + 1); entry[0]; entry += 2)
        if (entry[0] == type)
            return entry[1];
    return 0;
}

static unsigned long processor(unsigned long hash)
{
    static const unsigned int leaves[][2] = {{1, 0}, {7, 0}, {0xd, 1}, {0x80000001, 0}};
    unsigned int i, a, b, c, d, saves = 0;

    for (i = 0; i < 4; i++) {
        __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "0"(leaves[i][0]), "2"(leaves[i][1]));
        /* the rest says which of the processors it is, or changes while it runs */
        hash = mix(hash, leaves[i][0] == 0xd ? a : c | (unsigned long)d << 32);
        if (leaves[i][0] == 7)
            hash = mix(hash, b);
        if (leaves[i][0] == 1)
            saves = c & OSXSAVE;
    }
    if (saves) {
        __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
        hash = mix(hash, a | (unsigned long)d << 32);
    }
    return hash;
}

unsigned long kind_of_machine(char **environment)
{
    static char names[6 * NAME]; /* struct new_utsname: system, node, release, version, ... */
    const unsigned long *vdso = (const unsigned long *)auxiliary(environment, AT_SYSINFO_EHDR);
    unsigned long hash = 1, i;

    if (!vdso || kernel(UNAME, (long)names, 0, 0, 0, 0, 0))
        return 0;
    for (i = 2 * NAME; i < 4 * NAME; i++)
        hash = mix(hash, (unsigned char)names[i]);
    /* kernels that are built to be reproducible may differ without saying so */
    for (i = 0; i < VDSO_LOOKED_AT / sizeof(long); i++)
        hash = mix(hash, vdso[i]);
    hash = mix(hash, auxiliary(environment, AT_HWCAP));
    hash = mix(hash, auxiliary(environment, AT_HWCAP2));
    hash = mix(hash, auxiliary(environment, AT_MINSIGSTKSZ));
    return processor(hash);
}

static int map_all(long fd, const struct mapping *mappings, const struct mapped_file *files, int *stale)
{
    const struct head *head = &snapshot.head;
    struct mapping stack = {head->stack, head->stack_end - head->stack, 0, 3, OF_NOTHING};
    unsigned long i, number;
    long from;

    if (map(&stack, -1) != (long)stack.start)
        return 0;
    if (kernel(PREAD64, fd, (long)(head->stack_end - head->stack_used), (long)head->stack_used,
               (long)head->stack_offset, 0, 0) != (long)head->stack_used) {
        *stale = 1;
        return 0;
    }
    for (number = 0; number < head->files; number++) {
        from = open_same(&files[number]);
        if (from < 0) {
            *stale = 1;
            return 0;
        }
        for (i = 0; i < head->mappings; i++)
            if (mappings[i].file == (int)number && map(&mappings[i], from) != (long)mappings[i].start)
                return 0;
        kernel(CLOSE, from, 0, 0, 0, 0, 0);
    }
    for (i = 0; i < head->mappings; i++)
        if (mappings[i].file == DENSE ? map_dense(&mappings[i], fd) != (long)mappings[i].start
                                      : mappings[i].file < 0 && map(&mappings[i], mappings[i].file == OF_SNAPSHOT ? fd : -1) !=
                                                                    (long)mappings[i].start)
            return 0;
    return 1;
}

static int older_than_a_day(long fd)
{
    struct status s;
    long now[2];

    return !kernel(STATX, fd, (long)"", EMPTY_PATH, ASK, (long)&s, 0) &&
           !kernel(CLOCK_GETTIME, 0 /* CLOCK_REALTIME */, (long)now, 0, 0, 0, 0) &&
           (unsigned long)(now[0] - s.modified.seconds) > 86400; /* or of a time to come */
}

/* Nobody else has written it, who is judged in the usual way (trust.c) if this is not so. */
static int judged(long fd)
{
    struct status s;

    return !kernel(STATX, fd, (long)"", EMPTY_PATH, ASK, (long)&s, 0) && (s.mode & TYPE) == FILE_TYPE && !(s.mode & 022) &&
           s.uid == (unsigned int)kernel(GETEUID, 0, 0, 0, 0, 0, 0);
}

static unsigned long check(unsigned long end)
{
    const unsigned long *word = snapshot.head.registers, *last = (const unsigned long *)(snapshot.bytes + end);
    unsigned long hash = 1;

    while (word < last)
        hash = mix(hash, *word++);
    return hash;
}

int resume_snapshot(const struct words_for_python *words)
{
    const struct head *head = &snapshot.head;
    const struct mapping *mappings = (const struct mapping *)(head + 1);
    const struct mapped_file *files;
    const unsigned long *addresses;
    const struct range *ranges;
    unsigned long i, vdso, end;
    long fd = kernel(OPENAT, HERE, (long)words->path, O_NOFOLLOW | O_CLOEXEC, 0, 0, 0), input, length;
    int stale = 0;

    if (fd < 0)
        return fd == -ENOENT;
    if (!judged(fd)) {
        kernel(CLOSE, fd, 0, 0, 0, 0, 0);
        return 1;
    }
    length = kernel(READ, fd, (long)snapshot.bytes, FIRST, 0, 0, 0);
    vdso = auxiliary(words->environment, AT_SYSINFO_EHDR);
    if (length == 0) { /* an empty one says that there cannot be one */
        length = older_than_a_day(fd);
        kernel(CLOSE, fd, 0, 0, 0, 0, 0);
        return length != 0;
    }
    end = head->mappings > 200 || head->files > 40 || head->addresses > 200 || head->ranges > 200
              ? 0
              : sizeof(*head) + head->mappings * sizeof(*mappings) + head->files * sizeof(*files) +
                    head->addresses * sizeof(*addresses) + head->ranges * sizeof(*ranges);
    if (length != FIRST || !starts(head->magic, MAGIC) || !end ||
        (end > FIRST &&
         kernel(READ, fd, (long)snapshot.bytes + FIRST, HEAD - FIRST, 0, 0, 0) != HEAD - FIRST) ||
        head->check != check(end)) {
        kernel(CLOSE, fd, 0, 0, 0, 0, 0);
        return 1;
    }
    files = (const struct mapped_file *)(mappings + head->mappings);
    addresses = (const unsigned long *)(files + head->files);
    ranges = (const struct range *)(addresses + head->addresses);
    input = write_words(words);
    if (input < 0 || !map_all(fd, mappings, files, &stale)) {
        if (input >= 0)
            kernel(CLOSE, input, 0, 0, 0, 0, 0);
        kernel(CLOSE, fd, 0, 0, 0, 0, 0);
        return stale;
    }
    kernel(CLOSE, fd, 0, 0, 0, 0, 0);
    for (i = 0; i < head->ranges; i++) /* whatever comes of it: pages that are not there yet come when they are used */
        kernel(MADVISE, (long)ranges[i].start, (long)ranges[i].length, (long)ranges[i].advice, 0, 0, 0);
    for (i = 0; i < head->addresses; i++)
        *(volatile unsigned long *)addresses[i] += vdso - head->vdso;
    for (i = 0; i < head->mappings; i++)
        if (mappings[i].protection & LATE)
            kernel(MPROTECT, (long)mappings[i].start, (long)mappings[i].length, mappings[i].protection & ~LATE, 0, 0, 0);
    for (i = 0; i < 17; i++)
        saved[i] = head->registers[i];
    saved[14] = (unsigned long)input; /* rdi: the descriptor to read */
    if (kernel(ARCH_PRCTL, ARCH_SET_FS, (long)head->thread, 0, 0, 0, 0) == 0)
        load_registers();
    return 0;
}

#else
/* Not written for this architecture: its interpreters start as usual. */
unsigned long kind_of_machine(char **environment)
{
    (void)environment;
    return 0;
}

int resume_snapshot(const struct words_for_python *words)
{
    (void)words;
    return 0;
}
#endif
