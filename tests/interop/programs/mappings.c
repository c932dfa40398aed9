// mappings SEED [CALLS]: mapping calls at random, each with its result; now and then a hash of what the CPU finds.
// To find out where two runs part: gcc -DVERBOSE -DHASH_EVERY=1.
//
// All happens in an arena at a fixed address, where the kernel puts nothing by itself, and in the heap. A line says
// what a call was and what it returned; of memory that the kernel placed outside the arena nothing but that. The CPU
// loads every byte, stores, and executes; where it may not, the signal's si_code and si_addr count. The files that are
// mapped are made in the current directory.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 64
#define ARENA (1ul << 40)
#define HEAP_PAGES 16
#ifndef HASH_EVERY
#define HASH_EVERY 50
#endif
#define LENGTH(a) (sizeof(a) / sizeof *(a))

static uint64_t state, hash;
static unsigned char *heap;
static int moves_many;  // mremap: since Linux 6.17
static int files[3];  // two to read, the first a short one; and one to be shared, which is written and cut

// --- numbers at random: splitmix64

static uint64_t next(void) {
    uint64_t z = state += 0x9e3779b97f4a7c15ul;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ul;
    z = (z ^ z >> 27) * 0x94d049bb133111ebul;
    return z ^ z >> 31;
}

static uint64_t below(uint64_t n) { return next() % n; }

static int one_in(uint64_t n) { return below(n) == 0; }

static unsigned char *place(void) { return (unsigned char *)ARENA + below(PAGES) * PAGE; }

static uint64_t length(void) { return (1 + below(one_in(4) ? 24 : 6)) * PAGE; }

static int rights(void) {
    static const int all[] = {PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
                              PROT_NONE, PROT_WRITE, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC};
    return all[below(LENGTH(all))];
}

// --- accesses by the CPU

static sigjmp_buf env;
static volatile int signo, code;
static unsigned char *volatile fault_addr;

static void on_fault(int number, siginfo_t *info, void *context) {
    signo = number;
    code = info->si_code;
    fault_addr = info->si_addr;
    siglongjmp(env, 1);
}

static void mix(uint64_t value) { hash = (hash ^ value) * 0x100000001b3ul ^ hash >> 29; }

static long relative(const void *addr) {
    if ((uintptr_t)addr >= ARENA && (uintptr_t)addr < ARENA + PAGES * PAGE) return (uintptr_t)addr - ARENA;
    if ((unsigned char *)addr >= heap && (unsigned char *)addr < heap + HEAP_PAGES * PAGE)
        return (1l << 30) + ((unsigned char *)addr - heap);
    return -1;
}

static void mix_fault(void) {
    mix(signo);
    mix(code);
    mix(relative(fault_addr));
}

static void load_page(const unsigned char *page) {
    if (sigsetjmp(env, 1)) return mix_fault();
    for (const volatile uint64_t *at = (const uint64_t *)page; at < (const uint64_t *)(page + PAGE); at++) mix(*at);
}

static void store(unsigned char *addr, uint64_t n) {
    if (sigsetjmp(env, 1)) return mix_fault();
    for (volatile unsigned char *at = addr; at < addr + n; at++) *at = next();
}

static void load_word(const unsigned char *addr) {  // which may lie over a page's edge
    if (sigsetjmp(env, 1)) return mix_fault();
    mix(*(const volatile uint64_t *)addr);
}

static void store_word(unsigned char *addr) {  // not over an edge: Unicorn stores what fits before it faults
    uint64_t value = next();
    if (sigsetjmp(env, 1)) return mix_fault();
    *(volatile uint64_t *)addr = value;
}

static void write_code(unsigned char *addr) {  // mov eax, value; ret
    uint32_t value = next();
    if (sigsetjmp(env, 1)) return mix_fault();
    addr[0] = 0xb8;
    memcpy(addr + 1, &value, 4);
    addr[5] = 0xc3;
}

static int is_code(const volatile unsigned char *addr) {
    if (sigsetjmp(env, 1)) return 0;
    return addr[0] == 0xb8 && addr[5] == 0xc3;
}

static void call(unsigned char *addr) {
    if (!is_code(addr)) return;
    if (sigsetjmp(env, 1)) return mix_fault();
    mix(((uint32_t(*)(void))addr)());
}

static void touch(void) {
    unsigned char *page = place(), *codes = page + (next() & 64);
    int kind = below(6);
    uint64_t n = 1 + below(one_in(3) ? 3 * PAGE : 64);
    if (kind == 0) load_word(page - 8 + below(16));
    if (kind == 0) store_word(page + below(PAGE - 7));
    if (kind == 1) write_code(codes);
    if (kind == 1 || kind == 2) call(codes);
    if (kind > 2) store(page + below(PAGE), n);
#ifdef VERBOSE
    printf("touch %d %lx %lx hash %lx\n", kind, relative(page), n, hash);
#endif
}

static void check(int number) {
    for (int i = 0; i < PAGES; i++) {
        load_page((unsigned char *)ARENA + i * PAGE);
#ifdef VERBOSE
        printf("%d page %x %016lx %d %d %lx\n", number, i, hash, signo, code, relative(fault_addr));
#endif
    }
    for (int i = 0; i < HEAP_PAGES; i++) load_page(heap + i * PAGE);
    printf("%d hash %016lx\n", number, hash);
}

// --- calls

static void say(const char *name, const void *addr, uint64_t n, long detail, long result) {
    printf("%s %lx %lx %lx: ", name, relative(addr), n, detail);
    if (result == -1)
        printf("errno %d\n", errno);
    else
        printf("%lx\n", result);
}

static void say_mapped(const char *name, const void *addr, uint64_t n, long detail, void *result) {
    long found = result == MAP_FAILED ? -1 : relative(result);
    say(name, addr, n, detail, result != MAP_FAILED && found < 0 ? 0xe15e : found);
    if (result != MAP_FAILED && found < 0) munmap(result, n);  // elsewhere
}

static void do_mmap(void) {
    static const int kinds[] = {MAP_PRIVATE, MAP_PRIVATE, MAP_PRIVATE, MAP_SHARED, MAP_SHARED};
    static const int more[] = {MAP_NORESERVE, MAP_POPULATE, MAP_LOCKED, MAP_STACK, MAP_GROWSDOWN};
    unsigned char *addr = place();
    uint64_t n = length(), offset = 0;
    int prot = rights(), flags = kinds[below(LENGTH(kinds))], fd = -1;
    if (one_in(3)) {
        fd = files[below(LENGTH(files))];
        if (fd == files[2]) flags = MAP_SHARED;  // an untouched private page shows what others write: not so here
        offset = below(6) * PAGE;
    } else {
        flags |= MAP_ANONYMOUS;
    }
    if (!one_in(4)) flags |= one_in(4) ? MAP_FIXED_NOREPLACE : MAP_FIXED;
    if (one_in(8)) flags |= more[below(LENGTH(more))];
    if (one_in(20)) addr += 1 + below(PAGE - 1);
    if (one_in(20)) n -= below(PAGE);
    if (one_in(60)) n = one_in(2) ? 0 : -PAGE;
    if (one_in(60)) flags &= ~(MAP_PRIVATE | MAP_SHARED);
    if (one_in(60)) offset += 512;
    say_mapped("mmap", addr, n, (long)flags << 8 | prot, mmap(addr, n, prot, flags, fd, offset));
}

static void do_munmap(void) {
    unsigned char *addr = place() + (one_in(30) ? 8 : 0);
    uint64_t n = one_in(30) ? 0 : length();
    say("munmap", addr, n, 0, munmap(addr, n));
}

static void do_mprotect(void) {
    unsigned char *addr = place() + (one_in(30) ? 8 : 0);
    uint64_t n = length() - (one_in(10) ? below(PAGE) : 0);
    int prot = one_in(40) ? 1 << 7 : rights();
    if (one_in(40)) prot |= PROT_GROWSDOWN;
    say("mprotect", addr, n, prot, mprotect(addr, n, prot));
}

static void do_mremap(void) {
    unsigned char *addr = place() + (one_in(40) ? 8 : 0), *to = place() + (one_in(40) ? 8 : 0);
    uint64_t n = one_in(12) ? 0 : length(), size = !n || one_in(2) ? length() : n;
    int flags = one_in(2) ? MREMAP_MAYMOVE | MREMAP_FIXED : one_in(2) ? 7 : below(8);
    if (flags & 4 && !one_in(10)) size = n;
    if (n > PAGE && size > PAGE && (n != size || !(flags & MREMAP_FIXED) || !moves_many)) {
        // Where private memory was written apart and is alike now, the kernel has a boundary that nothing else shows.
        n = PAGE;
        if (flags & 4) size = n;
    }
    if (one_in(40)) flags |= 8;
    if (one_in(40)) size = 0;
    if (n == 0 && !(flags & MREMAP_FIXED)) flags |= MREMAP_MAYMOVE;
    void *found = (void *)syscall(SYS_mremap, addr, n, size, flags, to);
    printf("to %lx ", relative(to));
    say_mapped("mremap", addr, size, (long)n << 8 | flags, found);
}

static void do_madvise(void) {
    static const int all[] = {MADV_DONTNEED,      MADV_DONTNEED,  MADV_DONTNEED,      MADV_FREE,       MADV_REMOVE,
                              MADV_NORMAL,        MADV_RANDOM,    MADV_SEQUENTIAL,    MADV_WILLNEED,   MADV_DONTFORK,
                              MADV_DOFORK,        MADV_DONTDUMP,  MADV_DODUMP,        MADV_WIPEONFORK, MADV_KEEPONFORK,
                              20 /* COLD */,      22 /* POPULATE_READ */, 23 /* POPULATE_WRITE */,
                              24 /* DONTNEED_LOCKED */, 102 /* GUARD_INSTALL */, 103 /* GUARD_REMOVE */, 77};
    unsigned char *addr = place() + (one_in(40) ? 8 : 0);
    uint64_t n = one_in(40) ? 0 : length();
    int advice = all[below(LENGTH(all))];
    say("madvise", addr, n, advice, madvise(addr, n, advice));
}

static void do_brk(void) {
    unsigned char *end = heap + below(HEAP_PAGES * PAGE);
    if (one_in(2)) end = heap + below(HEAP_PAGES) * PAGE;
    say("brk", end, 0, 0, relative((void *)syscall(SYS_brk, end)));
    if (!one_in(3)) store(heap + below(HEAP_PAGES) * PAGE, 1 + below(PAGE));
}

static void do_msync(void) {
    unsigned char *addr = place() + (one_in(40) ? 8 : 0);
    uint64_t n = length();
    int flags = below(8);
    say("msync", addr, n, flags, msync(addr, n, flags));
}

static void do_mincore(void) {
    unsigned char vector[PAGES], *addr = place() + (one_in(40) ? 8 : 0);
    uint64_t n = length();
    say("mincore", addr, n, 0, mincore(addr, n, vector));
}

static void do_mlock(void) {
    unsigned char *addr = place();
    uint64_t n = length();
    int which = below(3);
    say("mlock", addr, n, which, which == 0 ? mlock(addr, n) : which == 1 ? munlock(addr, n) : mlock2(addr, n, MLOCK_ONFAULT));
}

static void do_read(void) {
    unsigned char *addr = place() + below(PAGE);
    uint64_t n = below(3 * PAGE), offset = below(4 * PAGE);
    say("pread", addr, n, offset, pread(files[1], addr, n, offset));
}

static void do_write(void) {
    uint64_t words[8], n = 1 + below(sizeof words), offset = below(10 * PAGE);
    for (unsigned i = 0; i < LENGTH(words); i++) words[i] = next();
    say("pwrite", NULL, n, offset, pwrite(files[2], words, n, offset));
}

static void do_truncate(void) {
    uint64_t size = one_in(2) ? 10 * PAGE : below(12 * PAGE);
    say("ftruncate", NULL, size, 0, ftruncate(files[2], size));
}

static void make_files(void) {
    static const char *const names[] = {"short", "long", "third"};
    static const int pages[] = {3, 12, 10};
    for (unsigned i = 0; i < LENGTH(files); i++) {
        int fd = open(names[i], O_CREAT | O_TRUNC | O_WRONLY, 0600);
        for (int left = pages[i] * PAGE - (i == 0 ? 3000 : 0); left > 0; left -= 8) {
            uint64_t word = next();
            write(fd, &word, left < 8 ? left : 8);
        }
        close(fd);
        files[i] = open(names[i], i == 2 ? O_RDWR : O_RDONLY);
    }
}

int main(int argc, char **argv) {
    static void (*const calls[])(void) = {do_mmap,    do_mmap,   do_mmap,    do_munmap, do_mprotect, do_mprotect, do_mremap,
                                          do_mremap,  do_madvise, do_madvise, do_brk,   do_msync,    do_mincore,  do_mlock,
                                          do_read,    do_write,  do_truncate};
    static char buffer[1 << 16];
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    int count = argc > 2 ? atoi(argv[2]) : 1500;
    struct utsname system;
    int major = 0, minor = 0;
    uname(&system);
    sscanf(system.release, "%d.%d", &major, &minor);
    moves_many = major > 6 || (major == 6 && minor >= 17);
    state = strtoul(argv[1], NULL, 0);
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    make_files();
    heap = (unsigned char *)(((uintptr_t)sbrk(0) + PAGE - 1) & -PAGE);
    brk(heap);
    for (int i = 0; i < count; i++) {
        printf("%d ", i);
        calls[below(LENGTH(calls))]();
        for (int n = below(4); n > 0; n--) touch();
        if (i % HASH_EVERY == HASH_EVERY - 1) check(i);
    }
    return 0;
}
