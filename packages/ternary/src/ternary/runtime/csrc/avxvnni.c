/* x86 with AVX-VNNI and no AVX-512, as most desktop processors: 256-bit dot products of unsigned and signed bytes. */
#include "pieces.h"

#if HAVE_AVXVNNI
/* One activation row: a sum for each two-bit field and half of a tile, as in vnni.c. Fields stay where they are, scaled by
 * 1, 4, 16, 64, and the sums are shifted back at the end. */
TARGET_AVXVNNI static void multiply_avxvnni_row(const uint8_t *tiles, int64_t k16, const int8_t *panel, int32_t *acc) {
    __m256i sum[4][2];
    UNROLL for (int j = 0; j < 4; j++) sum[j][0] = sum[j][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < k16; k++) {
        fetch_next_page(tiles + k * 64, 64);
        const __m256i low = _mm256_loadu_si256((const void *)(tiles + k * 64));
        const __m256i high = _mm256_loadu_si256((const void *)(tiles + k * 64 + 32));
        UNROLL for (int j = 0; j < 4; j++) {
            const __m256i field = _mm256_set1_epi8((char)(3 << 2 * j));
            const __m256i x = _mm256_set1_epi32(load32(panel + k * 16 + 4 * j));
            sum[j][0] = _mm256_dpbusd_avx_epi32(sum[j][0], _mm256_and_si256(low, field), x);
            sum[j][1] = _mm256_dpbusd_avx_epi32(sum[j][1], _mm256_and_si256(high, field), x);
        }
    }
    UNROLL for (int h = 0; h < 2; h++) {
        const __m256i first = _mm256_add_epi32(sum[0][h], _mm256_srai_epi32(sum[1][h], 2));
        const __m256i second = _mm256_add_epi32(_mm256_srai_epi32(sum[2][h], 4), _mm256_srai_epi32(sum[3][h], 6));
        _mm256_storeu_si256((void *)(acc + 8 * h), _mm256_add_epi32(first, second));
    }
}

TARGET_AVXVNNI INLINE void multiply_avxvnni_body(const int rows, const uint8_t *tiles, int64_t k16, const int8_t *panel,
                                                 int32_t *acc, int64_t acc_stride) {
    const __m256i three = _mm256_set1_epi8(3);
    __m256i a[6][2];
    UNROLL for (int m = 0; m < rows; m++) a[m][0] = a[m][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < k16; k++) {
        FETCH_AHEAD(tiles + k * 64);
        const __m256i low = _mm256_loadu_si256((const void *)(tiles + k * 64));
        const __m256i high = _mm256_loadu_si256((const void *)(tiles + k * 64 + 32));
        UNROLL for (int j = 0; j < 4; j++) {
            const __m256i wl = _mm256_and_si256(_mm256_srli_epi32(low, 2 * j), three);
            const __m256i wh = _mm256_and_si256(_mm256_srli_epi32(high, 2 * j), three);
            UNROLL for (int m = 0; m < rows; m++) {
                const __m256i x = _mm256_set1_epi32(load32(panel + (k * rows + m) * 16 + 4 * j));
                a[m][0] = _mm256_dpbusd_avx_epi32(a[m][0], wl, x);
                a[m][1] = _mm256_dpbusd_avx_epi32(a[m][1], wh, x);
            }
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int h = 0; h < 2; h++) _mm256_storeu_si256((void *)(acc + m * acc_stride + 8 * h), a[m][h]);
}

BY_STRIPS(_avxvnni, TARGET_AVXVNNI, ROWS(_avxvnni, 1) ROWS(_avxvnni, 2) ROWS(_avxvnni, 3) ROWS(_avxvnni, 4)
          ROWS(_avxvnni, 5) ROWS(_avxvnni, 6))

#define permute_avxvnni permute_avx2
PIECES(avxvnni, TARGET_AVXVNNI)

/* The instruction wants one side unsigned: weights plus 128, so a product is too large by 128 times the activations. */
TARGET_AVXVNNI INLINE void multiply8_avxvnni_body(const int rows, const uint8_t *tiles, int64_t k16, const int8_t *panel,
                                                  int32_t *acc, int64_t acc_stride) {
    const __m256i half = _mm256_set1_epi8((char)0x80);
    __m256i a[6][2];
    UNROLL for (int m = 0; m < rows; m++) a[m][0] = a[m][1] = _mm256_setzero_si256();
    for (int64_t k = 0; k < 4 * k16; k++) {
        FETCH_AHEAD(tiles + k * 64);
        const __m256i low = _mm256_xor_si256(_mm256_loadu_si256((const void *)(tiles + k * 64)), half);
        const __m256i high = _mm256_xor_si256(_mm256_loadu_si256((const void *)(tiles + k * 64 + 32)), half);
        UNROLL for (int m = 0; m < rows; m++) {
            const __m256i x = _mm256_set1_epi32(load32(panel + (k / 4 * rows + m) * 16 + k % 4 * 4));
            a[m][0] = _mm256_dpbusd_avx_epi32(a[m][0], low, x);
            a[m][1] = _mm256_dpbusd_avx_epi32(a[m][1], high, x);
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int h = 0; h < 2; h++) _mm256_storeu_si256((void *)(acc + m * acc_stride + 8 * h), a[m][h]);
}

BY_STRIPS(8_avxvnni, TARGET_AVXVNNI, ROWS(8_avxvnni, 1) ROWS(8_avxvnni, 2) ROWS(8_avxvnni, 3) ROWS(8_avxvnni, 4)
          ROWS(8_avxvnni, 5) ROWS(8_avxvnni, 6))

const path_table ternary_avxvnni = {6, 1, 1, multiply_avxvnni, multiply_avxvnni_row, quantize_avxvnni, finish_avxvnni,
                                    taps_avxvnni, 6, 1, 128, multiply8_avxvnni, taps8_avxvnni};
#endif
