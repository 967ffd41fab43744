/* Generated from pyoci/program.py by `python3 -m pyoci.program`; do not edit. */
struct header {
    unsigned int magic;
    unsigned int ops;
    int control;
    int first; /* offset of the first op from the header */
};

struct op {
    int nr;
    unsigned short skip_ok;
    unsigned short skip_err;
    unsigned char load;
    unsigned char flags;
    unsigned char tolerate[6];
    unsigned long args[6];
    unsigned long result;
};

struct report {
    unsigned int kind;
    unsigned int op;
    int value;
    unsigned int length;
};

_Static_assert(sizeof(struct header) == 16, "header");
_Static_assert(sizeof(struct op) == 72, "op");
_Static_assert(sizeof(struct report) == 16, "report");

#define MAGIC 0x696f7970u
#define BARRIER (-1)
#define EXPECT (-2)
#define MOVE (-3)
#define FORK (-4)
#define SPAWN (-5)
#define OFFER (-6)
#define AWAIT (-7)
#define CLONE (-8)
#define FLAG_FSLOG 1
#define FLAG_CLOSE 2
#define FAILED 1
#define AT_BARRIER 2
#define FORKED 3
#define TEXT_MAX 512
