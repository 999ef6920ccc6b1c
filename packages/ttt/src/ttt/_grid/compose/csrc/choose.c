/* Paints chosen by the codes of cells. The function of ../cell_rules.py called `chosen_paints` is the twin. */
#include <stdlib.h>

#include "compose.h"

#define EXPORT __attribute__((visibility("default")))

/* Paints over cells: `cells` colours for each of `paints`, of which the first `known` cells have a wanted colour. */
typedef struct {
    int32_t paints, cells, known, sampled;
    const uint8_t *colours, *wanted;
    const uint8_t *free; /* paints that cost nothing */
    const int32_t *name; /* equal for paints of one name */
} Paints;

/* Whether a paint has the wanted colours in some cells. */
static int right(const Paints *p, int paint, const int32_t *at, int count) {
    const uint8_t *colours = p->colours + (size_t)paint * (size_t)p->cells;
    for (int n = 0; n < count; n++)
        if (colours[at[n]] != p->wanted[at[n]]) return 0;
    return 1;
}

/* The first paint of a kind (free or not) that makes no mistake; -1 where there is none. */
static int first_right(const Paints *p, const uint8_t *mistaken, const uint8_t *free_now, int is_free, const int32_t *at,
                       int count) {
    for (int n = 0; n < p->paints; n++)
        if (!mistaken[n] && free_now[n] == is_free && (!p->sampled || right(p, n, at, count))) return n;
    return -1;
}

/* For each code that a known cell has, choose the first right paint, those before all others that are free or chosen.
 * `best` gets the paint of each code, -1 where no known cell has it, and `out` the colour of each cell, -1 likewise.
 * Returns how many codes there are, 0 where a code has no right paint, -1 without memory. */
EXPORT int choose_paints(const Paints *p, const int64_t *codes, int keys, const uint8_t *mistaken, int32_t *best,
                         int64_t *out) {
    int32_t *first = calloc((size_t)keys + 2, sizeof *first), *at = malloc(sizeof *at * (size_t)(p->known + 1));
    uint8_t *free_now = malloc((size_t)p->paints + 1);
    int cases = -1;
    if (!first || !at || !free_now) goto end;
    memcpy(free_now, p->free, (size_t)p->paints);
    for (int n = 0; n < p->known; n++) first[codes[n] + 2]++;
    for (int k = 0; k < keys; k++) first[k + 2] += first[k + 1];
    for (int n = 0; n < p->known; n++) at[first[codes[n] + 1]++] = n;
    cases = 0;
    for (int k = 0; k < keys; k++) {
        int count = first[k + 1] - first[k];
        best[k] = -1;
        if (!count) continue;
        const uint8_t *wrong = mistaken + (size_t)k * (size_t)p->paints;
        int found = first_right(p, wrong, free_now, 1, at + first[k], count);
        if (found < 0) found = first_right(p, wrong, free_now, 0, at + first[k], count);
        if (found < 0) {
            cases = 0;
            goto end;
        }
        cases++;
        best[k] = found;
        for (int n = 0; n < p->paints; n++)
            if (p->name[n] == p->name[found]) free_now[n] = 1;
    }
    for (int n = 0; n < p->cells; n++) {
        int paint = best[codes[n]];
        out[n] = paint < 0 ? -1 : p->colours[(size_t)paint * (size_t)p->cells + (size_t)n];
    }
end:
    free(first), free(at), free(free_now);
    return cases;
}
