/* Arranging pieces among each other and beside the input. Each is the twin of the function of its name in arranging.py. */
#include "compose.h"

/* What the input has in the piece's box. */
SHAPE(input_in_box) {
    (void)arg;
    if (in->y < 0 || in->x < 0 || in->y + in->h > input->h || in->x + in->w > input->w) return 0;
    if (!blank(out, in->h, in->w, memory)) return 0;
    for (int r = 0; r < in->h; r++)
        memcpy(out->cells + r * in->w, input->cells + (in->y + r) * input->w + in->x, (size_t)in->w);
    return 1;
}

/* Every row and column of a number (arg / 10), from one (arg % 10) on. */
SHAPE(sample) {
    (void)input;
    int step = arg / 10, from = arg % 10;
    if (in->h <= from || in->w <= from || in->h <= step || in->w <= step) return 0;
    if (!blank(out, (in->h - from + step - 1) / step, (in->w - from + step - 1) / step, memory)) return 0;
    for (int r = 0; r < out->h; r++)
        for (int c = 0; c < out->w; c++) out->cells[r * out->w + c] = in->cells[(from + r * step) * in->w + from + c * step];
    out->y = out->x = 0;
    return 1;
}

/* Connected cells, of one colour (arg < 4) or of any, fallen as a whole to a side (arg % 4) until they meet something. */
SHAPE(fall_objects) {
    (void)input;
    static const int DY[4] = {-1, 0, 0, 1}, DX[4] = {0, -1, 1, 0};
    uint16_t label[CELLS] = {0};
    int stack[CELLS], marks = 0, moves = 1, h = in->h, w = in->w, dy = DY[arg % 4], dx = DX[arg % 4], any = arg >= 4;
    if (!copied(in, out, memory)) return 0;
    for (int i = 0; i < h * w; i++) {
        if (!out->cells[i] || label[i]) continue;
        int top = 0;
        label[i] = (uint16_t)++marks;
        stack[top++] = i;
        while (top) {
            int k = stack[--top];
            for (int r = k / w - 1; r <= k / w + 1; r++)
                for (int c = k % w - 1; c <= k % w + 1; c++) {
                    int j = r * w + c;
                    if (!colour_at(out, r, c) || label[j] || (!any && out->cells[j] != out->cells[i])) continue;
                    label[j] = (uint16_t)marks;
                    stack[top++] = j;
                }
        }
    }
    while (moves) {
        moves = 0;
        for (int m = 1; m <= marks; m++) {
            int free = 1;
            for (int i = 0; i < h * w && free; i++) {
                int r = i / w + dy, c = i % w + dx;
                if (label[i] != m) continue;
                free = r >= 0 && c >= 0 && r < h && c < w && (!label[r * w + c] || label[r * w + c] == m);
            }
            if (!free) continue;
            moves = 1;
            for (int n = 0; n < h * w; n++) { /* the foremost cells first */
                int i = dy + dx > 0 ? h * w - 1 - n : n, j = (i / w + dy) * w + i % w + dx;
                if (label[i] != m) continue;
                label[j] = (uint16_t)m, out->cells[j] = out->cells[i];
                label[i] = 0, out->cells[i] = 0;
            }
        }
    }
    return 1;
}

/* Its part of the output's size at the top left (0) or right (1), the bottom left (2) or right (3), or in the middle (4). */
SHAPE(corner_of_output) {
    int h = input->output_h, w = input->output_w, down = in->h - h, right = in->w - w;
    if (down < 0 || right < 0 || (!down && !right)) return 0;
    if (arg == 4 && (down % 2 || right % 2)) return 0;
    if (!blank(out, h, w, memory)) return 0;
    int top = arg == 4 ? down / 2 : arg >= 2 ? down : 0, left = arg == 4 ? right / 2 : arg % 2 ? right : 0;
    for (int r = 0; r < h; r++) memcpy(out->cells + r * w, in->cells + (top + r) * in->w + left, (size_t)w);
    out->y = in->y + top, out->x = in->x + left;
    return 1;
}

/* The lane of each piece, and how many lanes: pieces that share rows (or columns) lie in one lane. */
static int lanes(const Pieces *in, int across, int *lane) {
    int done[MOST_PIECES] = {0}, n = 0, left = in->n, end = -1000;
    while (left) {
        int best = -1;
        for (int k = 0; k < in->n; k++) {
            int at = across ? in->piece[k].x : in->piece[k].y;
            if (!done[k] && (best < 0 || at < (across ? in->piece[best].x : in->piece[best].y))) best = k;
        }
        const Piece *p = &in->piece[best];
        int from = across ? p->x : p->y, to = from + (across ? p->w : p->h);
        if (from >= end) n++;
        if (to > end) end = to;
        lane[best] = n - 1;
        done[best] = 1;
        left--;
    }
    return n;
}

/* One cell of its commonest colour for each, row by row and column by column as they lie. */
JOIN(as_they_lie) {
    (void)arg;
    int row[MOST_PIECES], column[MOST_PIECES];
    if (in->n < 2) return 0;
    int rows = lanes(in, 0, row), columns = lanes(in, 1, column);
    Piece *q = added(out, 0, 0);
    if (!blank(q, rows, columns, out)) return 0;
    for (int k = 0; k < in->n; k++) q->cells[row[k] * columns + column[k]] = (uint8_t)commonest(&in->piece[k]);
    return 1;
}

/* A number of each (arg / 2), nine at most, as the colour of a cell, in a row (arg % 2 = 0) or a column. */
JOIN(numbers_in_line) {
    int low, high;
    const int *values = measure(in, arg / 2, &low, &high);
    if (in->n < 2 || low < 0) return 0;
    Piece *q = added(out, 0, 0);
    if (!blank(q, arg % 2 ? in->n : 1, arg % 2 ? 1 : in->n, out)) return 0;
    for (int k = 0; k < in->n; k++) q->cells[k] = (uint8_t)(values[k] > 9 ? 9 : values[k]);
    return 1;
}
