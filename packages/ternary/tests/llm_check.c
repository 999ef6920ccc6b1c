/* Runs a small language model over every path on exactly sized buffers and compares the paths; for sanitizers. */
#include "llm.h"
#include <stdio.h>

/* More strips than one row takes at once, heads of five registers, more positions than attention reads at once, and an
 * odd number of groups of heads. */
enum { LAYERS = 2, HIDDEN = 48, INNER = 1040, HEADS = 6, KV_HEADS = 3, SIZE = 80, WORDS = 37 };
enum { POSITIONS = 80, TOKENS = 69 };

static uint32_t state = 1;

static uint32_t next(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static void *kept[256];
static int kept_count = 0;

/* Memory that lives until the end of the program. */
static void *keep(int64_t bytes) {
    void *memory = malloc((size_t)bytes);
    if (!memory || kept_count == 256) exit(2);
    return kept[kept_count++] = memory;
}

static void *filled(int64_t count, int64_t size) {
    void *memory = keep(count * size);
    for (int64_t i = 0; i < count; i++) {
        if (size == 4) ((float *)memory)[i] = 0.5f + (float)(next() % 1000) / 1000.0f;
        else ((int8_t *)memory)[i] = (int8_t)(next() % 255 - 127);
    }
    return memory;
}

static llm_matrix matrix(int64_t outputs, int64_t inputs) {
    const int64_t bytes = ceil_div(outputs, 16) * (inputs / 16) * 64;
    uint8_t *tiles = keep(bytes);
    for (int64_t i = 0; i < bytes; i++) {
        tiles[i] = 0;
        for (int j = 0; j < 4; j++) tiles[i] |= (uint8_t)(next() % 3 << 2 * j);
    }
    return (llm_matrix){tiles, filled(outputs, 4), filled(outputs, 4), outputs, inputs};
}

static void run(const llm_model *m, int64_t path, int64_t threads, int64_t at_once, float *logits) {
    const int64_t cached = LAYERS * KV_HEADS * POSITIONS, bytes = cached * SIZE * m->cache_bits / 8;
    llm_cache cache = {calloc(1, (size_t)bytes), calloc(1, (size_t)bytes), calloc((size_t)cached, 4),
                       calloc((size_t)cached, 4), POSITIONS};
    for (int64_t first = 0; first < TOKENS; first += at_once) {
        const int64_t rows = TOKENS - first < at_once ? TOKENS - first : at_once;
        llm_row *row = malloc((size_t)rows * sizeof *row);
        void *scratch = malloc((size_t)ternary_llm_scratch(m, rows));
        if (!row || !scratch) exit(2);
        for (int64_t i = 0; i < rows; i++) row[i] = (llm_row){(first + i) * 7 % WORDS, first + i, 1, &cache};
        const llm_step step = {m, path, threads, rows, row, scratch, logits + first * WORDS};
        if (ternary_llm_run(&step) != OK) exit(3);
        free(row);
        free(scratch);
    }
    free(cache.keys);
    free(cache.values);
    free(cache.key_scale);
    free(cache.value_scale);
}

int main(void) {
    int wrong = 0, runs = 0;
    llm_layer layer[LAYERS];
    for (int i = 0; i < LAYERS; i++)
        layer[i] = (llm_layer){filled(HIDDEN, 4),
                               filled(HEADS * SIZE, 4),
                               filled(HIDDEN, 4),
                               filled(INNER, 4),
                               matrix(HEADS * SIZE, HIDDEN),
                               matrix(KV_HEADS * SIZE, HIDDEN),
                               matrix(KV_HEADS * SIZE, HIDDEN),
                               matrix(HIDDEN, HEADS * SIZE),
                               matrix(INNER, HIDDEN),
                               matrix(INNER, HIDDEN),
                               matrix(HIDDEN, INNER)};
    llm_model m = {LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, SIZE, WORDS, SILU, 16, 1e-5,
                   filled(POSITIONS * SIZE / 2, 4), filled(POSITIONS * SIZE / 2, 4), filled(HIDDEN, 4),
                   filled(WORDS * HIDDEN, 1), filled(WORDS * HIDDEN, 1), filled(WORDS, 4), filled(WORDS, 4), layer};
    float *expected = filled(TOKENS * WORDS, 4), *found = filled(TOKENS * WORDS, 4);
    for (int bits = 8; bits <= 16; bits += 8) {
        m.cache_bits = bits;
        m.activation = bits == 8 ? RELU2 : SILU;
        run(&m, PORTABLE, 1, TOKENS, expected);
        for (int64_t path = 0; path < PATHS; path++)
            for (int64_t at_once = 1; ternary_has_path(path) && at_once <= TOKENS; at_once += 17, runs++) {
                run(&m, path, 1 + at_once % 3, at_once, found);
                wrong += memcmp(expected, found, TOKENS * WORDS * 4) != 0;
            }
    }
    int64_t ids[WORDS], seen[] = {1, 5};
    float values[WORDS];
    wrong += ternary_llm_top(expected, WORDS, seen, 2, 1.5, WORDS, ids, values) != WORDS;
    for (int i = 1; i < WORDS; i++) wrong += values[i] > values[i - 1];
    while (kept_count) free(kept[--kept_count]);
    printf("%d runs, %d wrong\n", runs, wrong);
    return wrong != 0;
}
