/* Norms, attention and the head with AVX2. */
#define PARTS 2
#include "numeric.h"

#if HAVE_X86
/* The head multiplies in 16 bits, of which x then has one plane: 32-bit numbers in place of those of high and low bytes. */
TARGET_AVX2 static float widen_words(const float *x, int64_t n, int8_t *planes, int8_t *low, int32_t *sums) {
    const float most = largest(x, n), inverse = inverse_of(most, 32512.0f);
    int16_t *to = (int16_t *)(void *)planes;
    (void)low;
    (void)sums;
    for (int64_t i = 0; i < n; i++) to[i] = (int16_t)nearest(x[i] * inverse);
    return most >= TINY ? most / 32512.0f : 0.0f;
}

/* A pair of products is at most 2 * 128 * 32512, so 32 bits hold 256 of them. */
#define WEIGHTS_PER_FLUSH (256 * 32)

TARGET_AVX2 INLINE __m256i in_64_bits(__m256i v) {
    return _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(v)),
                            _mm256_cvtepi32_epi64(_mm256_extracti128_si256(v, 1)));
}

TARGET_AVX2 INLINE void dots_avx2_rows(const int8_t *weight, const float *scale, int64_t count, int64_t n,
                                       const int8_t *planes, const float *x_scale, const int rows, float *out,
                                       int64_t stride) {
    const int64_t whole = n / 32 * 32;
    const int16_t *x = (const int16_t *)(const void *)planes;
    for (int64_t i = 0; i < count; i++) {
        const int8_t *w = weight + i * n;
        __m256i total[4];
        UNROLL for (int r = 0; r < rows; r++) total[r] = _mm256_setzero_si256();
        for (int64_t j = 0; j < whole;) {
            const int64_t end = j + WEIGHTS_PER_FLUSH < whole ? j + WEIGHTS_PER_FLUSH : whole;
            __m256i sum[4][2];
            UNROLL for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
            for (; j < end; j += 32) {
                __builtin_prefetch((const void *)((uintptr_t)(w + j) + 4096), 0, 2);
                UNROLL for (int h = 0; h < 2; h++) {
                    const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w + j + 16 * h)));
                    UNROLL for (int r = 0; r < rows; r++) {
                        const __m256i y = _mm256_loadu_si256((const void *)(x + r * n + j + 16 * h));
                        sum[r][h] = _mm256_add_epi32(sum[r][h], _mm256_madd_epi16(v, y));
                    }
                }
            }
            UNROLL for (int r = 0; r < rows; r++) UNROLL for (int h = 0; h < 2; h++)
                total[r] = _mm256_add_epi64(total[r], in_64_bits(sum[r][h]));
        }
        UNROLL for (int r = 0; r < rows; r++) {
            int64_t part[4], product = 0;
            _mm256_storeu_si256((void *)part, total[r]);
            for (int64_t j = whole; j < n; j++) product += w[j] * x[r * n + j];
            product += part[0] + part[1] + part[2] + part[3];
            out[r * stride + i] = (float)product * x_scale[r] * scale[i];
        }
    }
}

TARGET_AVX2 static void dots_avx2(const int8_t *weight, const float *scale, int64_t count, int64_t n,
                                  const int8_t *planes, const int32_t *sums, const float *x_scale, int64_t rows,
                                  float *out, int64_t stride) {
    (void)sums;
    switch (rows) {
    case 1: dots_avx2_rows(weight, scale, count, n, planes, x_scale, 1, out, stride); break;
    case 2: dots_avx2_rows(weight, scale, count, n, planes, x_scale, 2, out, stride); break;
    case 3: dots_avx2_rows(weight, scale, count, n, planes, x_scale, 3, out, stride); break;
    default: dots_avx2_rows(weight, scale, count, n, planes, x_scale, 4, out, stride); break;
    }
}

NUMERIC(avx2, TARGET_AVX2, widen_words, dots_avx2)
#endif
