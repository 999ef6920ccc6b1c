/* x86 with matrix registers (AMX-INT8). */
#include "pieces.h"

#if HAVE_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A product of 16 rows x 64 columns with 64 columns x 16 outputs takes 16 cycles. A field of a packed tile, 4 columns of
 * 16 outputs, is one row of the right operand, so 4 tiles give its 16 rows; the left operand is 64 bytes of each panel
 * row. Registers 0 to 3: sums of up to 2 x 16 rows and 2 strips; 4 and 5: rows; 6 and 7: strips.
 * Written out, since the compilers' own functions are not declared to read and write memory. */
#define TILE_LOAD(number, from, stride)                                                                                \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #number : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(number, to, stride)                                                                                 \
    __asm__ volatile("tilestored %%tmm" #number ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(stride)) : "memory")
#define TILE_ZERO(number) __asm__ volatile("tilezero %%tmm" #number : :)
#define TILE_MULTIPLY(sum, row, strip)                                                                                 \
    __asm__ volatile("tdpbsud %%tmm" #strip ", %%tmm" #row ", %%tmm" #sum : :)

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Rows of the right operand for up to 4 tiles of a strip; what stands behind them meets zeros. */
TARGET_AMX INLINE void unpack_amx(const uint8_t *tiles, int64_t count, uint8_t *to) {
    const __m512i three = _mm512_set1_epi8(3);
    for (int64_t t = 0; t < count; t++) {
        FETCH_AHEAD(tiles + t * 64);
        const __m512i w = _mm512_loadu_si512(tiles + t * 64);
        UNROLL for (int j = 0; j < 4; j++)
            _mm512_store_si512(to + (t * 4 + j) * 64, _mm512_and_si512(_mm512_srli_epi32(w, 2 * j), three));
    }
}

TARGET_AMX INLINE void multiply_amx_body(const int halves, const int strips, int rows, const uint8_t *tiles,
                                         int64_t stride, int64_t k16, const int8_t *panel, int32_t *acc) {
    uint8_t codes[2][2][1024] __attribute__((aligned(64)));
    const int64_t steps = (k16 + 3) / 4;
    memset(codes, 0, sizeof codes);
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int s = 0; s < strips; s++) unpack_amx(tiles + s * stride, k16 < 4 ? k16 : 4, codes[0][s]);
    for (int64_t k = 0; k < steps; k++) {
        /* The next step's codes are written while this one's are multiplied: what was just stored is slow to load. */
        const int64_t next = 4 * (k + 1), count = k16 - next < 4 ? k16 - next : 4;
        for (int s = 0; s < strips; s++) unpack_amx(tiles + s * stride + next * 64, count, codes[(k + 1) & 1][s]);
        const int8_t *from = panel + k * rows * 64;
        TILE_LOAD(6, codes[k & 1][0], 64);
        TILE_LOAD(4, from, 64);
        TILE_MULTIPLY(0, 4, 6);
        if (strips == 2) {
            TILE_LOAD(7, codes[k & 1][1], 64);
            TILE_MULTIPLY(1, 4, 7);
        }
        if (halves == 2) {
            TILE_LOAD(5, from + 16 * 64, 64);
            TILE_MULTIPLY(2, 5, 6);
            if (strips == 2) TILE_MULTIPLY(3, 5, 7);
        }
    }
    TILE_STORE(0, acc, 64 * strips);
    if (strips == 2) TILE_STORE(1, acc + 16, 64 * strips);
    if (halves == 2) {
        TILE_STORE(2, acc + 16 * 16 * strips, 64 * strips);
        if (strips == 2) TILE_STORE(3, acc + 16 * 16 * strips + 16, 64 * strips);
    }
}

TARGET_AMX static void multiply_amx(int rows, int strips, const uint8_t *tiles, int64_t stride, int64_t k16,
                                    const int8_t *panel, int32_t *acc) {
    tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    const int first = rows < 16 ? rows : 16, second = rows - first;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = (uint8_t)first;
    if (second) shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = (uint8_t)second;
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
    if (second && strips == 2) multiply_amx_body(2, 2, rows, tiles, stride, k16, panel, acc);
    else if (second) multiply_amx_body(2, 1, rows, tiles, stride, k16, panel, acc);
    else if (strips == 2) multiply_amx_body(1, 2, rows, tiles, stride, k16, panel, acc);
    else multiply_amx_body(1, 1, rows, tiles, stride, k16, panel, acc);
    __asm__ volatile("tilerelease" : :); /* else every switch to another thread saves 8 KiB */
}

/* The machine has the registers, and the kernel lets this process use them. */
int ternary_amx_allowed(void) {
    static int known; /* 0 not looked up yet, 1 no, 2 yes */
    int state = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!state) {
        unsigned a, b, c, d;
        const int has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 24 & 1 && d >> 25 & 1;
        /* arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA): from Linux 5.16 on, for all threads to come. */
        state = has && syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? 2 : 1;
        __atomic_store_n(&known, state, __ATOMIC_RELAXED);
    }
    return state == 2;
}

#define permute_amx permute_avx2
PIECES(amx, TARGET_VNNI)

const path_table ternary_amx = {32, 2, 4, multiply_amx, ternary_multiply_vnni_row, quantize_amx, finish_amx, taps_amx};
#endif
