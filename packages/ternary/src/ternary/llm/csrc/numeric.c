/* The functions of numeric.h, compiled for each instruction set, and the head's products with VNNI. */
#include "numeric.h"

#define NUMERIC(suffix, attribute, registers, dots_function)                                                           \
    attribute static void norm_##suffix(const float *x, const float *weight, int64_t n, float epsilon, float *y) {     \
        norm_body(x, weight, n, epsilon, y);                                                                           \
    }                                                                                                                  \
    attribute static void gate_##suffix(float *gate, const float *up, int64_t n, int64_t activation) {                 \
        gate_body(gate, up, n, activation);                                                                            \
    }                                                                                                                  \
    attribute static void store_##suffix(const llm_model *m, const llm_cache *c, int64_t layer, int64_t kv_head,       \
                                         int64_t position, const float *key, const float *value) {                     \
        store_body(m, c, layer, kv_head, position, key, value);                                                        \
    }                                                                                                                  \
    attribute static void attend_##suffix(const attention *a) {                                                        \
        if (a->model->cache_bits == 8) attend_body(a, NARROW | (registers));                                           \
        else attend_body(a, WIDE | (registers));                                                                       \
    }                                                                                                                  \
    attribute static float widen_##suffix(const float *x, int64_t n, int8_t *high, int8_t *low, int32_t *sums) {       \
        return widen_body(x, n, high, low, sums);                                                                      \
    }                                                                                                                  \
    static const llm_numeric numeric_##suffix = {norm_##suffix,   gate_##suffix,  store_##suffix,                      \
                                                 attend_##suffix, widen_##suffix, dots_function};

#define PLAIN_DOTS(suffix, attribute)                                                                                  \
    attribute static void dots_##suffix(const int8_t *weight, const float *scale, int64_t count, int64_t n,            \
                                        const int8_t *planes, const int32_t *sums, const float *x_scale, int64_t rows, \
                                        float *out, int64_t stride) {                                                  \
        (void)sums;                                                                                                    \
        dots_body(weight, scale, count, n, planes, x_scale, rows, out, stride);                                        \
    }

PLAIN_DOTS(portable, )
NUMERIC(portable, , 0, dots_portable)

#if HAVE_X86
PLAIN_DOTS(avx2, TARGET_AVX2)
NUMERIC(avx2, TARGET_AVX2, 0, dots_avx2)

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
            __builtin_prefetch((const void *)((uintptr_t)(weight + i * n + j) + 4096), 0, 2);
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

NUMERIC(vnni, TARGET_VNNI, LONG_REGISTERS, dots_vnni)
#endif

const llm_numeric *ternary_llm_numeric(int64_t path) {
#if HAVE_X86
    if (path == AVX2) return &numeric_avx2;
    if (path == AVX512VNNI || path == AMX) return &numeric_vnni;
#endif
    (void)path;
    return &numeric_portable;
}
