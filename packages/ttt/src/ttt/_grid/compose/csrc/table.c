/* The table of functions by name. table.py says, in words, what each does and with which arguments it is tried. */
#include <stddef.h>

#include "compose.h"

#define A_SHAPE(name) {#name, name, NULL, NULL}
#define A_SPLIT(name) {#name, NULL, name, NULL}
#define A_JOIN(name) {#name, NULL, NULL, name}

const Function FUNCTIONS[] = {
    A_SHAPE(pose), A_SHAPE(crop), A_SHAPE(trim), A_SHAPE(half), A_SHAPE(mirror_out), A_SHAPE(mosaic), A_SHAPE(tile),
    A_SHAPE(scale_up), A_SHAPE(scale_down), A_SHAPE(rows_once), A_SHAPE(drop_empty_lines), A_SHAPE(self_product),
    A_SHAPE(tile_input_frame), A_SHAPE(add_frame), A_SHAPE(single_cell), A_SHAPE(to_origin), A_SHAPE(keep_colour),
    A_SHAPE(drop_colour), A_SHAPE(paint), A_SHAPE(paint_commonest), A_SHAPE(fill_holes), A_SHAPE(holes_only),
    A_SHAPE(outline), A_SHAPE(inner), A_SHAPE(fill_box), A_SHAPE(grow), A_SHAPE(surround), A_SHAPE(fall), A_SHAPE(rays),
    A_SHAPE(join_equal), A_SHAPE(drop_dots), A_SHAPE(invert), A_SHAPE(swap_colours), A_SHAPE(mirror_fill),
    A_SHAPE(mend_tiling), A_SHAPE(shift), A_SHAPE(roll), A_SHAPE(spread), A_SHAPE(solid), A_SHAPE(over_input),
    A_SHAPE(under_input), A_SHAPE(in_frame), A_SHAPE(mask_by_input), A_SHAPE(mask_by_empty),
    A_SHAPE(product_with_input), A_SHAPE(input_product), A_SHAPE(fit_output), A_SHAPE(tile_output),
    A_SHAPE(mirror_output), A_SHAPE(block), A_SHAPE(input_in_box),
    A_SHAPE(outer_edge), A_SHAPE(fit_input), A_SHAPE(tile_input), A_SHAPE(mirror_input), A_SHAPE(middle),
    A_SHAPE(sample), A_SHAPE(fall_objects), A_SHAPE(corner_of_output), A_SPLIT(cut_pieces), A_SPLIT(cut_objects),
    A_SPLIT(cut_colours), A_SPLIT(cut_panels), A_SPLIT(cut_lines), A_SPLIT(cut_parts), A_SPLIT(cut_marked), A_JOIN(take_first), A_JOIN(line_up), A_JOIN(keep_extreme),
    A_JOIN(drop_extreme), A_JOIN(take_extreme), A_JOIN(take_odd), A_JOIN(sort_by), A_JOIN(overlay), A_JOIN(beside), A_JOIN(pile),
    A_JOIN(pile_logic), A_JOIN(colours_in_line), A_JOIN(take_index), A_JOIN(as_they_lie), A_JOIN(numbers_in_line),
};
const int FUNCTION_COUNT = sizeof FUNCTIONS / sizeof FUNCTIONS[0];
