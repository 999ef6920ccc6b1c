/* Reads memory with so many threads as fast as they can: the limit of a decoder's tokens per second. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *from;
    size_t size;
} part;

static void *read_part(void *given) {
    typedef uint64_t words __attribute__((vector_size(64)));
    const part *p = given;
    const words *from = (const words *)p->from;
    words a = {0}, b = a, c = a, d = a;
    for (size_t i = 0; i + 4 <= p->size / 64; i += 4) {
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

/* `from` lies on a cache line. */
void read_memory(const char *from, size_t size, size_t threads) {
    pthread_t helper[64];
    part parts[64];
    const size_t each = size / threads / 256 * 256;
    if (threads > 64) return;
    for (size_t t = 0; t < threads; t++) parts[t] = (part){from + t * each, t + 1 < threads ? each : size - t * each};
    for (size_t t = 1; t < threads; t++) pthread_create(&helper[t], NULL, read_part, &parts[t]);
    read_part(&parts[0]);
    for (size_t t = 1; t < threads; t++) pthread_join(helper[t], NULL);
}
