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
    int trial;              /* the first use, by which pyoci/snapshot_write.py finds out whether it can be used */
};

/*
 * A number that is another one on another kernel or with a processor of other abilities.  0: no snapshots here.
 */
unsigned long kind_of_machine(char **environment);

int resume_snapshot(const struct words_for_python *words);
