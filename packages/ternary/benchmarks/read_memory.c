/* Reads memory with so many threads as fast as they can: the limit of a decoder's tokens per second. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *const *from;
    const size_t *size;
    size_t count, threads, which;
} share;

/* Reads one of `threads` shares of every part. */
static void *read_share(void *given) {
    typedef uint64_t words __attribute__((vector_size(64)));
    const share *s = given;
    words a = {0}, b = a, c = a, d = a;
    for (size_t p = 0; p < s->count; p++) {
        const size_t each = s->size[p] / s->threads / 256 * 4, begin = s->which * each;
        const size_t end = s->which + 1 < s->threads ? begin + each : s->size[p] / 64;
        const words *from = (const words *)s->from[p];
        for (size_t i = begin; i + 4 <= end; i += 4) {
            a ^= from[i];
            b ^= from[i + 1];
            c ^= from[i + 2];
            d ^= from[i + 3];
        }
    }
    a ^= b ^ c ^ d;
    volatile uint64_t kept = a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7];
    (void)kept;
    return NULL;
}

/* Each part lies on a cache line. */
void read_memory(const char *const *from, const size_t *size, size_t count, size_t threads) {
    pthread_t helper[64];
    share shares[64];
    if (threads > 64) return;
    for (size_t t = 0; t < threads; t++) shares[t] = (share){from, size, count, threads, t};
    for (size_t t = 1; t < threads; t++) pthread_create(&helper[t], NULL, read_share, &shares[t]);
    read_share(&shares[0]);
    for (size_t t = 1; t < threads; t++) pthread_join(helper[t], NULL);
}
