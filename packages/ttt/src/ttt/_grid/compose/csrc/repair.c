/* Grids with a hidden colour, completed by a pattern. The functions of ../transforms/repair.py are the twins. */
#include "compose.h"

#define EXPORT __attribute__((visibility("default")))
#define MOST_PERIODS 260

/* Fill `out` if cells that lie p rows or q columns apart, each p rows `shear` columns further, agree wherever they are
 * not hidden, and each has one that is not. */
static int tiled(const uint8_t *grid, int h, int w, int hidden, int p, int q, int shear, uint8_t *out) {
    uint8_t tile[CELLS];
    int missing = p * q;
    memset(tile, 255, (size_t)(p * q));
    for (int pass = 0; pass < 2; pass++) {
        for (int r = 0, cell = 0; r < h; r++)
            for (int c = 0; c < w; c++, cell++) {
                uint8_t *at = &tile[r % p * q + (c + shear * (r / p)) % q];
                if (pass) {
                    out[cell] = *at;
                } else if (grid[cell] != hidden) {
                    if (*at == 255) *at = grid[cell], missing--;
                    if (*at != grid[cell]) return 0;
                }
            }
        if (missing) return 0;
    }
    return 1;
}

/* Complete a grid by the smallest repeating pattern, also a sheared one; 0 where none fits. */
EXPORT int repair_tiling(const uint8_t *grid, int h, int w, int hidden, uint8_t *out) {
    int tried = 0;
    for (int area = 1; area * 2 <= h * w; area++)
        for (int p = 1; p <= h && p <= area; p++) {
            int q = area / p;
            if (area % p || q > w) continue;
            if (tried++ >= MOST_PERIODS) return 0;
            if (tiled(grid, h, w, hidden, p, q, 0, out)) return 1;
            if (p <= 6 && h > p && (tiled(grid, h, w, hidden, p, q, 1, out) || tiled(grid, h, w, hidden, p, q, q - 1, out)))
                return 1;
        }
    return 0;
}

/* Complete a grid by the upright mirror line with the most agreeing and no contradicting cells; -1 where there is none,
 * else how many agree. */
EXPORT int repair_mirror(const uint8_t *grid, int h, int w, int hidden, uint8_t *out) {
    int best = -1, line = 0;
    for (int twice = w / 2; twice < w + w / 2; twice++) {
        int agree = 0, fits = 1, low = twice < w ? 0 : twice - w + 1;
        for (int r = 0; fits && r < h; r++)
            for (int c = low; fits && c < w && c <= twice; c++) {
                int here = grid[r * w + c], there = grid[r * w + twice - c];
                if (here == hidden || there == hidden) continue;
                fits = here == there;
                agree++;
            }
        if (fits && agree > 0 && agree > best) best = agree, line = twice;
    }
    if (best < 0) return -1;
    memcpy(out, grid, (size_t)(h * w));
    for (int r = 0; r < h; r++)
        for (int c = 0; c < w; c++)
            if (grid[r * w + c] == hidden && line - c >= 0 && line - c < w) out[r * w + c] = grid[r * w + line - c];
    return best;
}
