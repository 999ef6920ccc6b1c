/* Which columns over cells can explain the outputs; cells are bits. screening.py has the twin and says what is asked. */
#include <stddef.h>

#include "compose.h"

#define EXPORT __attribute__((visibility("default")))
#define MOST_CELLS 4800
#define MOST_WORDS (MOST_CELLS / 64)
#define MOST_KEYS 64

/* The cells of each code of a column as bits. */
static void marks_of(const uint8_t *codes, int cells, int keys, int words, uint64_t marks[][MOST_WORDS]) {
    for (int k = 0; k < keys; k++) memset(marks[k], 0, sizeof(uint64_t) * (size_t)words);
    for (int i = 0; i < cells; i++) marks[codes[i]][i >> 6] |= (uint64_t)1 << (i & 63);
}

static int meets(const uint64_t *a, const uint64_t *b, int words) {
    for (int w = 0; w < words; w++)
        if (a[w] & b[w]) return 1;
    return 0;
}

/* For each code of each column and each paint: whether the paint is wrong in a cell of that code. */
EXPORT void screen_wrong(const uint8_t *codes, const int32_t *keys, int columns, int cells, const uint64_t *wrong,
                         int paints, int words, uint8_t *out) {
    uint64_t marks[MOST_KEYS][MOST_WORDS];
    for (int c = 0; c < columns; c++) {
        marks_of(codes + (size_t)c * (size_t)cells, cells, keys[c], words, marks);
        for (int k = 0; k < keys[c]; k++)
            for (int p = 0; p < paints; p++) *out++ = (uint8_t)meets(marks[k], wrong + (size_t)p * (size_t)words, words);
    }
}

/* For each column the mistakes that remain if each of its codes takes its best paint. */
EXPORT void screen_least(const uint8_t *codes, const int32_t *keys, int columns, int cells, const uint64_t *wrong,
                         int paints, int words, int32_t *out) {
    uint64_t marks[MOST_KEYS][MOST_WORDS];
    for (int c = 0; c < columns; c++) {
        marks_of(codes + (size_t)c * (size_t)cells, cells, keys[c], words, marks);
        out[c] = 0;
        for (int k = 0; k < keys[c]; k++) {
            int least = cells;
            for (int p = 0; p < paints && least; p++) {
                int mistakes = 0;
                for (int w = 0; w < words && mistakes < least; w++)
                    mistakes += __builtin_popcountll(marks[k][w] & wrong[(size_t)p * (size_t)words + (size_t)w]);
                if (mistakes < least) least = mistakes;
            }
            out[c] += least;
        }
    }
}

/* Whether each joint code that occurs has a paint without a mistake. */
static int pair_fits(uint64_t a[][MOST_WORDS], int n, uint64_t b[][MOST_WORDS], int m, const uint64_t *wrong, int paints,
                     int words) {
    uint64_t joint[MOST_WORDS];
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) {
            uint64_t any = 0;
            for (int w = 0; w < words; w++) any |= joint[w] = a[i][w] & b[j][w];
            int p = any ? 0 : paints;
            while (p < paints && meets(joint, wrong + (size_t)p * (size_t)words, words)) p++;
            if (any && p == paints) return 0;
        }
    return 1;
}

/* Pairs of columns, one of the first ones and a later one, whose joint codes all have a paint without a mistake.
 * Writes two numbers for each; returns how many. */
EXPORT int screen_pairs(const uint8_t *codes, const int32_t *keys, int columns, int firsts, int cells,
                        const uint64_t *wrong, int paints, int words, int32_t *out) {
    uint64_t first[MOST_KEYS][MOST_WORDS], second[MOST_KEYS][MOST_WORDS];
    int found = 0;
    for (int i = 0; i < firsts && i < columns; i++) {
        marks_of(codes + (size_t)i * (size_t)cells, cells, keys[i], words, first);
        for (int j = i + 1; j < columns; j++) {
            marks_of(codes + (size_t)j * (size_t)cells, cells, keys[j], words, second);
            if (pair_fits(first, keys[i], second, keys[j], wrong, paints, words)) {
                out[2 * found] = i;
                out[2 * found++ + 1] = j;
            }
        }
    }
    return found;
}

/* Pairs of rows of bits without a common one; writes two numbers for each, at most `most`, and returns how many. */
EXPORT int screen_disjoint(const uint64_t *rows, int count, int words, int most, int32_t *out) {
    int found = 0;
    for (int i = 0; i < count; i++)
        for (int j = i + 1; j < count && found < most; j++)
            if (!meets(rows + (size_t)i * (size_t)words, rows + (size_t)j * (size_t)words, words)) {
                out[2 * found] = i;
                out[2 * found++ + 1] = j;
            }
    return found;
}
