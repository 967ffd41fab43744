/*
 * init: replays a program of kernel calls that the runtime has written down.
 *
 * No libc, no loader, no heap, no policy.  The program (header, data, ops) is mapped at PROGRAM by the kernel together with this code, from one sealed
 * memfd; every address in it is already right.  Control flow only goes forward: an op that fails with an errno that it tolerates skips
 * `skip_err` ops, one that succeeds skips `skip_ok`; any other failure is reported and ends the process.
 *
 * Threat model.  This code runs with the runtime's privileges while it enters, and then inside, namespaces whose
 * processes and files are hostile.  What it trusts: the program, and the runtime at the other end of the control socket.  It
 * never interprets bytes that come from the container (the only memory that the kernel fills on a container's behalf is
 * handed on to the kernel, or compared with a constant by EXPECT), never builds a path, and opens nothing by itself.
 * An op decides nothing at run time but "did this call fail with an errno that the plan names".
 *
 * Pseudo-calls:
 *   BARRIER  tell the runtime that this point is reached; go on when it sends a byte, exit when it is gone
 *   EXPECT   args: address, mask, value, errno: fail with errno unless (*address & mask) == value
 *   MOVE     args: from, to, width: copy a register into a structure, for calls that take descriptors in memory
 *   FORK     clone3: the child goes on with the next op, the parent reports the child's pid and exits
 *   CLONE    the same by clone(2), whose arguments a filter can look at
 *   SPAWN    clone3: the child goes on with the ops of the block, which end in exit_group; the parent skips them
 *   OFFER    sendmsg: of a descriptor that another process will put into the table that it shares with us; until then, again
 *   AWAIT    a BARRIER of which another process has told the runtime, because a filter may forbid us to
 */

#include "program.h"

#if defined(__x86_64__)
#define NR_READ 0
#define NR_CLOSE 3
#define NR_WRITE 1
#define NR_EXIT_GROUP 231
#define NR_CLONE 56
#define NR_CLONE3 435
#define NR_SENDMSG 46
#define NR_NANOSLEEP 35

static inline long kernel(long number, const unsigned long *a)
{
    long result;
    register unsigned long r10 __asm__("r10") = a[3];
    register unsigned long r8 __asm__("r8") = a[4];
    register unsigned long r9 __asm__("r9") = a[5];

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
#define NR_READ 63
#define NR_CLOSE 57
#define NR_WRITE 64
#define NR_EXIT_GROUP 94
#define NR_CLONE 220
#define NR_CLONE3 435
#define NR_SENDMSG 211
#define NR_NANOSLEEP 101

static inline long kernel(long number, const unsigned long *a)
{
    register unsigned long x8 __asm__("x8") = (unsigned long)number;
    register unsigned long x0 __asm__("x0") = a[0];
    register unsigned long x1 __asm__("x1") = a[1];
    register unsigned long x2 __asm__("x2") = a[2];
    register unsigned long x3 __asm__("x3") = a[3];
    register unsigned long x4 __asm__("x4") = a[4];
    register unsigned long x5 __asm__("x5") = a[5];

    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return (long)x0;
}
#else
#error "init is written for x86_64 and aarch64"
#endif

#define NR_OPENAT2 437

#define EINTR 4
#define EAGAIN 11
/* A scoped openat2 that meets ".." while anything on the machine is renamed or mounted gives up with EAGAIN (openat2(2)):
 * anybody can rename in a loop, and must not be able to keep containers from starting. */
#define TRIES 10000
#define EBADF 9
/* How often an OFFER looks, and the nanoseconds between: for ten seconds, in case the other one has died. */
#define LOOKS 100000
#define PAUSE 100000

/* The section that the linker script puts at a fixed address; the assembler replaces its content. */
__attribute__((section(".program"), used)) struct header program = {0, 0, 0, 0};

struct message {
    struct report report;
    char text[TEXT_MAX];
};

static long call3(long number, unsigned long a, unsigned long b, unsigned long c)
{
    unsigned long args[6] = {a, b, c, 0, 0, 0};

    return kernel(number, args);
}

__attribute__((noreturn)) static void leave(int status)
{
    call3(NR_EXIT_GROUP, (unsigned long)status, 0, 0);
    /* a filter may forbid even that, and the report that execve(2) is forbidden: who cannot leave must not stay, either */
    __builtin_trap();
}

static void tell(const volatile struct header *head, struct message *message, unsigned int kind, unsigned int op, int value)
{
    long sent;

    message->report.kind = kind;
    message->report.op = op;
    message->report.value = value;
    do
        /* write, not send: of all calls it is the one that a seccomp profile is least likely to refuse */
        sent = call3(NR_WRITE, (unsigned long)head->control, (unsigned long)message,
                     sizeof(message->report) + message->report.length);
    while (sent == -EINTR);
    message->report.length = 0;
}

__attribute__((noreturn)) static void fail(const volatile struct header *head, struct message *message, unsigned int index,
                                           const struct op *op, const unsigned long *args, long result)
{
    if (op->flags & FLAG_FSLOG) {
        /* the file system context keeps the kernel's own words, one message a read; the first says what was wrong */
        long length = call3(NR_READ, args[0], (unsigned long)message->text, TEXT_MAX);

        if (length > 0)
            message->report.length = (unsigned int)length;
    }
    tell(head, message, FAILED, index, (int)-result);
    leave(127);
}

static long perform(const volatile struct header *head, struct message *message, unsigned int index, const struct op *op,
                    const unsigned long *args)
{
    unsigned char go;
    int tries = TRIES;
    long result;

    switch (op->nr) {
    case BARRIER:
        tell(head, message, AT_BARRIER, index, 0);
        /* fall through */
    case AWAIT:
        do
            result = call3(NR_READ, (unsigned long)head->control, (unsigned long)&go, 1);
        while (result == -EINTR);
        if (result != 1)
            leave(1); /* the runtime is gone: whatever it was building must not come to life */
        return 0;
    case EXPECT:
        return (*(const volatile unsigned long *)args[0] & args[1]) == args[2] ? 0 : -(long)args[3];
    case MOVE:
        if (args[2] == 8)
            *(volatile unsigned long *)args[1] = *(const unsigned long *)args[0];
        else
            *(volatile unsigned int *)args[1] = *(const unsigned int *)args[0];
        return 0;
    case FORK:
    case CLONE:
        result = kernel(op->nr == CLONE ? NR_CLONE : NR_CLONE3, args);
        if (result > 0) {
            tell(head, message, FORKED, index, (int)result);
            leave(0);
        }
        return result;
    case SPAWN:
        return kernel(NR_CLONE3, args);
    case OFFER:
        for (tries = LOOKS;; tries--) {
            const long pause[2] = {0, PAUSE};

            result = kernel(NR_SENDMSG, args);
            if (result != -EINTR && (result != -EBADF || !tries))
                return result;
            call3(NR_NANOSLEEP, (unsigned long)pause, 0, 0);
        }
    default:
        do
            result = kernel(op->nr, args);
        while (result == -EINTR || (result == -EAGAIN && op->nr == NR_OPENAT2 && --tries));
        return result;
    }
}

__attribute__((noreturn, used)) void replay(void)
{
    /* the compiler must not believe the initial value: the image carries another */
    const volatile struct header *head = &program;
    struct message message;
    const struct op *ops;
    unsigned int index = 0, count = head->ops;

    __asm__("" : "+r"(head));
    if (head->magic != MAGIC)
        leave(126);
    ops = (const struct op *)((unsigned long)head + (unsigned long)head->first);
    message.report.length = 0;
    while (index < count) {
        const struct op *op = &ops[index];
        unsigned long args[6];
        long result;
        int i;

        for (i = 0; i < 6; i++) {
            args[i] = op->args[i];
            if (op->load & 1u << i)
                args[i] = *(const volatile unsigned long *)args[i];
        }
        result = perform(head, &message, index, op, args);
        if (result < 0 && result >= -4095) {
            int tolerated = 0;

            for (i = 0; i < 6; i++)
                if (op->tolerate[i] && op->tolerate[i] == -result)
                    tolerated = 1;
            if (!tolerated)
                fail(head, &message, index, op, args, result);
            index += 1u + op->skip_err;
        } else {
            if (op->result)
                *(volatile long *)op->result = result;
            if (op->flags & ~FLAG_FSLOG)
                for (i = 5; i >= 0; i--) /* the order that the assembler believes in */
                    if (op->flags & FLAG_CLOSE << i)
                        call3(NR_CLOSE, args[i], 0, 0);
            index += 1u + (op->nr == SPAWN && !result ? 0u : op->skip_ok);
        }
    }
    leave(0);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n    xor %ebp, %ebp\n    and $-16, %rsp\n    call replay\n    hlt\n");
#else
__asm__(".globl _start\n_start:\n    mov x29, #0\n    bl replay\n    brk #0\n");
#endif
