/* Threads that count under a mutex, and one that waits for a condition with a time limit. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>

enum { THREADS = 4, TIMES = 500 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static long counter;
static volatile int flag;
static __thread int own;

static void *count(void *name)
{
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < TIMES; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        own++;
        pthread_mutex_unlock(&mutex);
    }
    return (void *)(own + (long)name);
}

static void *spin(void *unused)
{
    while (!flag)
        ;
    return unused;
}

int main(void)
{
    pthread_t threads[THREADS], spinning;
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (long i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, count, (void *)i);
    long sum = 0;
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(threads[i], &result);
        sum += (long)result;
    }
    pthread_create(&spinning, NULL, spin, NULL);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 20000000;
    if (until.tv_nsec >= 1000000000)
        until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&mutex);
    int late = pthread_cond_timedwait(&never, &mutex, &until);
    pthread_mutex_unlock(&mutex);
    flag = 1;
    pthread_join(spinning, NULL);
    printf("%ld %ld %d\n", counter, sum, late == ETIMEDOUT);
    return 5;
}
