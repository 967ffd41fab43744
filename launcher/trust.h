extern int mapped;                /* we are root of another user namespace */
extern unsigned long fingerprint; /* of the files that were counted */
extern int unknown;               /* the fingerprint does not tell all of them */

/* Whoever may change what root runs ends the program with a message (trust.c). */
void judge_one(const char *path);
void judge_below(long fd, struct text *path, int depth, int root, int byte_code);
