/* Which image, laid over the others, is right wherever it covers open cells; cells are bits. layers.py has the twin. */
#include <stddef.h>

#include "compose.h"

#define EXPORT __attribute__((visibility("default")))

/* Set bits, without the instruction for it: not every machine that runs the wheel has that. */
static inline int bits_in(uint64_t v) {
    v -= v >> 1 & 0x5555555555555555u;
    v = (v & 0x3333333333333333u) + (v >> 2 & 0x3333333333333333u);
    v = (v + (v >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
    return (int)(v * 0x0101010101010101u >> 56);
}

/* Lay the training cells of images out as bits: drawn, and equal to the target. `bit[i]` is where cell i goes. */
EXPORT void layers_bits(const uint8_t *colours, int images, int stride, const uint8_t *target, const int32_t *bit,
                        int cells, int words, uint64_t *drawn, uint64_t *right) {
    for (int k = 0; k < images; k++)
        for (int i = 0; i < cells; i++) {
            uint64_t one = (uint64_t)1 << (bit[i] & 63);
            size_t at = (size_t)k * (size_t)words + (size_t)(bit[i] >> 6);
            uint8_t colour = colours[(size_t)k * (size_t)stride + (size_t)i];
            if (colour) drawn[at] |= one;
            if (colour == target[i]) right[at] |= one;
        }
}

/* The colour that all marked cells want; -1 where there are two, -2 where no cell is marked. */
static int single_colour(const uint64_t *marked, const uint64_t *wanted, int words) {
    int first = 0, colour = 0;
    while (first < words && !marked[first]) first++;
    if (first == words) return -2;
    uint64_t lowest = marked[first] & (~marked[first] + 1);
    while (!(wanted[colour * words + first] & lowest)) colour++;
    for (int w = first; w < words; w++)
        if (marked[w] & ~wanted[colour * words + w]) return -1;
    return colour;
}

/* How useful each image is as the next layer: for its own colours, for one colour where it is drawn, and where empty.
 * `value` is 0 where it would be wrong; else the mean share of the open cells that it takes, over its cost. */
EXPORT void layers_score(const uint64_t *drawn, const uint64_t *right, const uint64_t *open, const uint64_t *wanted,
                         const int32_t *word_of_pair, int pairs, int images, int words, const int32_t *cost,
                         int32_t *value, uint8_t *colour) {
    uint64_t marked[3][LARGEST * LARGEST];
    int all[LARGEST * LARGEST] = {0}; /* open cells of each pair */
    for (int p = 0; p < pairs; p++)
        for (int w = word_of_pair[p]; w < word_of_pair[p + 1]; w++) all[p] += bits_in(open[w]);
    for (int k = 0; k < images; k++) {
        int wrong = 0;
        for (int w = 0; w < words; w++) {
            uint64_t here = drawn[(size_t)k * (size_t)words + (size_t)w] & open[w];
            marked[1][w] = here;
            marked[2][w] = open[w] & ~here;
            marked[0][w] = here & right[(size_t)k * (size_t)words + (size_t)w];
            wrong |= here != marked[0][w];
        }
        for (int use = 0; use < 3; use++) {
            int paints = use ? single_colour(marked[use], wanted, words) : 0;
            int64_t sum = 0;
            value[use * images + k] = 0;
            colour[use * images + k] = 0;
            if (use ? paints < 0 : wrong) continue;
            for (int p = 0; p < pairs; p++) {
                int taken = 0;
                for (int w = word_of_pair[p]; w < word_of_pair[p + 1]; w++) taken += bits_in(marked[use][w]);
                if (all[p]) sum += (int64_t)taken * 65536 / all[p];
            }
            value[use * images + k] = (int32_t)(sum * 16 / pairs / cost[k]);
            colour[use * images + k] = (uint8_t)paints;
        }
    }
}

/* The first image that is right on all open cells, -1 if there is none. */
EXPORT int layers_bottom(const uint64_t *right, const uint64_t *open, int images, int words) {
    for (int k = 0; k < images; k++) {
        int w = 0;
        while (w < words && !(open[w] & ~right[(size_t)k * (size_t)words + (size_t)w])) w++;
        if (w == words) return k;
    }
    return -1;
}
