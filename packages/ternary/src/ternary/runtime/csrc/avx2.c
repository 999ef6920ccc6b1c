/* x86 with AVX2: multiply-add of unsigned and signed bytes in 16 bits. */
#include "pieces.h"

#if HAVE_X86
/* A code is at most 2 and an activation at most 127 in magnitude, so a 16-bit sum of pairs grows by at most 508 a step:
 * 64 steps (16 tiles of 4) end at 32512, then the sums move to 32 bits. */
#define TILES_PER_FLUSH 16

TARGET_AVX2 INLINE void multiply_avx2_body(const int rows, const uint8_t *tiles, int64_t k16, const int8_t *panel,
                                           int32_t *acc, int64_t acc_stride) {
    const __m256i three = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    for (int m = 0; m < rows; m++) memset(acc + m * acc_stride, 0, 64);
    for (int64_t start = 0; start < k16; start += TILES_PER_FLUSH) {
        const int64_t end = start + TILES_PER_FLUSH < k16 ? start + TILES_PER_FLUSH : k16;
        __m256i a[6][2];
        UNROLL for (int m = 0; m < rows; m++) a[m][0] = a[m][1] = _mm256_setzero_si256();
        for (int64_t k = start; k < end; k++) {
            FETCH_AHEAD(tiles + k * 64);
            const __m256i low = _mm256_loadu_si256((const void *)(tiles + k * 64));
            const __m256i high = _mm256_loadu_si256((const void *)(tiles + k * 64 + 32));
            UNROLL for (int j = 0; j < 4; j++) {
                const __m256i wl = _mm256_and_si256(_mm256_srli_epi32(low, 2 * j), three);
                const __m256i wh = _mm256_and_si256(_mm256_srli_epi32(high, 2 * j), three);
                UNROLL for (int m = 0; m < rows; m++) {
                    const __m256i x = _mm256_set1_epi32(load32(panel + (k * rows + m) * 16 + 4 * j));
                    a[m][0] = _mm256_add_epi16(a[m][0], _mm256_maddubs_epi16(wl, x));
                    a[m][1] = _mm256_add_epi16(a[m][1], _mm256_maddubs_epi16(wh, x));
                }
            }
        }
        UNROLL for (int m = 0; m < rows; m++)
            UNROLL for (int h = 0; h < 2; h++) {
                void *at = acc + m * acc_stride + 8 * h;
                const __m256i wide = _mm256_madd_epi16(a[m][h], ones);
                _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), wide));
            }
    }
}

BY_STRIPS(avx2, TARGET_AVX2, ROWS(avx2, 1) ROWS(avx2, 2) ROWS(avx2, 3) ROWS(avx2, 4) ROWS(avx2, 5) ROWS(avx2, 6))
PIECES(avx2, TARGET_AVX2)

const path_table ternary_avx2 = {6, 1, 1, multiply_avx2, NULL, quantize_avx2, finish_avx2, taps_avx2};
#endif
