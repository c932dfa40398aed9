/* vfork, fork, pipes, shared memory with a futex between processes, wait. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
    static int shared_by_vfork;
    int status;
    if (!vfork()) {
        shared_by_vfork = 4;
        _exit(3);
    }
    wait(&status);
    printf("%d %d\n", shared_by_vfork, WEXITSTATUS(status));
    if (!vfork()) {
        execl("/bin/sh", "sh", "-c", "exit 6", NULL);
        _exit(1);
    }
    wait(&status);
    printf("%d %d\n", WEXITSTATUS(status), system("exit 8") >> 8);
    int *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int own = 1;
    fflush(stdout);
    if (!fork()) {
        own = 2;
        while (!word[0])
            syscall(SYS_futex, word, FUTEX_WAIT, 0, NULL, NULL, 0);
        word[1] = word[0] + own;
        abort();
    }
    usleep(1000);
    word[0] = 40;
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
    siginfo_t info;
    waitid(P_ALL, 0, &info, WEXITED);
    printf("%d %d %d %d\n", word[1], own, info.si_code == CLD_KILLED || info.si_code == CLD_DUMPED, info.si_status);
    return 0;
}
