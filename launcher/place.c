/*
 * Where an interpreter that a snapshot is taken of has its memory.
 *
 * Half of what resuming a snapshot costs is the pages that are written to, one fault and one copy for each.  With all of an
 * interpreter's objects side by side, from a multiple of 2 MiB on, the launcher can fill one huge page with them instead
 * (launcher/snapshot.c).  This library is preloaded into that interpreter alone: what it asks of mmap(2) in the size of its
 * arenas is given from one place, and the C library's heap begins at such a multiple.
 *
 * It stays in the snapshot, as later arenas are asked of it too.
 */

#include "kernel.h"

#define HUGE (2ul << 20)
#define ARENA (1ul << 20) /* ARENA_SIZE of CPython's Objects/obmalloc.c since 3.10 */
#define ROOM (8 * HUGE)
#define MAP_PRIVATE 2
#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
#define MAP_NORESERVE 0x4000

extern void *sbrk(long);
extern int *__errno_location(void);
extern char **environ;

static unsigned long next, end;

__attribute__((constructor)) static void begin(void)
{
    long room = kernel(MMAP, 0, ROOM + HUGE, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    unsigned long heap = (unsigned long)sbrk(0);

    if (room > 0) {
        next = ((unsigned long)room + HUGE - 1) & ~(HUGE - 1);
        end = next + ROOM;
    }
    sbrk((long)(-heap & (HUGE - 1)));
    if (environ)
        *environ = 0; /* nothing that the interpreter starts has this library */
}

__attribute__((visibility("default"))) void *mmap(void *address, unsigned long length, int protection, int flags, int fd, long offset)
{
    long result;

    if (!address && length == ARENA && fd == -1 && next < end) {
        address = (void *)next;
        flags |= MAP_FIXED;
        next += ARENA;
    }
    result = kernel(MMAP, (long)address, (long)length, protection, flags, fd, offset);
    if (result < 0 && result > -4096) {
        *__errno_location() = (int)-result;
        return (void *)-1;
    }
    return (void *)result;
}

__attribute__((visibility("default"), alias("mmap"))) void *mmap64(void *, unsigned long, int, int, int, long);
