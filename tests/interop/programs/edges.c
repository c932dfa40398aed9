/* What system calls say at their edges: arguments that are wrong, nothing to do, somebody else in the middle. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define SHOW(call) show(#call, (long)(call))

static void show(const char *call, long result) {
    printf("%s = %ld %s\n", call, result, result == -1 ? strerror(errno) : "");
    errno = 0;
}

static int pipe_ends[2];
static char stack[65536];
static volatile int shared;
static sigjmp_buf before;

static void *read_one(void *unused) {
    char byte;
    return (void *)(long)read(pipe_ends[0], &byte, 1);
}

static int child_of_clone(void *unused) {
    shared = open("/dev/null", O_RDONLY);
    SHOW(chdir("/"));
    return 7;
}

static void waits(void) {
    int status;
    siginfo_t info;
    pid_t child = fork();
    if (!child)
        for (;;)
            pause();
    SHOW(waitpid(child, &status, WNOHANG));
    kill(child, SIGSTOP);
    SHOW(waitpid(child, &status, WUNTRACED) == child);
    printf("%x\n", status);
    SHOW(waitpid(child, &status, WNOHANG | WUNTRACED));
    kill(child, SIGCONT);
    SHOW(waitid(P_PID, child, &info, WCONTINUED | WNOWAIT));
    printf("%d %d\n", info.si_code, info.si_status);
    SHOW(waitpid(child, &status, WCONTINUED) == child);
    printf("%x\n", status);
    kill(child, SIGKILL);
    SHOW(waitpid(child, &status, 0) == child);
    SHOW(wait4(-1, &status, 0xFFFF, 0));
    SHOW(waitid(P_ALL, 0, &info, 0));
    SHOW(syscall(SYS_tgkill, 0, getpid(), 0));
    SHOW(syscall(SYS_tkill, 0, 0));
}

static void clones(void) {
    int status;
    child_of_clone(NULL);
    SHOW(fcntl(shared, F_GETFD));
    pid_t child = clone(child_of_clone, stack + sizeof stack, CLONE_VM | CLONE_FILES | CLONE_FS | SIGCHLD, NULL);
    SHOW(waitpid(child, &status, 0) == child);
    printf("%x %d %d\n", status, fcntl(shared, F_GETFD), shared);
    child = clone(child_of_clone, stack + sizeof stack, CLONE_VM, NULL);
    SHOW(waitpid(child, &status, 0));
    SHOW(waitpid(child, &status, __WCLONE) == child);
    SHOW(clone(child_of_clone, stack + sizeof stack, CLONE_SIGHAND | SIGCHLD, NULL));
    SHOW(clone(child_of_clone, stack + sizeof stack, CLONE_VM | CLONE_THREAD, NULL));
}

static void descriptors(void) {
    char bytes[100] = "what is written";
    int file = open("words", O_RDWR | O_CREAT, 0600), nonblocking = open("words", O_NONBLOCK);
    SHOW(fcntl(file, F_GETFL));
    SHOW(fcntl(nonblocking, F_GETFL));
    SHOW(fcntl(file, F_DUPFD, -1));
    struct iovec iov = {bytes, 10};
    SHOW(pwritev(file, &iov, 1, 3));
    SHOW(preadv(file, &iov, 1, 5));
    SHOW(preadv(file, &iov, 1, -1));
    SHOW(lseek(file, 0, SEEK_CUR));
    SHOW(syscall(SYS_preadv2, file, &iov, 1, -1L, 0L, 0));
    SHOW(lseek(file, 0, SEEK_CUR));
    int memory = memfd_create("memory", 0);
    SHOW(write(memory, bytes, 9));
    mkfifo("fifo", 0600);
    SHOW(read(open("fifo", O_RDONLY | O_NONBLOCK), bytes, 1));
    struct rlimit none = {0, 1000};
    setrlimit(RLIMIT_NOFILE, &none);
    SHOW(open("words", O_RDONLY));
    none.rlim_cur = 20;
    setrlimit(RLIMIT_NOFILE, &none);
    while (dup(0) >= 0)
        ;
    close(10);
    SHOW(pipe(pipe_ends));
    SHOW(fcntl(10, F_GETFD));
    for (int fd = 3; fd < 100; fd++)
        close(fd);
}

static void pipes(void) {
    char bytes[10];
    pthread_t thread;
    void *result;
    pipe(pipe_ends);
    SHOW(read(pipe_ends[0], bytes, 0));
    SHOW(write(pipe_ends[0], bytes, 1));
    SHOW(read(pipe_ends[1], bytes, 1));
    pthread_create(&thread, NULL, read_one, NULL);
    usleep(100000);
    close(pipe_ends[0]);
    SHOW(open("/dev/zero", O_RDONLY) == pipe_ends[0]);
    SHOW(write(pipe_ends[1], "x", 1));
    pthread_join(thread, &result);
    SHOW(result);
    struct timeval half = {0, 5000};
    SHOW(select(0, NULL, NULL, NULL, &half));
    SHOW(half.tv_usec);
    struct itimerval timer = {{0, 0}, {100, 0}};
    setitimer(ITIMER_REAL, &timer, NULL);
    SHOW(getitimer(ITIMER_REAL, &timer));
    SHOW(timer.it_value.tv_sec == 99);
}

static void fault(int signo, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    printf("%d %d %p trap %lld write %lld\n", signo, info->si_code, info->si_addr, registers[REG_TRAPNO],
           registers[REG_ERR] >> 1 & 1);
    siglongjmp(before, 1);
}

static void faults(void) {
    struct sigaction action = {.sa_sigaction = fault, .sa_flags = SA_SIGINFO}, found;
    sigaction(SIGSEGV, &action, NULL);
    if (!sigsetjmp(before, 1))
        ((void (*)(void))0x8000000000000000)();
    if (!sigsetjmp(before, 1))
        ((void (*)(void))0x1000)();
    if (!sigsetjmp(before, 1))
        *(volatile char *)0x1001 = 1;
    action.sa_handler = SIG_IGN;
    action.sa_flags = SA_RESETHAND | SA_NODEFER;
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR1, NULL, &found);
    printf("%x\n", found.sa_flags & ~0x04000000);
    struct rlimit limit = {1 << 28, 1 << 28};
    setrlimit(RLIMIT_AS, &limit);
    SHOW(mmap(NULL, 1 << 29, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
    mkdir("gone", 0700);
    chdir("gone");
    rmdir("../gone");
    SHOW(syscall(SYS_getcwd, stack, 1000));
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    waits();
    descriptors();
    pipes();
    faults();
    clones();
    return 0;
}
