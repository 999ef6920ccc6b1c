/* x86 with AVX-512 VNNI: dot products of unsigned and signed bytes in 32 bits. */
#include "pieces.h"

#if HAVE_X86
/* One activation row: a chain for each two-bit field of two tiles, enough to hide the instruction's latency. Fields stay
 * where they are, scaled by 1, 4, 16, 64, and the sums are shifted back at the end; 32 bits hold that for more than
 * 500,000 columns (checked by the entry point). Written out, since compilers copy the sums from register to register
 * here, which costs a fifth of the time. The last operand is four activations in memory, broadcast. */
#define FIELD(sum, tile, j)                                                                                            \
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"                                                                             \
            : "+v"(sum)                                                                                                \
            : "v"(_mm512_and_si512(w##tile, _mm512_set1_epi8((char)(3 << 2 * j)))),                                    \
              "m"(*(const int8_t(*)[4])(panel + (k + tile) * 16 + 4 * j)))
#define TILE(tile)                                                                                                     \
    const __m512i w##tile = _mm512_loadu_si512(tiles + (k + tile) * 64);                                               \
    FIELD(a##tile, tile, 0);                                                                                           \
    FIELD(b##tile, tile, 1);                                                                                           \
    FIELD(c##tile, tile, 2);                                                                                           \
    FIELD(d##tile, tile, 3)

TARGET_VNNI void ternary_multiply_vnni_row(const uint8_t *tiles, int64_t k16, const int8_t *panel, int32_t *acc) {
    __m512i a0 = _mm512_setzero_si512(), b0 = a0, c0 = a0, d0 = a0, a1 = a0, b1 = a0, c1 = a0, d1 = a0;
    int64_t k = 0;
    for (; k + 2 <= k16; k += 2) {
        fetch_next_page(tiles + k * 64, 128);
        TILE(0);
        TILE(1);
    }
    if (k16 % 2) {
        TILE(0);
    }
    const __m512i a = _mm512_add_epi32(a0, a1), b = _mm512_srai_epi32(_mm512_add_epi32(b0, b1), 2);
    const __m512i c = _mm512_srai_epi32(_mm512_add_epi32(c0, c1), 4);
    const __m512i d = _mm512_srai_epi32(_mm512_add_epi32(d0, d1), 6);
    _mm512_storeu_si512(acc, _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)));
}

TARGET_VNNI INLINE void multiply_vnni_body(const int rows, const int strips, const uint8_t *tiles, int64_t stride,
                                           int64_t k16, const int8_t *panel, int32_t *acc) {
    const __m512i three = _mm512_set1_epi8(3);
    __m512i a[9][2];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int s = 0; s < strips; s++) a[m][s] = _mm512_setzero_si512();
    for (int64_t k = 0; k < k16; k++) {
        __m512i w[2];
        UNROLL for (int s = 0; s < strips; s++) {
            FETCH(tiles + s * stride + k * 64, strips * stride, 2); /* strips are read side by side: those that follow */
            w[s] = _mm512_loadu_si512(tiles + s * stride + k * 64);
        }
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i c[2];
            UNROLL for (int s = 0; s < strips; s++) c[s] = _mm512_and_si512(_mm512_srli_epi32(w[s], 2 * j), three);
            UNROLL for (int m = 0; m < rows; m++) {
                const __m512i x = _mm512_set1_epi32(load32(panel + (k * rows + m) * 16 + 4 * j));
                UNROLL for (int s = 0; s < strips; s++) a[m][s] = _mm512_dpbusd_epi32(a[m][s], c[s], x);
            }
        }
    }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int s = 0; s < strips; s++) _mm512_storeu_si512(acc + (m * strips + s) * 16, a[m][s]);
}

#define VNNI_CASE(n)                                                                                                   \
    case n:                                                                                                            \
        if (strips == 2) multiply_vnni_body(n, 2, tiles, stride, k16, panel, acc);                                     \
        else multiply_vnni_body(n, 1, tiles, stride, k16, panel, acc);                                                 \
        break;

TARGET_VNNI static void multiply_vnni(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16,
                                      const int8_t *panel, int32_t *acc) {
    switch (rows) {
    VNNI_CASE(2) VNNI_CASE(3) VNNI_CASE(4) VNNI_CASE(5) VNNI_CASE(6) VNNI_CASE(7)
    VNNI_CASE(8) VNNI_CASE(9)
    }
}

#define permute_vnni permute_avx2
PIECES(vnni, TARGET_VNNI)

/* The instruction wants one side unsigned: weights plus 128, so a product is too large by 128 times the activations. */
TARGET_VNNI INLINE void multiply8_vnni_body(const int rows, const int strips, const uint8_t *tiles, int64_t stride,
                                            int64_t k16, const int8_t *panel, int32_t *acc) {
    const __m512i half = _mm512_set1_epi8((char)0x80);
    __m512i a[12][2];
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int s = 0; s < strips; s++) a[m][s] = _mm512_setzero_si512();
    for (int64_t k = 0; k < k16; k++)
        UNROLL for (int j = 0; j < 4; j++) {
            __m512i w[2];
            UNROLL for (int s = 0; s < strips; s++) {
                FETCH_AHEAD(tiles + s * stride + k * 256 + j * 64);
                w[s] = _mm512_xor_si512(_mm512_loadu_si512(tiles + s * stride + k * 256 + j * 64), half);
            }
            UNROLL for (int m = 0; m < rows; m++) {
                const __m512i x = _mm512_set1_epi32(load32(panel + (k * rows + m) * 16 + 4 * j));
                UNROLL for (int s = 0; s < strips; s++) a[m][s] = _mm512_dpbusd_epi32(a[m][s], w[s], x);
            }
        }
    UNROLL for (int m = 0; m < rows; m++)
        UNROLL for (int s = 0; s < strips; s++) _mm512_storeu_si512(acc + (m * strips + s) * 16, a[m][s]);
}

#define VNNI8_CASE(n)                                                                                                  \
    case n:                                                                                                            \
        if (strips == 2) multiply8_vnni_body(n, 2, tiles, stride, k16, panel, acc);                                    \
        else multiply8_vnni_body(n, 1, tiles, stride, k16, panel, acc);                                                \
        break;

TARGET_VNNI void ternary_multiply8_vnni(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16,
                                        const int8_t *panel, int32_t *acc) {
    switch (rows) {
    VNNI8_CASE(1) VNNI8_CASE(2) VNNI8_CASE(3) VNNI8_CASE(4) VNNI8_CASE(5) VNNI8_CASE(6) VNNI8_CASE(7)
    VNNI8_CASE(8) VNNI8_CASE(9) VNNI8_CASE(10) VNNI8_CASE(11) VNNI8_CASE(12)
    }
}

/* 9 rows: with 10 and more the compilers move sums to memory and back, which costs a fifth of the time. */
const path_table ternary_vnni = {9, 2, 1, multiply_vnni, ternary_multiply_vnni_row, quantize_vnni, finish_vnni,
                                 taps_vnni, 12, 2, 128, ternary_multiply8_vnni, taps8_vnni};
#endif
