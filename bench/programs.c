/* The two programs that containers run here, without libc and loader: -DWAIT waits for a signal, the other is `true`. */
#if defined(__x86_64__)
#define EXIT_GROUP 231
#define PAUSE 34 /* pause */
#define CALL "syscall"
#define NUMBER "rax"
#define ARGUMENT "rdi"
#elif defined(__aarch64__)
#define EXIT_GROUP 94
#define PAUSE 73 /* ppoll of nothing */
#define CALL "svc #0"
#define NUMBER "x8"
#define ARGUMENT "x0"
#endif

static void call(long which)
{
    register long number __asm__(NUMBER) = which;
    register long argument __asm__(ARGUMENT) = 0;
#if defined(__aarch64__)
    register long x1 __asm__("x1") = 0;
    register long x2 __asm__("x2") = 0;
    register long x3 __asm__("x3") = 0;

    __asm__ volatile(CALL : "+r"(argument) : "r"(number), "r"(x1), "r"(x2), "r"(x3) : "memory");
#else
    __asm__ volatile(CALL : "+r"(number) : "r"(argument) : "rcx", "r11", "memory");
#endif
}

void _start(void)
{
#ifdef WAIT
    for (;;)
        call(PAUSE);
#else
    for (;;)
        call(EXIT_GROUP);
#endif
}
