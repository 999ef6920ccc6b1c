/* What the actions of things explain of a training pair. The functions of ../objects/strokes.py are the twins. */
#include <stdlib.h>

#include "compose.h"

#define EXPORT __attribute__((visibility("default")))
#define MOST_COPIES 30

/* A training pair of equal sizes, its input cut into things; objects/tries.py has the same fields. */
typedef struct {
    int32_t h, w, background, things;
    const uint8_t *grid, *output;
    const int32_t *label;  /* for each cell 1 + the thing that it belongs to, 0 for none */
    const int32_t *number; /* the number of each changed cell, -1 elsewhere */
    const int32_t *first;  /* things + 1: where the cells of each thing begin */
    const int32_t *row, *column;
    const int32_t *box;    /* first row, first column, last row, last column of each thing */
    const int32_t *colour; /* the most frequent colour of each thing */
} Pair;

/* One action: a stroke, its two settings, and what is chosen for each thing, or -1. */
typedef struct {
    int32_t stroke, a, b, way, colour, other;
} Action;

enum { ERASED, RECOLOURED, SHIFTED, SLID, ALIGNED, REPEATED, MIRRORED, REFLECTED, TURNED_OVER, LINE, BRIDGE, BOX_CELLS,
       STAMPED, CHAIN, PART, DRAWN_TO };
enum { BORDER, ANYTHING, SOMETHING, END, DOTTED };
enum { INSIDE, BOX, OUTLINE, FRAME, ROW, COLUMN, CROSS };
enum { MIDDLE, CORNER, AS_IT_IS, FLIPPED_ACROSS, FLIPPED_DOWN, TURNED };
enum { UPPER_HALF, LOWER_HALF, LEFT_HALF, RIGHT_HALF, TOP_ROW, BOTTOM_ROW, LEFT_COLUMN, RIGHT_COLUMN, CORNERS, EDGE,
       CORE };

/* What one action of one thing has painted so far. */
typedef struct {
    const Pair *pair;
    int i;                       /* the thing */
    const int32_t *box;          /* and its box */
    int dr, dc, colour, other;   /* what is chosen for it */
    int painted, wrong, changed; /* cells on the grid; whether one is of another colour; whether one is changed */
    int32_t *cells, at, room;    /* numbers of explained cells, without repetitions */
    int32_t *last, stamp;
} Try;

static int on_grid(const Pair *p, int r, int c) { return r >= 0 && c >= 0 && r < p->h && c < p->w; }

static int sign(int x) { return (x > 0) - (x < 0); }

static void put(Try *t, int r, int c, int colour) {
    const Pair *p = t->pair;
    if (!on_grid(p, r, c)) return;
    int cell = r * p->w + c, number = p->number[cell];
    t->painted++;
    if (number >= 0) t->changed = 1;
    if (p->output[cell] != colour) {
        t->wrong = 1;
    } else if (number >= 0 && t->last[number] != t->stamp) {
        t->last[number] = t->stamp;
        if (t->at < t->room) t->cells[t->at] = number;
        t->at++;
    }
}

/* Whether something other than the thing is drawn in a cell, or it lies outside. */
static int blocked(const Try *t, int r, int c) {
    const Pair *p = t->pair;
    if (!on_grid(p, r, c)) return 1;
    return p->grid[r * p->w + c] != p->background && p->label[r * p->w + c] != t->i + 1;
}

static int empty(const Pair *p, int r, int c) { return p->grid[r * p->w + c] == p->background; }

/* Paint a thing moved; in its own colours where `colour` is negative. */
static void move(Try *t, int thing, int dr, int dc, int colour) {
    const Pair *p = t->pair;
    for (int n = p->first[thing]; n < p->first[thing + 1]; n++) {
        int r = p->row[n], c = p->column[n];
        put(t, r + dr, c + dc, colour < 0 ? p->grid[r * p->w + c] : colour);
    }
}

/* Paint a thing at its mirror image: a row becomes `rows` - row where `down`, a column `columns` - column where `across`. */
static void flip(Try *t, int down, int rows, int across, int columns) {
    const Pair *p = t->pair;
    for (int n = p->first[t->i]; n < p->first[t->i + 1]; n++) {
        int r = p->row[n], c = p->column[n];
        put(t, down ? rows - r : r, across ? columns - c : c, p->grid[r * p->w + c]);
    }
}

static void slide(Try *t) {
    const Pair *p = t->pair;
    for (int n = 0;; n++)
        for (int k = p->first[t->i]; k < p->first[t->i + 1]; k++)
            if (blocked(t, p->row[k] + t->dr * (n + 1), p->column[k] + t->dc * (n + 1))) {
                if (n) move(t, t->i, t->dr * n, t->dc * n, -1);
                return;
            }
}

static void align(Try *t, int axis) {
    const int32_t *b = t->pair->box + 4 * t->other;
    int twice = b[axis] + b[axis + 2] - t->box[axis] - t->box[axis + 2];
    if (twice && twice % 2 == 0) move(t, t->i, axis ? 0 : twice / 2, axis ? twice / 2 : 0, -1);
}

/* The signed distance from one span to another, 0 where they overlap. */
static int gap(int low, int high, int other_low, int other_high) {
    return other_low > high ? other_low - high : other_high < low ? other_high - low : 0;
}

/* Paint the thing beside the other, straight across all that lies between. */
static void draw_to(Try *t) {
    const int32_t *a = t->box, *b = t->pair->box + 4 * t->other;
    int down = gap(a[0], a[2], b[0], b[2]), right = gap(a[1], a[3], b[1], b[3]);
    if (!down == !right) return;
    down -= sign(down), right -= sign(right);
    if (down || right) move(t, t->i, down, right, -1);
}

/* Paint copies of a thing, each a vector further, until none of its cells is on the grid. */
static void repeat(Try *t, int thing, int dr, int dc, int colour) {
    for (int n = 1; n <= MOST_COPIES; n++) {
        int before = t->painted;
        move(t, thing, dr * n, dc * n, colour);
        if (t->painted == before) return;
    }
}

/* Paint one line of background cells from a cell. */
static void line(Try *t, int r, int c, int until) {
    const Pair *p = t->pair;
    int far = p->h > p->w ? p->h : p->w, end = far, meets = 0, last = 0;
    if (until != BORDER && until != DOTTED)
        for (int n = 1; n <= far && !meets; n++)
            if (on_grid(p, r + t->dr * n, c + t->dc * n) && blocked(t, r + t->dr * n, c + t->dc * n))
                meets = 1, end = n - 1;
    if (until == SOMETHING && !meets) return;
    for (int n = 1; n <= end; n++) {
        int y = r + t->dr * n, x = c + t->dc * n;
        if (!on_grid(p, y, x) || !empty(p, y, x)) continue;
        last = n;
        if (until != END) put(t, y, x, until == DOTTED && n % 2 == 0 ? p->colour[t->i] : t->colour);
    }
    if (until == END && last) put(t, r + t->dr * last, c + t->dc * last, t->colour);
}

static void lines(Try *t, int until, int from_middle) {
    const Pair *p = t->pair;
    const int32_t *b = t->box;
    if (from_middle) {
        int across = (t->dc ? 0 : b[3] - b[1]) + (t->dr ? 0 : b[2] - b[0]);
        if (across % 2 || (across == 0 && !(t->dr && t->dc))) return;
        line(t, (b[0] + b[2]) / 2, (b[1] + b[3]) / 2, until);
    } else if (t->dr && t->dc) {
        line(t, t->dr > 0 ? b[2] : b[0], t->dc > 0 ? b[3] : b[1], until);
    } else {
        for (int n = p->first[t->i]; n < p->first[t->i + 1]; n++) line(t, p->row[n], p->column[n], until);
    }
}

static void bridge(Try *t, int inner) {
    const int32_t *a = t->box, *b = t->pair->box + 4 * t->other;
    int from[2], to[2], way[2];
    for (int axis = 0; axis < 2; axis++) {
        way[axis] = b[axis] > a[axis + 2] ? 1 : b[axis + 2] < a[axis] ? -1 : 0;
        int low = a[axis] > b[axis] ? a[axis] : b[axis];
        int high = a[axis + 2] < b[axis + 2] ? a[axis + 2] : b[axis + 2];
        from[axis] = way[axis] ? high + 1 : low + inner;
        to[axis] = way[axis] ? low : high + 1 - inner;
    }
    if (!way[0] == !way[1]) return;
    for (int r = from[0]; r < to[0]; r++)
        for (int c = from[1]; c < to[1]; c++) put(t, r, c, t->colour);
}

/* Mark in `reached` the cells of a thing's box that do not belong to it and are reached from the border over sides. */
static void reach(const Try *t, uint8_t *reached) {
    const Pair *p = t->pair;
    int top = t->box[0], left = t->box[1], h = t->box[2] - top + 1, w = t->box[3] - left + 1, grows = 1;
    memset(reached, 0, (size_t)(h * w));
    while (grows) {
        grows = 0;
        for (int pass = 0; pass < 2; pass++)
            for (int n = 0; n < h * w; n++) {
                int k = pass ? h * w - 1 - n : n, r = k / w, c = k % w;
                if (reached[k] || p->label[(r + top) * p->w + c + left] == t->i + 1) continue;
                if (r == 0 || c == 0 || r == h - 1 || c == w - 1 || reached[k - 1] || reached[k + 1] || reached[k - w] ||
                    reached[k + w])
                    reached[k] = 1, grows = 1;
            }
    }
}

static void box_cells(Try *t, int what) {
    const Pair *p = t->pair;
    const int32_t *b = t->box;
    if (what == INSIDE || what == BOX) {
        uint8_t outside[CELLS];
        if (what == INSIDE) reach(t, outside);
        for (int r = b[0], k = 0; r <= b[2]; r++)
            for (int c = b[1]; c <= b[3]; c++, k++)
                if (p->label[r * p->w + c] != t->i + 1 && empty(p, r, c) && !(what == INSIDE && outside[k]))
                    put(t, r, c, t->colour);
        return;
    }
    int middle_row = (b[0] + b[2]) % 2 == 0 && what != COLUMN ? (b[0] + b[2]) / 2 : -1;
    int middle_column = (b[1] + b[3]) % 2 == 0 && what != ROW ? (b[1] + b[3]) / 2 : -1;
    int around = what == OUTLINE || what == FRAME;
    for (int r = around ? b[0] - 1 : 0; r <= (around ? b[2] + 1 : p->h - 1); r++)
        for (int c = around ? b[1] - 1 : 0; c <= (around ? b[3] + 1 : p->w - 1); c++) {
            if (!on_grid(p, r, c) || !empty(p, r, c)) continue;
            int hit = 0;
            if (what == FRAME) {
                hit = r < b[0] || r > b[2] || c < b[1] || c > b[3];
            } else if (what == OUTLINE) {
                if (p->label[r * p->w + c] == t->i + 1) continue;
                for (int y = r - 1; y <= r + 1; y++)
                    for (int x = c - 1; x <= c + 1; x++)
                        hit |= on_grid(p, y, x) && p->label[y * p->w + x] == t->i + 1;
            } else {
                hit = r == middle_row || c == middle_column;
            }
            if (hit) put(t, r, c, t->colour);
        }
}

static void stamp(Try *t, int how, int recolour) {
    const Pair *p = t->pair;
    const int32_t *a = t->box, *b = p->box + 4 * t->other;
    int begin = p->first[t->other], end = p->first[t->other + 1], own = p->colour[t->i];
    int down = how == FLIPPED_DOWN || how == TURNED, across = how == FLIPPED_ACROSS || how == TURNED;
    int dr = a[0] - b[0], dc = a[1] - b[1];
    if (how == MIDDLE) {
        dr += a[2] - b[2], dc += a[3] - b[3];
        if (dr % 2 || dc % 2) return;
        dr /= 2, dc /= 2;
    } else if (how != CORNER) {
        int same = 0, low[2] = {1000, 1000}, high[2] = {-1000, -1000};
        for (int n = begin; n < end; n++) {
            if (p->grid[p->row[n] * p->w + p->column[n]] != own) continue;
            int at[2] = {down ? b[0] + b[2] - p->row[n] : p->row[n], across ? b[1] + b[3] - p->column[n] : p->column[n]};
            same++;
            for (int axis = 0; axis < 2; axis++) {
                if (at[axis] < low[axis]) low[axis] = at[axis];
                if (at[axis] > high[axis]) high[axis] = at[axis];
            }
        }
        if (!same || same == end - begin) return;
        dr = a[0] - low[0], dc = a[1] - low[1];
        if (dr + high[0] != a[2] || dc + high[1] != a[3]) return;
    }
    for (int n = begin; n < end; n++) {
        int r = p->row[n], c = p->column[n], colour = recolour ? own : p->grid[r * p->w + c];
        put(t, (down ? b[0] + b[2] - r : r) + dr, (across ? b[1] + b[3] - c : c) + dc, colour);
    }
}

static int belongs(const Pair *p, int thing, int r, int c) {
    return on_grid(p, r, c) && p->label[r * p->w + c] == thing + 1;
}

static void chain(Try *t) {
    const Pair *p = t->pair;
    const int32_t *a = p->box + 4 * t->other, *b = t->box;
    int dr = sign(b[0] + b[2] - a[0] - a[2]), dc = sign(b[1] + b[3] - a[1] - a[3]);
    if (!dr && !dc) return;
    for (int n = 1; n < 20; n++) {
        int fits = 1;
        for (int k = p->first[t->i]; fits && k < p->first[t->i + 1]; k++)
            fits = belongs(p, t->other, p->row[k] - n * dr, p->column[k] - n * dc);
        for (int k = p->first[t->other]; fits && k < p->first[t->other + 1]; k++)
            fits = !belongs(p, t->other, p->row[k] + n * dr, p->column[k] + n * dc);
        if (fits) {
            repeat(t, t->other, n * dr, n * dc, p->colour[t->i]);
            return;
        }
    }
}

static void part(Try *t, int what) {
    const Pair *p = t->pair;
    int top = t->box[0], left = t->box[1], bottom = t->box[2], right = t->box[3];
    int h = bottom - top + 1, w = right - left + 1;
    for (int n = p->first[t->i]; n < p->first[t->i + 1]; n++) {
        int r = p->row[n], c = p->column[n], ends_r = r == top || r == bottom, ends_c = c == left || c == right;
        int keep[] = {r < top + h / 2, r > bottom - h / 2, c < left + w / 2,  c > right - w / 2,  r == top,
                      r == bottom,     c == left,          c == right,        ends_r && ends_c,   ends_r || ends_c,
                      !ends_r && !ends_c};
        if (keep[what]) put(t, r, c, t->colour);
    }
}

static void draw(Try *t, const Action *action) {
    const int32_t *b = t->box, *o = t->pair->box + 4 * t->other;
    int a = action->a, height = b[2] - b[0] + 1, width = b[3] - b[1] + 1;
    switch (action->stroke) {
    case ERASED: move(t, t->i, 0, 0, t->pair->background); break;
    case RECOLOURED: move(t, t->i, 0, 0, t->colour); break;
    case SHIFTED: move(t, t->i, a, action->b, -1); break;
    case SLID: slide(t); break;
    case ALIGNED: align(t, a); break;
    case REPEATED: repeat(t, t->i, t->dr * (height + a), t->dc * (width + a), -1); break;
    case MIRRORED: flip(t, a, o[0] + o[2], action->b, o[1] + o[3]); break;
    case REFLECTED: flip(t, a, a > 0 ? 2 * b[2] + 1 : 2 * b[0] - 1, action->b,
                         action->b > 0 ? 2 * b[3] + 1 : 2 * b[1] - 1); break;
    case TURNED_OVER: flip(t, a, b[0] + b[2], action->b, b[1] + b[3]); break;
    case LINE: lines(t, a, action->b); break;
    case BRIDGE: bridge(t, a); break;
    case BOX_CELLS: box_cells(t, a); break;
    case STAMPED: stamp(t, a, action->b); break;
    case CHAIN: chain(t); break;
    case PART: part(t, a); break;
    case DRAWN_TO: draw_to(t); break;
    }
}

/* Try actions on all things of a pair.
 *
 * `ways` holds a row and a column for each way and thing (both 0 for none), `colours` and `others` a number for each
 * (-1 for none). For each action and thing `counts` gets how many changed cells are explained, -1 where a cell is
 * painted wrongly; their numbers follow each other in `cells`. Returns how many that are: if more than `room`, ask again
 * with more. */
EXPORT int things_tried(const Pair *p, const Action *actions, int count, const int32_t *ways, const int32_t *colours,
                        const int32_t *others, int32_t *counts, int32_t *cells, int room) {
    int32_t last[CELLS];
    for (int n = 0; n < CELLS; n++) last[n] = -1;
    Try t = {.pair = p, .cells = cells, .room = room, .last = last};
    for (int n = 0; n < count; n++)
        for (t.i = 0; t.i < p->things; t.i++) {
            const Action *action = &actions[n];
            int before = t.at, at = n * p->things + t.i;
            const int32_t *way = action->way < 0 ? NULL : ways + 2 * (action->way * p->things + t.i);
            t.dr = way ? way[0] : 0, t.dc = way ? way[1] : 0;
            t.colour = action->colour < 0 ? 0 : colours[action->colour * p->things + t.i];
            t.other = action->other < 0 ? 0 : others[action->other * p->things + t.i];
            t.box = p->box + 4 * t.i, t.painted = t.wrong = t.changed = 0, t.stamp = at;
            if (!(way && !t.dr && !t.dc) && t.colour >= 0 && t.other >= 0) draw(&t, action);
            int unable = action->stroke == ERASED ? t.painted && !t.changed : t.wrong;
            if (unable) t.at = before;
            counts[at] = unable ? -1 : t.at - before;
        }
    return t.at;
}

/* Count for each vector of up to LARGEST - 1 rows and columns the things that reappear in the output moved by it, where
 * one of their cells is changed. */
EXPORT void things_vectors(const Pair *p, int32_t *counts) {
    for (int i = 0; i < p->things; i++) {
        const int32_t *b = p->box + 4 * i;
        for (int dr = -b[0]; dr < p->h - b[2]; dr++)
            for (int dc = -b[1]; dc < p->w - b[3]; dc++) {
                int same = 1, changed = 0, move = dr * p->w + dc;
                for (int n = p->first[i]; same && n < p->first[i + 1]; n++) {
                    int cell = p->row[n] * p->w + p->column[n];
                    same = p->output[cell + move] == p->grid[cell];
                    changed |= p->number[cell + move] >= 0;
                }
                if (same && changed) counts[(dr + LARGEST - 1) * (2 * LARGEST - 1) + dc + LARGEST - 1]++;
            }
    }
}
