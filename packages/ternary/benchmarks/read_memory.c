/* Prints the GB/s at which so many threads read a file once it is in memory: the limit of a decoder's tokens per second. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

static const char *memory;
static size_t size, threads;

static int by_processor;

static double now(void) {
    struct timespec t;
    clock_gettime(by_processor ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *read_part(void *index) {
    typedef uint64_t words __attribute__((vector_size(64)));
    const size_t part = size / threads / 256 * 256;
    const words *from = (const words *)(memory + (size_t)index * part);
    words a = {0}, b = a, c = a, d = a;
    for (size_t i = 0; i < part / 64; i += 4) {
        a ^= from[i];
        b ^= from[i + 1];
        c ^= from[i + 2];
        d ^= from[i + 3];
    }
    a ^= b ^ c ^ d;
    volatile uint64_t kept = a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
    (void)kept;
    return NULL;
}

int main(int count, char **arguments) {
    struct stat status;
    by_processor = count == 4; /* a third argument: processor time, for one thread on a busy machine */
    const int file = count >= 3 ? open(arguments[1], O_RDONLY) : -1;
    if (file < 0 || fstat(file, &status)) return 1;
    size = (size_t)status.st_size;
    threads = (size_t)atoi(arguments[2]);
    memory = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
    if (memory == MAP_FAILED || threads < 1 || threads > 64) return 1;
    double best = 1e9;
    for (int repeat = 0; repeat < 4; repeat++) {
        pthread_t thread[64];
        const double begin = now();
        for (size_t t = 0; t < threads; t++) pthread_create(&thread[t], NULL, read_part, (void *)t);
        for (size_t t = 0; t < threads; t++) pthread_join(thread[t], NULL);
        const double took = now() - begin;
        best = took < best ? took : best;
    }
    printf("%.3f\n", (double)size / best / 1e9);
    return 0;
}
