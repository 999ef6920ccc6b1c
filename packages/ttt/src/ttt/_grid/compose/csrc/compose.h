/* Values of the compositional search: pieces of grids with their places, and the functions between them. */
#ifndef TTT_COMPOSE_H
#define TTT_COMPOSE_H

#include <stdint.h>
#include <string.h>

#define LARGEST 30        /* rows and columns of the largest grid */
#define CELLS (LARGEST * LARGEST)
#define MOST_PIECES 48    /* pieces that one input may be cut into */
#define FARTHEST 100      /* places stay within this many cells of the origin */
#define NUMBERS 15        /* what pieces are compared by */

/* A rectangle of colours at a place; colour 0 is empty. An input also knows its output's size, 0 where none is known. */
typedef struct {
    int y, x, h, w;
    uint8_t *cells;
    int output_h, output_w;
} Piece;

/* What pieces are compared by, each measured when it is first asked for: bit k of `known` is set for number k. */
typedef struct {
    unsigned known;
    int counted; /* whether `count` is there */
    int count[MOST_PIECES][10];
    int low[NUMBERS], high[NUMBERS], values[NUMBERS][MOST_PIECES];
} Measured;

/* The pieces of one input, with the memory that their cells live in, and what was measured of them (or NULL). */
typedef struct {
    int n, used;
    Measured *measured;
    Piece piece[MOST_PIECES];
    uint8_t memory[MOST_PIECES * CELLS];
} Pieces;

/* A function from a piece to a piece; `input` is the task's own input. `out` starts at the place of `in`. 0 on failure. */
typedef int (*Shape)(const Piece *in, const Piece *input, int arg, Piece *out, Pieces *memory);
/* A function from a piece to several, or from several pieces to one or several. 0 on failure. */
typedef int (*Split)(const Piece *in, int arg, Pieces *out);
typedef int (*Join)(const Pieces *in, int arg, Pieces *out);

/* One line of the table: a name, as in table.py, and the function of its kind. */
typedef struct {
    const char *name;
    Shape shape;
    Split split;
    Join join;
} Function;

extern const Function FUNCTIONS[];
extern const int FUNCTION_COUNT;

/* Give a piece h x w empty cells; 0 where that is no grid. */
static inline int blank(Piece *out, int h, int w, Pieces *memory) {
    if (h < 1 || w < 1 || h > LARGEST || w > LARGEST || memory->used + h * w > (int)sizeof memory->memory) return 0;
    out->h = h;
    out->w = w;
    out->cells = memory->memory + memory->used;
    memory->used += h * w;
    memset(out->cells, 0, (size_t)(h * w));
    return 1;
}

/* Give a piece a copy of another's cells. */
static inline int copied(const Piece *in, Piece *out, Pieces *memory) {
    if (!blank(out, in->h, in->w, memory)) return 0;
    memcpy(out->cells, in->cells, (size_t)(in->h * in->w));
    return 1;
}

/* A new last piece of a value at the place of another; NULL where there are too many. */
static inline Piece *added(Pieces *out, int y, int x) {
    if (out->n >= MOST_PIECES) return NULL;
    Piece *p = &out->piece[out->n++];
    p->y = y;
    p->x = x;
    return p;
}

static inline int colour_at(const Piece *p, int r, int c) {
    return r < 0 || c < 0 || r >= p->h || c >= p->w ? 0 : p->cells[r * p->w + c];
}

/* How many cells of each colour. */
static inline void histogram(const Piece *p, int count[10]) {
    memset(count, 0, 10 * sizeof(int));
    for (int i = 0; i < p->h * p->w; i++) count[p->cells[i]]++;
}

/* The drawn colour with most cells, the lowest of equals; 0 where nothing is drawn. */
static inline int commonest(const Piece *p) {
    int count[10], best = 0;
    histogram(p, count);
    for (int c = 1; c < 10; c++)
        if (count[c] && (!best || count[c] > count[best])) best = c;
    return best;
}

/* First and last row and column with a drawn cell; 0 where nothing is drawn. */
static inline int drawn_box(const Piece *p, int *top, int *bottom, int *left, int *right) {
    *top = p->h, *bottom = -1, *left = p->w, *right = -1;
    for (int r = 0; r < p->h; r++)
        for (int c = 0; c < p->w; c++)
            if (p->cells[r * p->w + c]) {
                if (r < *top) *top = r;
                if (r > *bottom) *bottom = r;
                if (c < *left) *left = c;
                if (c > *right) *right = c;
            }
    return *bottom >= 0;
}

/* Mark in `outside` the empty cells from which empty cells lead to the border, over sides. */
void reach_outside(const Piece *p, uint8_t *outside);

/* A number of every piece, with its least and its largest value; measured once for each value of the search. */
const int *measure(const Pieces *in, int which, int *low, int *high);

#define SHAPE(name) int name(const Piece *in, const Piece *input, int arg, Piece *out, Pieces *memory)
#define SPLIT(name) int name(const Piece *in, int arg, Pieces *out)
#define JOIN(name) int name(const Pieces *in, int arg, Pieces *out)

SHAPE(pose); SHAPE(crop); SHAPE(trim); SHAPE(half); SHAPE(mirror_out); SHAPE(mosaic); SHAPE(tile); SHAPE(scale_up);
SHAPE(scale_down); SHAPE(rows_once); SHAPE(drop_empty_lines); SHAPE(self_product); SHAPE(tile_input_frame);
SHAPE(add_frame); SHAPE(single_cell); SHAPE(to_origin);
SHAPE(keep_colour); SHAPE(drop_colour); SHAPE(paint); SHAPE(paint_commonest); SHAPE(fill_holes); SHAPE(holes_only);
SHAPE(outline); SHAPE(inner); SHAPE(fill_box); SHAPE(grow); SHAPE(surround); SHAPE(fall); SHAPE(rays);
SHAPE(join_equal); SHAPE(drop_dots); SHAPE(invert); SHAPE(swap_colours); SHAPE(mirror_fill); SHAPE(mend_tiling);
SHAPE(shift); SHAPE(roll); SHAPE(spread); SHAPE(solid); SHAPE(over_input); SHAPE(under_input); SHAPE(in_frame);
SHAPE(mask_by_input); SHAPE(mask_by_empty); SHAPE(product_with_input); SHAPE(input_product); SHAPE(fit_output);
SHAPE(tile_output); SHAPE(mirror_output); SHAPE(block); SHAPE(input_in_box);
SHAPE(outer_edge); SHAPE(fit_input); SHAPE(tile_input); SHAPE(mirror_input); SHAPE(middle); SHAPE(sample); SHAPE(fall_objects); SHAPE(corner_of_output);
SPLIT(cut_pieces); SPLIT(cut_objects); SPLIT(cut_colours); SPLIT(cut_panels); SPLIT(cut_lines); SPLIT(cut_parts);
SPLIT(cut_marked); JOIN(take_first); JOIN(line_up);
JOIN(keep_extreme); JOIN(drop_extreme); JOIN(take_extreme); JOIN(take_odd); JOIN(sort_by); JOIN(overlay); JOIN(beside);
JOIN(pile); JOIN(pile_logic); JOIN(colours_in_line); JOIN(take_index);
JOIN(as_they_lie); JOIN(numbers_in_line);

#endif
