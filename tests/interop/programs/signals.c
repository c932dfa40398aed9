/* What a handler is told, and that everything is as it was after it. */
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static sigjmp_buf back;
static volatile sig_atomic_t got, code;
static void *volatile where;
static volatile int on_stack;
static char *alternative;

static void fault(int signo, siginfo_t *info, void *context)
{
    char here;
    ucontext_t *uc = context;
    got = signo, code = info->si_code, where = info->si_addr;
    on_stack = &here >= alternative && &here < alternative + SIGSTKSZ;
    if (!uc->uc_mcontext.gregs[REG_RIP])
        got += 1000;
    siglongjmp(back, 1);
}

static void note(int signo, siginfo_t *info, void *context)
{
    double x = 3.5;
    got = signo + (int)(x * 2) - 7;
    code = info->si_code;
    (void)context;
}

static void skip(int signo, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    uc->uc_mcontext.gregs[REG_RIP] += 2; /* over ud2 */
    uc->uc_mcontext.gregs[REG_RBX] = 77;
    __asm__ volatile("xorps %%xmm7, %%xmm7" : : : "xmm7");
    got = signo;
    (void)info;
}

static int deep(int n)
{
    volatile char room[4096];
    room[0] = n;
    return deep(n + 1) + room[0];
}

static void install(int signo, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | flags;
    sigaction(signo, &action, NULL);
}

int main(void)
{
    char *page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    alternative = malloc(SIGSTKSZ);
    stack_t stack = {.ss_sp = alternative, .ss_size = SIGSTKSZ};
    sigaltstack(&stack, NULL);
    install(SIGSEGV, fault, SA_ONSTACK);
    install(SIGFPE, fault, 0);
    install(SIGILL, skip, 0);
    munmap(page + 4096, 4096);
    if (!sigsetjmp(back, 1))
        page[17] = 1;
    printf("%d %d %d %d\n", got, code, (int)((char *)where - page), on_stack);
    if (!sigsetjmp(back, 1))
        page[4096 + 5]++;
    printf("%d %d %d %d\n", got, code, (int)((char *)where - page), on_stack);
    if (!sigsetjmp(back, 1))
        ((void (*)(void))0)();
    printf("%d %d %p\n", got, code, where);
    if (!sigsetjmp(back, 1))
        deep(0);
    printf("%d %d %d\n", got, code, on_stack);
    volatile int zero = 0;
    if (!sigsetjmp(back, 1))
        zero = 1 / zero;
    printf("%d %d\n", got, code);
    long rbx;
    double seven = 7.25, after;
    __asm__ volatile("movsd %2, %%xmm7; mov $5, %%rbx; ud2; mov %%rbx, %0; movsd %%xmm7, %1"
                     : "=r"(rbx), "=m"(after) : "m"(seven) : "rbx", "xmm7");
    printf("%d %ld %.2f\n", got, rbx, after);

    install(SIGUSR1, note, 0);
    raise(SIGUSR1);
    printf("%d %d\n", got, code == SI_TKILL);
    sigset_t set, pending;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    got = 0;
    kill(getpid(), SIGUSR1);
    sigpending(&pending);
    printf("%d %d\n", got, sigismember(&pending, SIGUSR1));
    sigemptyset(&set);
    sigsuspend(&set);
    printf("%d %d %d\n", got, code, errno == EINTR);

    int ends[2];
    pipe(ends);
    install(SIGALRM, note, 0);
    struct itimerval timer = {.it_value = {.tv_usec = 20000}};
    setitimer(ITIMER_REAL, &timer, NULL);
    char byte;
    printf("%zd %d\n", read(ends[0], &byte, 1), errno == EINTR);
    install(SIGALRM, note, SA_RESTART);
    setitimer(ITIMER_REAL, &timer, NULL);
    if (!fork()) {
        usleep(60000);
        write(ends[1], "x", 1);
        _exit(9);
    }
    got = 0;
    ssize_t n = read(ends[0], &byte, 1);
    printf("%zd %c %d\n", n, byte, got);
    int status;
    wait(&status);
    printf("%d\n", WEXITSTATUS(status));
    fflush(stdout);
    signal(SIGSEGV, SIG_DFL);
    page[0] = 1;
}
