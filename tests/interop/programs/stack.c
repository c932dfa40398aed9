/* A stack that grows to 7 MiB, and a heap. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long down(long left)
{
    char room[8192];
    memset(room, left & 127, sizeof room);
    return left ? down(left - 1) + room[4000] : room[1];
}

int main(void)
{
    printf("%ld\n", down(7 * 128));
    long sum = 0;
    for (int i = 1; i < 200; i++) {
        char *block = malloc(i * 4000);
        memset(block, i, i * 4000);
        sum += block[i * 4000 - 1];
        if (i % 3)
            free(block);
        else
            sum += ((char *)realloc(block, i * 8000))[5];
    }
    printf("%ld\n", sum);
    return 0;
}
