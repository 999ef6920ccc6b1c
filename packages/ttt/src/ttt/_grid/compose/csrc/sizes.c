/* Shapes that change a piece's size or pose. Each is the twin of the function of the same name in shapes.py. */
#include "compose.h"

/* The eight poses: three quarter turns to the left, mirrored, transposed, upside down, the other diagonal. */
SHAPE(pose) {
    (void)input;
    int swap = arg == 1 || arg == 3 || arg == 5 || arg == 7, h = in->h, w = in->w;
    if (!blank(out, swap ? w : h, swap ? h : w, memory)) return 0;
    for (int r = 0; r < out->h; r++)
        for (int c = 0; c < out->w; c++) {
            int a = r, b = c;
            switch (arg) {
                case 1: a = c, b = w - 1 - r; break;
                case 2: a = h - 1 - r, b = w - 1 - c; break;
                case 3: a = h - 1 - c, b = r; break;
                case 4: b = w - 1 - c; break;
                case 5: a = c, b = r; break;
                case 6: a = h - 1 - r; break;
                case 7: a = h - 1 - c, b = w - 1 - r; break;
            }
            out->cells[r * out->w + c] = in->cells[a * w + b];
        }
    return 1;
}

static int window(const Piece *in, int top, int left, int h, int w, Piece *out, Pieces *memory) {
    if (!blank(out, h, w, memory)) return 0;
    for (int r = 0; r < h; r++) memcpy(out->cells + r * w, in->cells + (top + r) * in->w + left, (size_t)w);
    out->y = in->y + top;
    out->x = in->x + left;
    return 1;
}

SHAPE(crop) {
    (void)input, (void)arg;
    int top, bottom, left, right;
    if (!drawn_box(in, &top, &bottom, &left, &right)) return 0;
    return window(in, top, left, bottom - top + 1, right - left + 1, out, memory);
}

/* The cell in the middle, or the two or four. */
SHAPE(middle) {
    (void)input, (void)arg;
    int h = 2 - in->h % 2, w = 2 - in->w % 2;
    return window(in, (in->h - h) / 2, (in->w - w) / 2, h, w, out, memory);
}

SHAPE(trim) {
    (void)input, (void)arg;
    return window(in, 1, 1, in->h - 2, in->w - 2, out, memory);
}

/* Left, right, upper or lower half; the middle line of an odd length belongs to neither. */
SHAPE(half) {
    (void)input;
    int h = arg >= 2 ? in->h / 2 : in->h, w = arg < 2 ? in->w / 2 : in->w;
    return window(in, arg == 3 ? in->h - h : 0, arg == 1 ? in->w - w : 0, h, w, out, memory);
}

/* The piece with its mirror image to the right, left, below or above. */
SHAPE(mirror_out) {
    (void)input;
    int h = in->h, w = in->w, down = arg >= 2, first = arg == 1 || arg == 3;
    if (!blank(out, down ? 2 * h : h, down ? w : 2 * w, memory)) return 0;
    for (int r = 0; r < out->h; r++)
        for (int c = 0; c < out->w; c++) {
            int a = r, b = c;
            if (down) a = r < h ? (first ? h - 1 - r : r) : (first ? r - h : 2 * h - 1 - r);
            else b = c < w ? (first ? w - 1 - c : c) : (first ? c - w : 2 * w - 1 - c);
            out->cells[r * out->w + c] = in->cells[a * w + b];
        }
    return 1;
}

/* Four copies as a square: 0 mirrored outwards, 1 turned by quarters clockwise from the top left. */
SHAPE(mosaic) {
    (void)input;
    int h = in->h, w = in->w;
    if (arg == 1 && h != w) return 0;
    if (!blank(out, 2 * h, 2 * w, memory)) return 0;
    for (int r = 0; r < 2 * h; r++)
        for (int c = 0; c < 2 * w; c++) {
            int a = r % h, b = c % w, x, y;
            if (arg == 0) {
                x = r < h ? a : h - 1 - a;
                y = c < w ? b : w - 1 - b;
            } else if (r < h) {
                x = c < w ? a : h - 1 - b;
                y = c < w ? b : a;
            } else {
                x = c < w ? b : h - 1 - a;
                y = c < w ? w - 1 - a : w - 1 - b;
            }
            out->cells[r * out->w + c] = in->cells[x * w + y];
        }
    return 1;
}

/* Copies side by side: ten times the rows of copies plus the columns. */
SHAPE(tile) {
    (void)input;
    if (!blank(out, in->h * (arg / 10), in->w * (arg % 10), memory)) return 0;
    for (int r = 0; r < out->h; r++)
        for (int c = 0; c < out->w; c++) out->cells[r * out->w + c] = in->cells[(r % in->h) * in->w + c % in->w];
    return 1;
}

SHAPE(scale_up) {
    (void)input;
    if (!blank(out, in->h * arg, in->w * arg, memory)) return 0;
    for (int r = 0; r < out->h; r++)
        for (int c = 0; c < out->w; c++) out->cells[r * out->w + c] = in->cells[(r / arg) * in->w + c / arg];
    return 1;
}

static int is_scaled(const Piece *in, int k) {
    if (in->h % k || in->w % k) return 0;
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++)
            if (in->cells[r * in->w + c] != in->cells[(r - r % k) * in->w + c - c % k]) return 0;
    return 1;
}

SHAPE(scale_down) {
    (void)input, (void)arg;
    for (int k = LARGEST; k > 1; k--)
        if (is_scaled(in, k)) {
            if (!blank(out, in->h / k, in->w / k, memory)) return 0;
            for (int r = 0; r < out->h; r++)
                for (int c = 0; c < out->w; c++) out->cells[r * out->w + c] = in->cells[r * k * in->w + c * k];
            return 1;
        }
    return 0;
}

/* Keep some rows and columns. */
static int selected(const Piece *in, const uint8_t *rows, const uint8_t *columns, Piece *out, Pieces *memory) {
    int h = 0, w = 0;
    for (int r = 0; r < in->h; r++) h += rows[r];
    for (int c = 0; c < in->w; c++) w += columns[c];
    if ((h == in->h && w == in->w) || !blank(out, h, w, memory)) return 0;
    uint8_t *to = out->cells;
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++)
            if (rows[r] && columns[c]) *to++ = in->cells[r * in->w + c];
    return 1;
}

SHAPE(rows_once) {
    (void)input, (void)arg;
    uint8_t rows[LARGEST], columns[LARGEST];
    for (int r = 0; r < in->h; r++)
        rows[r] = r == 0 || memcmp(in->cells + r * in->w, in->cells + (r - 1) * in->w, (size_t)in->w) != 0;
    for (int c = 0; c < in->w; c++) {
        columns[c] = c == 0;
        for (int r = 0; c && r < in->h; r++)
            if (in->cells[r * in->w + c] != in->cells[r * in->w + c - 1]) columns[c] = 1;
    }
    return selected(in, rows, columns, out, memory);
}

SHAPE(drop_empty_lines) {
    (void)input, (void)arg;
    uint8_t rows[LARGEST] = {0}, columns[LARGEST] = {0};
    for (int r = 0; r < in->h; r++)
        for (int c = 0; c < in->w; c++)
            if (in->cells[r * in->w + c]) rows[r] = columns[c] = 1;
    return selected(in, rows, columns, out, memory);
}

/* A copy of `part` for each drawn cell of `whole`. */
static int product(const Piece *whole, const Piece *part, Piece *out, Pieces *memory) {
    if (!blank(out, whole->h * part->h, whole->w * part->w, memory)) return 0;
    for (int r = 0; r < out->h; r++)
        for (int c = 0; c < out->w; c++)
            if (whole->cells[(r / part->h) * whole->w + c / part->w])
                out->cells[r * out->w + c] = part->cells[(r % part->h) * part->w + c % part->w];
    return 1;
}

SHAPE(self_product) {
    (void)input, (void)arg;
    return product(in, in, out, memory);
}

SHAPE(product_with_input) {
    (void)arg;
    return product(input, in, out, memory);
}

SHAPE(input_product) {
    (void)arg;
    return product(in, input, out, memory);
}

SHAPE(tile_input_frame) {
    (void)arg;
    if (!blank(out, input->h, input->w, memory)) return 0;
    for (int r = 0; r < out->h; r++)
        for (int c = 0; c < out->w; c++) out->cells[r * out->w + c] = in->cells[(r % in->h) * in->w + c % in->w];
    out->y = out->x = 0;
    return 1;
}

/* One more cell on every side, of a colour or of the commonest for 0. */
SHAPE(add_frame) {
    (void)input;
    if (!blank(out, in->h + 2, in->w + 2, memory)) return 0;
    memset(out->cells, arg ? arg : commonest(in), (size_t)(out->h * out->w));
    for (int r = 0; r < in->h; r++) memcpy(out->cells + (r + 1) * out->w + 1, in->cells + r * in->w, (size_t)in->w);
    out->y = in->y - 1;
    out->x = in->x - 1;
    return 1;
}

SHAPE(single_cell) {
    (void)input, (void)arg;
    if (!blank(out, 1, 1, memory)) return 0;
    out->cells[0] = (uint8_t)commonest(in);
    return out->cells[0] != 0;
}

SHAPE(to_origin) {
    (void)input, (void)arg;
    out->y = out->x = 0;
    return copied(in, out, memory);
}

/* How much of cell y of `in` cells lies under cell `at` of `out` cells, where both are spread over one length. */
static inline int overlap(int y, int at, int in, int out) {
    int low = y * out > at * in ? y * out : at * in, high = (y + 1) * out < (at + 1) * in ? (y + 1) * out : (at + 1) * in;
    return high - low;
}

/* Resized: each cell the colour that covers most of it, the lowest of equals. */
static int fitted(const Piece *in, int h, int w, Piece *out, Pieces *memory) {
    if ((h == in->h && w == in->w) || !blank(out, h, w, memory)) return 0;
    out->y = out->x = 0;
    for (int r = 0; r < h; r++)
        for (int c = 0; c < w; c++) {
            int weight[10] = {0}, best = 0;
            for (int y = r * in->h / h; y * h < (r + 1) * in->h; y++)
                for (int x = c * in->w / w; x * w < (c + 1) * in->w; x++)
                    weight[in->cells[y * in->w + x]] += overlap(y, r, in->h, h) * overlap(x, c, in->w, w);
            for (int k = 1; k < 10; k++)
                if (weight[k] > weight[best]) best = k;
            out->cells[r * w + c] = (uint8_t)best;
        }
    return 1;
}

SHAPE(fit_output) {
    (void)arg;
    return fitted(in, input->output_h, input->output_w, out, memory);
}

SHAPE(fit_input) {
    (void)arg;
    return fitted(in, input->h, input->w, out, memory);
}

static inline int modulo(int a, int b) { return (a % b + b) % b; }

/* Copies over a frame, some cells apart, one of them at its place. */
static int tiled(const Piece *in, int apart, int h, int w, Piece *out, Pieces *memory) {
    int down = in->h + apart, across = in->w + apart;
    if (!blank(out, h, w, memory)) return 0;
    out->y = out->x = 0;
    for (int r = 0; r < out->h; r++)
        for (int c = 0; c < out->w; c++)
            out->cells[r * out->w + c] = (uint8_t)colour_at(in, modulo(r - in->y, down), modulo(c - in->x, across));
    return 1;
}

SHAPE(tile_output) { return tiled(in, arg, input->output_h, input->output_w, out, memory); }

SHAPE(tile_input) { return tiled(in, arg, input->h, input->w, out, memory); }

/* The same with each second copy mirrored. */
static int mirrored(const Piece *in, int apart, int h, int w, Piece *out, Pieces *memory) {
    int down = in->h + apart, across = in->w + apart;
    if (!blank(out, h, w, memory)) return 0;
    out->y = out->x = 0;
    for (int r = 0; r < out->h; r++)
        for (int c = 0; c < out->w; c++) {
            int y = modulo(r - in->y, 2 * down), x = modulo(c - in->x, 2 * across);
            if (y >= down) y = down + in->h - 1 - y;
            if (x >= across) x = across + in->w - 1 - x;
            out->cells[r * out->w + c] = (uint8_t)colour_at(in, y, x);
        }
    return 1;
}

SHAPE(mirror_output) { return mirrored(in, arg, input->output_h, input->output_w, out, memory); }

SHAPE(mirror_input) { return mirrored(in, arg, input->h, input->w, out, memory); }

/* How many drawn cells, colours or objects there are. */
static int counted(const Piece *in, int what) {
    int count[10], n = 0;
    uint8_t seen[CELLS] = {0};
    int stack[CELLS];
    if (what < 2) {
        histogram(in, count);
        for (int c = 1; c < 10; c++) n += what ? count[c] > 0 : count[c];
        return n;
    }
    for (int i = 0; i < in->h * in->w; i++) {
        if (!in->cells[i] || seen[i]) continue;
        int top = 0;
        n++;
        seen[i] = 1;
        stack[top++] = i;
        while (top) {
            int k = stack[--top];
            for (int dy = -1; dy <= 1; dy++)
                for (int dx = -1; dx <= 1; dx++) {
                    int r = k / in->w + dy, c = k % in->w + dx, j = r * in->w + c;
                    if (!colour_at(in, r, c) || seen[j]) continue;
                    seen[j] = 1;
                    stack[top++] = j;
                }
        }
    }
    return n;
}

/* As many cells as it has drawn cells, colours or objects (arg / 3): a square, a row or a column (arg % 3). */
SHAPE(block) {
    (void)input;
    int n = counted(in, arg / 3);
    if (!blank(out, arg % 3 == 1 ? 1 : n, arg % 3 == 2 ? 1 : n, memory)) return 0;
    memset(out->cells, commonest(in), (size_t)(out->h * out->w));
    out->y = out->x = 0;
    return 1;
}
