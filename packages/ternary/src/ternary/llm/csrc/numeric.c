/* Norms, attention and the head in what every processor of the family has, and the choice among the instruction sets. */
#define PARTS 4
#include "numeric.h"

WIDEN(portable, )
PLAIN_DOTS(portable, )
NUMERIC(portable, , widen_portable, dots_portable)

const llm_numeric *ternary_llm_numeric(int64_t path) {
#if HAVE_X86
    if (path == AVX2 || path == AVXVNNI) return &ternary_llm_avx2;
    if (path == AVX512VNNI || path == AMX) return &ternary_llm_vnni;
#endif
    (void)path;
    return &ternary_llm_portable;
}
