/* Columns over cells: whole numbers renumbered in order of first occurrence. features/columns.py has the twin. */
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST_SPAN 5000

/* Give equal values equal codes, from 0 in order of first occurrence; returns how many there are, 0 where the values
 * lie too far apart. */
EXPORT int columns_dense(const int64_t *values, int n, int64_t *codes) {
    int32_t code[MOST_SPAN];
    int64_t low = values[0], high = values[0];
    int count = 0;
    for (int i = 1; i < n; i++) {
        if (values[i] < low) low = values[i];
        if (values[i] > high) high = values[i];
    }
    if (high - low >= MOST_SPAN) return 0;
    for (int k = 0; k <= high - low; k++) code[k] = -1;
    for (int i = 0; i < n; i++) {
        int32_t *mine = &code[values[i] - low];
        if (*mine < 0) *mine = count++;
        codes[i] = *mine;
    }
    return count;
}
