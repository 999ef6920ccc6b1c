/* Norms, attention and the head with AVX-512; the head's products with VNNI. */
#define PARTS 1
#include "numeric.h"
#include "pieces.h"

#if HAVE_X86
/* vpdpbusd multiplies unsigned with signed bytes: weights enter as value + 128, and 128 times the sum of the
 * activations is taken off. Two weight rows share what they load of the activations, so that several activation rows
 * are limited by the dot products and not by the loads. Rows of other lengths than whole registers go the plain way. */
TARGET_VNNI INLINE void dots_vnni_tile(const int8_t *weight, const float *scale, const int weights, int64_t n,
                                       const int8_t *planes, const int32_t *sums, const float *x_scale, const int rows,
                                       float *out, int64_t stride) {
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    __m512i high[4][2], low[4][2];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int i = 0; i < weights; i++) high[r][i] = low[r][i] = _mm512_setzero_si512();
    for (int64_t j = 0; j < n; j += 64) {
        __m512i w[2];
        UNROLL for (int i = 0; i < weights; i++) {
            if (weights == 1) fetch_next_page(weight + i * n + j, 64); /* as for one row of a product */
            else FETCH(weight + i * n + j, 4096, 2);
            w[i] = _mm512_xor_si512(_mm512_loadu_si512(weight + i * n + j), flip);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            const int8_t *x = planes + r * 2 * n + j;
            __m512i x_high = _mm512_loadu_si512(x), x_low = _mm512_loadu_si512(x + n);
            __asm__("" : "+v"(x_high), "+v"(x_low)); /* else compilers load them again for each weight row */
            UNROLL for (int i = 0; i < weights; i++) {
                high[r][i] = _mm512_dpbusd_epi32(high[r][i], w[i], x_high);
                low[r][i] = _mm512_dpbusd_epi32(low[r][i], w[i], x_low);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int i = 0; i < weights; i++)
            out[r * stride + i] = logit(_mm512_reduce_add_epi32(high[r][i]) - 128 * sums[2 * r],
                                        _mm512_reduce_add_epi32(low[r][i]) - 128 * sums[2 * r + 1], x_scale[r],
                                        scale[i]);
}

TARGET_VNNI INLINE void dots_vnni_rows(const int8_t *weight, const float *scale, int64_t count, int64_t n,
                                       const int8_t *planes, const int32_t *sums, const float *x_scale, const int rows,
                                       float *out, int64_t stride) {
    const int together = rows > 2 ? 2 : 1; /* one or two wait for memory, which is read best in one stream */
    int64_t i = 0;
    for (; i + together <= count; i += together)
        dots_vnni_tile(weight + i * n, scale + i, together, n, planes, sums, x_scale, rows, out + i, stride);
    for (; i < count; i++)
        dots_vnni_tile(weight + i * n, scale + i, 1, n, planes, sums, x_scale, rows, out + i, stride);
}

TARGET_VNNI static void dots_vnni(const int8_t *weight, const float *scale, int64_t count, int64_t n,
                                  const int8_t *planes, const int32_t *sums, const float *x_scale, int64_t rows,
                                  float *out, int64_t stride) {
    if (n % 64) {
        dots_body(weight, scale, count, n, planes, x_scale, rows, out, stride);
        return;
    }
    switch (rows) {
    case 1: dots_vnni_rows(weight, scale, count, n, planes, sums, x_scale, 1, out, stride); break;
    case 2: dots_vnni_rows(weight, scale, count, n, planes, sums, x_scale, 2, out, stride); break;
    case 3: dots_vnni_rows(weight, scale, count, n, planes, sums, x_scale, 3, out, stride); break;
    default: dots_vnni_rows(weight, scale, count, n, planes, sums, x_scale, 4, out, stride); break;
    }
}

WIDEN(vnni, TARGET_VNNI)
NUMERIC(vnni, TARGET_VNNI, widen_vnni, dots_vnni)
#endif
