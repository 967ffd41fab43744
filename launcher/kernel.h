/*
 * What both parts of the launcher stand on: system calls without a libc, and the kernel's structures that they look at.
 */

#if defined(__x86_64__)
enum { ARCH_PRCTL = 158, CLOCK_GETTIME = 228, CLOSE = 3, CONNECT = 42, EXECVE = 59, EXIT_GROUP = 231, FACCESSAT = 269,
       FCNTL = 72, FLOCK = 73, GETDENTS64 = 217, GETEUID = 107, GETXATTR = 191, LSEEK = 8, MADVISE = 28, MEMFD_CREATE = 319,
       MINCORE = 27, MMAP = 9, MPROTECT = 10, OPENAT = 257, PREAD64 = 17, PRLIMIT64 = 302, READ = 0,
       READLINKAT = 267, RECVFROM = 45, RT_SIGACTION = 13, SOCKET = 41, STATX = 332, UMASK = 95, UNAME = 63, UNLINKAT = 263, WRITE = 1 };

static inline long kernel(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
enum { CLOSE = 57, CONNECT = 203, EXECVE = 221, EXIT_GROUP = 94, FACCESSAT = 48, FCNTL = 25, FLOCK = 32, GETDENTS64 = 61, GETEUID = 175, GETXATTR = 8,
       OPENAT = 56, PRLIMIT64 = 261, READ = 63, READLINKAT = 78, RECVFROM = 207, SOCKET = 198, STATX = 291, UMASK = 166, UNLINKAT = 35,
       WRITE = 64 };

static inline long kernel(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;

    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "the launcher is written for x86_64 and aarch64"
#endif

#define HERE (-100L) /* AT_FDCWD */
#if defined(__aarch64__)
#define O_DIRECTORY 040000
#else
#define O_DIRECTORY 0200000
#endif
#define O_CLOEXEC 02000000
#define O_PATH 010000000
#if defined(__aarch64__)
#define O_NOFOLLOW 0100000
#else
#define O_NOFOLLOW 0400000
#endif
#define O_WRONLY 1
#define O_RDWR 2
#define O_CREAT 0100
#define O_APPEND 02000
#define O_NONBLOCK 04000
#define SYMLINK_NOFOLLOW 0x100
#define EMPTY_PATH 0x1000
#define REMOVEDIR 0x200
#define ENOENT 2
#define EINTR 4
#define EBADF 9
#define EBUSY 16
#define ENODEV 19
#define ENFILE 23
#define EMFILE 24
#define ENOTEMPTY 39
#define ECONNRESET 104
#define F_SETFD 2
#define STICKY 01000
#define TYPE 0170000
#define DIRECTORY 0040000
#define LINK 0120000
#define ASK 0x3db /* STATX_TYPE | MODE | UID | GID | MTIME | CTIME | INO | SIZE */
#define PATH_SIZE 4096
#define INITIAL_USER_NAMESPACE 0xeffffffdul /* PROC_USER_INIT_INO in linux/proc_ns.h */

struct entry { /* struct linux_dirent64 */
    unsigned long inode;
    long offset;
    unsigned short size;
    unsigned char type;
    char name[];
};

struct status { /* struct statx; only what is asked for */
    unsigned int mask, block_size;
    unsigned long attributes;
    unsigned int links, uid, gid;
    unsigned short mode, spare;
    unsigned long inode, size;
    unsigned char middle[96 - 48];
    struct { /* struct statx_timestamp */
        long seconds;
        unsigned int nanoseconds, reserved;
    } changed, modified;
    unsigned int device[4]; /* of the file: major, minor; of what it is in: major, minor */
    unsigned char rest[256 - 144];
};
_Static_assert(sizeof(struct status) == 256, "statx");

static inline int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static inline unsigned int length_of(const char *s)
{
    unsigned int n = 0;

    while (s[n])
        n++;
    return n;
}

static inline int starts(const char *s, const char *with)
{
    while (*with)
        if (*s++ != *with++)
            return 0;
    return 1;
}

/* One step of a hash: for telling apart what differs by chance, not by malice. */
static inline unsigned long mix(unsigned long hash, unsigned long value)
{
    hash = (hash ^ value) * 0x9e3779b97f4a7c15ul;
    return hash ^ hash >> 29;
}
