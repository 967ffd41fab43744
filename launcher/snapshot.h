/*
 * Become the interpreter as it was when a snapshot of it was taken, ready to read its command line.  Returns if there is no
 * snapshot that fits, or anything else speaks against it: 1 if a new one should be taken.  See snapshot.c.
 */
struct words_for_python {
    const char *path;       /* of the snapshot */
    long argc;
    char **argv, **environment;
    const char *connection; /* see shortcut.h; NULL if none */
    int may_write;          /* byte code: not under a lax umask */
};

int resume_snapshot(const struct words_for_python *words);
