/* ARM with the dot-product instructions. */
#include "pieces.h"

#if HAVE_NEON
static void permute_neon(int8_t *q, int64_t n) {
    static const uint8_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    for (int64_t i = 0; i < n; i += 16) vst1q_s8(q + i, vqtbl1q_s8(vld1q_s8(q + i), vld1q_u8(order)));
}

TARGET_NEON INLINE void multiply_neon_body(const int rows, const uint8_t *tiles, int64_t k16, const int8_t *panel,
                                           int32_t *acc, int64_t acc_stride) {
    const uint8x16_t three = vdupq_n_u8(3);
    int32x4_t a[4][4];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int q = 0; q < 4; q++) a[m][q] = vdupq_n_s32(0);
    for (int64_t k = 0; k < k16; k++) {
        uint8x16_t w[4];
        FETCH_AHEAD(tiles + k * 64);
        UNROLL for (int q = 0; q < 4; q++) w[q] = vld1q_u8(tiles + k * 64 + 16 * q);
        UNROLL for (int j = 0; j < 4; j++) {
            int8x16_t c[4];
            UNROLL for (int q = 0; q < 4; q++) {
                c[q] = vreinterpretq_s8_u8(vandq_u8(w[q], three));
                w[q] = vshrq_n_u8(w[q], 2);
            }
            UNROLL for (int m = 0; m < rows; m++) {
                int32_t four;
                memcpy(&four, panel + (k * rows + m) * 16 + 4 * j, 4);
                const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
                UNROLL for (int q = 0; q < 4; q++) a[m][q] = vdotq_s32(a[m][q], c[q], x);
            }
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int q = 0; q < 4; q++) vst1q_s32(acc + m * acc_stride + 4 * q, a[m][q]);
}

BY_STRIPS(neon, TARGET_NEON, ROWS(neon, 1) ROWS(neon, 2) ROWS(neon, 3) ROWS(neon, 4))
PIECES(neon, TARGET_NEON)

const path_table ternary_neon = {4, 1, 1, multiply_neon, NULL, quantize_neon, finish_neon, taps_neon};
#endif
