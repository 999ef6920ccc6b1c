/* Pieces in plain C that each path compiles for its own instruction set, and the macros for its loops. */
#ifndef TERNARY_PIECES_H
#define TERNARY_PIECES_H
#include "problem.h"

INLINE int32_t round_even(float v) {
    /* |v| <= 128: adding 1.5 * 2^23 leaves the integer, rounded half to even, in the low mantissa bits. */
    float shifted = v + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    return bits - 0x4B400000;
}

/* Below this the reciprocal would overflow; such rows count as zero. */
#define SMALLEST 1e-30f

/* Quantize with one scale: rows of `row` floats become `padded` bytes each, with their sum. */
INLINE float quantize_body(const float *x, int64_t rows, int64_t row, int64_t padded, int8_t *q, int32_t *sums,
                           void (*permute)(int8_t *, int64_t)) {
    int32_t most = 0; /* absolute values compare as integers, and NaN above infinity */
    for (int64_t i = 0; i < rows * row; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7FFFFFFF;
        most = bits > most ? bits : most;
    }
    float absmax;
    memcpy(&absmax, &most, 4);
    const int finite = most < 0x7F800000;
    const float inverse = finite && absmax >= SMALLEST ? 127.0f / absmax : 0.0f;
    if (inverse == 0.0f) {
        memset(q, 0, (size_t)(rows * padded));
        if (sums) memset(sums, 0, (size_t)rows * sizeof *sums);
        if (finite) return 0.0f;
        most = 0x7FC00000;
        memcpy(&absmax, &most, 4);
        return absmax;
    }
    for (int64_t r = 0; r < rows; r++) {
        const float *from = x + r * row;
        int8_t *to = q + r * padded;
        int32_t sum = 0;
        for (int64_t i = 0; i < row; i++) {
            int32_t v = round_even(from[i] * inverse);
            to[i] = (int8_t)v;
            sum += v;
        }
        for (int64_t i = row; i < padded; i++) to[i] = 0;
        if (sums) sums[r] = sum;
        if (permute) permute(to, padded);
    }
    return absmax / 127.0f;
}

INLINE void finish_body(const int32_t *acc, int64_t n, int32_t offset, float x_scale, const float *scale,
                        const float *bias, float *y) {
    if (bias)
        for (int64_t i = 0; i < n; i++) y[i] = (float)(acc[i] - offset) * x_scale * scale[i] + bias[i];
    else
        for (int64_t i = 0; i < n; i++) y[i] = (float)(acc[i] - offset) * x_scale * scale[i];
}

#define TAPS_PER_FLUSH 256 /* 256 * 127 fits 16 bits */

INLINE void taps_body(const int8_t *const *q, const int8_t *const *w, int64_t count, int64_t n, int32_t *acc) {
    int64_t c = 0;
#if defined(__GNUC__)
    typedef int8_t bytes __attribute__((vector_size(32)));
    typedef int16_t words __attribute__((vector_size(64)));
    for (; c + 32 <= n; c += 32) {
        words sum = {0};
        for (int64_t t = 0; t < count; t++) {
            bytes x, y;
            memcpy(&x, q[t] + c, 32);
            memcpy(&y, w[t] + c, 32);
            sum += __builtin_convertvector(x, words) * __builtin_convertvector(y, words);
        }
        for (int l = 0; l < 32; l++) acc[c + l] += sum[l];
    }
#endif
    for (; c < n; c++)
        for (int64_t t = 0; t < count; t++) acc[c] += q[t][c] * w[t][c];
}

INLINE void taps8_body(const int8_t *const *q, const int8_t *const *w, int64_t count, int64_t n, int32_t *acc) {
    int64_t c = 0;
#if defined(__GNUC__)
    typedef int8_t bytes __attribute__((vector_size(16)));
    typedef int16_t words __attribute__((vector_size(32)));
    typedef int32_t longs __attribute__((vector_size(64)));
    for (; c + 16 <= n; c += 16) {
        longs sum = {0};
        for (int64_t t = 0; t < count; t++) {
            bytes x, y;
            memcpy(&x, q[t] + c, 16);
            memcpy(&y, w[t] + c, 16);
            const words product = __builtin_convertvector(x, words) * __builtin_convertvector(y, words);
            sum += __builtin_convertvector(product, longs);
        }
        for (int l = 0; l < 16; l++) acc[c + l] += sum[l];
    }
#endif
    for (; c < n; c++)
        for (int64_t t = 0; t < count; t++) acc[c] += q[t][c] * w[t][c];
}

#define PIECES(suffix, attribute)                                                                                      \
    attribute static float quantize_##suffix(const float *x, int64_t rows, int64_t row, int64_t padded, int permute,   \
                                             int8_t *q, int32_t *sums) {                                               \
        return permute ? quantize_body(x, rows, row, padded, q, sums, permute_##suffix)                                \
                       : quantize_body(x, rows, row, padded, q, sums, NULL);                                           \
    }                                                                                                                  \
    attribute static void finish_##suffix(const int32_t *acc, int64_t n, int32_t offset, float x_scale,                \
                                          const float *scale, const float *bias, float *y) {                           \
        finish_body(acc, n, offset, x_scale, scale, bias, y);                                                          \
    }                                                                                                                  \
    attribute static void taps_##suffix(const int8_t *const *q, const int8_t *const *w, int64_t count, int64_t n,      \
                                        int32_t *acc) {                                                                \
        taps_body(q, w, count, n, acc);                                                                                \
    }                                                                                                                  \
    attribute static void taps8_##suffix(const int8_t *const *q, const int8_t *const *w, int64_t count, int64_t n,     \
                                         int32_t *acc) {                                                               \
        taps8_body(q, w, count, n, acc);                                                                               \
    }

#if HAVE_X86 || HAVE_NEON
/* Weights lie in the order in which they are read: prefetch this many bytes ahead, into the second-level cache. A
 * core's own prefetcher stops at the end of a page, and sums leave loads little room to run ahead in the reorder buffer.
 * An address past the end is harmless: a prefetch never faults. */
#define BYTES_AHEAD 8192
#define FETCH(tile, ahead, level) __builtin_prefetch((const void *)((uintptr_t)(tile) + (uintptr_t)(ahead)), 0, level)
#define FETCH_AHEAD(tile) FETCH(tile, BYTES_AHEAD, 2)

/* One row waits for memory alone. Where weights lie in small pages, as those of a mapped file do, a request for every
 * line takes longer than the processor's own prefetcher does; it only stops at the end of a page. So where one of the
 * next `bytes` begins a page, ask for the first lines of the page behind it. */
INLINE void fetch_next_page(const void *from, int64_t bytes) {
    if (((uintptr_t)from & 4095) < (uintptr_t)bytes) {
        FETCH(from, 4096, 3);
        FETCH(from, 4096 + 64, 3);
        FETCH(from, 4096 + 128, 3);
        FETCH(from, 4096 + 192, 3);
    }
}

/* A path whose tile is one strip wide: its body, compiled for each number of rows. */
#define ROWS(name, n) case n: multiply##name##_body(n, t, k16, panel, a, 16 * strips); break;
#define BY_STRIPS(name, attribute, cases)                                                                              \
    attribute static void multiply##name(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16,     \
                                          const int8_t *panel, int32_t *acc) {                                         \
        for (int s = 0; s < strips; s++) {                                                                             \
            const uint8_t *t = tiles + s * stride;                                                                     \
            int32_t *a = acc + s * 16;                                                                                 \
            switch (rows) { cases }                                                                                    \
        }                                                                                                              \
    }
#endif

#if HAVE_X86
INLINE int32_t load32(const int8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}

TARGET_AVX2 static inline void permute_avx2(int8_t *q, int64_t n) {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t i = 0; i < n; i += 16)
        _mm_storeu_si128((void *)(q + i), _mm_shuffle_epi8(_mm_loadu_si128((const void *)(q + i)), order));
}
#endif

#endif
