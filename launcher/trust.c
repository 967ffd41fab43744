/*
 * Whether root may run what is installed: nothing of it may be writable by anybody else; and which files these are.
 */

#include "text.h"
#include "trust.h"

/* ---- what root trusts ---- */

#define NOBODY 65534u /* the owner that is shown for an id without a mapping */

int mapped; /* root of another user namespace (rootless engines): files of the true root belong to NOBODY */

static int has_list(const char *path)
{
    return kernel(GETXATTR, (long)path, (long)"system.posix_acl_access", 0, 0, 0, 0) > 0;
}

static void judge(const char *path, const struct status *s, int sticky_is_fine)
{
    if ((s->mode & TYPE) == LINK)
        die(path, ": is a symbolic link inside a package that root runs; install pyoci with its files copied");
    if (s->uid != 0 && !(mapped && s->uid == NOBODY))
        die(path, ": belongs to another user than root, so root will not run it; install pyoci as root, or chown it");
    if (sticky_is_fine && s->mode & STICKY)
        return;
    /* what the group may do is also the most that an access control list gives to anybody (acl(5)) */
    if ((s->mode & 02) || ((s->mode & 020) && (s->gid != 0 || has_list(path))))
        die(path, ": can be written by others than root, so root will not run it; chmod go-w it");
}

/* Everything above a path.  Nobody can rename root's entries in a sticky directory (/tmp), so those are fine.  Above a
 * directory that was judged here before, everything was. */
static void judge_above(const char *path)
{
    static struct {
        unsigned long inode;
        unsigned int major, minor;
    } judged[32];
    static unsigned int count;
    struct text above;
    struct status status;
    unsigned int i;

    set(&above, path, "");
    while (above.length > 1) {
        parent(&above);
        if (!exists(above.bytes, &status))
            die(above.bytes, ": cannot be examined");
        for (i = 0; i < count; i++)
            if (judged[i].inode == status.inode && judged[i].major == status.device[2] &&
                judged[i].minor == status.device[3])
                return;
        judge(above.bytes, &status, 1);
        if (count < 32) {
            judged[count].inode = status.inode;
            judged[count].major = status.device[2];
            judged[count++].minor = status.device[3];
        }
    }
}

/* What a path leads to, if it leads anywhere, and everything above that. */
void judge_one(const char *path)
{
    struct text real;
    struct status status;

    if (!resolve(path, &real) || !exists(real.bytes, &status))
        return;
    judge(real.bytes, &status, 0);
    judge_above(real.bytes);
}

/* ---- which files these are ---- */

/*
 * The sum, over all files of the package, of a hash of name, size, times and inode: which byte code in one piece
 * (pyoci/archive.py) was made of them.  A sum, because directories are read in no order.  0: cannot be told.
 *
 * The time of the last change as well (ctime), because nobody sets that: what is unpacked over an older version can have
 * its size, the time that a reproducible build gives to all files, and the inode that was free again.
 */
unsigned long fingerprint;
int unknown; /* a symbolic link, or something that we may not look at: a change of it would go unnoticed */

static void count_in(const char *name, const struct status *s)
{
    unsigned long hash = 1;

    while (*name)
        hash = mix(hash, (unsigned char)*name++);
    hash = mix(mix(mix(hash, s->size), s->inode), (unsigned long)s->modified.seconds);
    hash = mix(mix(hash, s->modified.nanoseconds), (unsigned long)s->changed.seconds);
    fingerprint += mix(hash, s->changed.nanoseconds);
    if ((s->mode & TYPE) == LINK)
        unknown = 1;
}

/*
 * Every file below an open directory; `path` is its name, for messages.  Closes fd.
 *
 * Sources are counted.  Byte code is judged by a second look, with `byte_code`, which is not needed where a snapshot is
 * resumed: that judges by itself the little that it may read (pyoci/__main__.py).
 */
void judge_below(long fd, struct text *path, int depth, int root, int byte_code)
{
    char buffer[8192] __attribute__((aligned(8)));
    unsigned int here = path->length;
    long got, at;

    if (depth == 16)
        die(path->bytes, ": too deep");
    while ((got = kernel(GETDENTS64, fd, (long)buffer, sizeof(buffer), 0, 0, 0)) > 0)
        for (at = 0; at < got;) {
            const struct entry *entry = (const struct entry *)(buffer + at);
            const char *name = entry->name;
            struct status status;

            at += entry->size;
            if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
                continue;
            add(path, "/");
            add(path, name);
            if (kernel(STATX, fd, (long)name, SYMLINK_NOFOLLOW, ASK, (long)&status, 0)) {
                if (root)
                    die(path->bytes, ": cannot be examined");
                unknown = 1;
            } else {
                if (root)
                    judge(path->bytes, &status, 0);
                if ((status.mode & TYPE) != DIRECTORY) {
                    if (!byte_code)
                        count_in(path->bytes, &status);
                } else if (byte_code || !starts(name, "__pycache__")) {
                    long below = kernel(OPENAT, fd, (long)name, O_DIRECTORY | O_CLOEXEC, 0, 0, 0);

                    if (below >= 0)
                        judge_below(below, path, depth + 1, root, byte_code);
                    else if (root)
                        die(path->bytes, below == -ENFILE || below == -EMFILE
                                             ? ": cannot be examined: too many open files"
                                             : ": cannot be examined");
                    else
                        unknown = 1;
                }
            }
            cut(path, here);
        }
    kernel(CLOSE, fd, 0, 0, 0, 0, 0);
}
