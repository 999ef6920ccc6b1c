/* The path of any C compiler. */
#include "pieces.h"

/* Columns of a group of 16 in the order 0 4 8 12, 1 5 9 13, 2 6 10 14, 3 7 11 15: a 4 x 4 transposition. */
static void permute_portable(int8_t *q, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        int8_t t[16];
        memcpy(t, q + i, 16);
        for (int j = 0; j < 16; j++) q[i + j] = t[(j & 3) * 4 + (j >> 2)];
    }
}

static void multiply_portable(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16,
                              const int8_t *panel, int32_t *acc) {
    memset(acc, 0, sizeof *acc * 16 * (size_t)rows * (size_t)strips);
    for (int s = 0; s < strips; s++)
        for (int64_t k = 0; k < k16; k++) {
            const uint8_t *tile = tiles + s * stride + k * 64;
            for (int m = 0; m < rows; m++) {
                const int8_t *x = panel + (k * rows + m) * 16;
                int32_t *a = acc + (m * strips + s) * 16;
                for (int n = 0; n < 16; n++) {
                    int32_t sum = 0;
                    for (int i = 0; i < 4; i++)
                        for (int j = 0; j < 4; j++) sum += (tile[n * 4 + i] >> 2 * j & 3) * x[4 * j + i];
                    a[n] += sum;
                }
            }
        }
}

PIECES(portable, )

const path_table ternary_portable = {4, 1, 1, multiply_portable, NULL, quantize_portable, finish_portable, taps_portable};
