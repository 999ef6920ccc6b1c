/* What instructions this processor runs. */
#ifndef TERNARY_PROCESSOR_H
#define TERNARY_PROCESSOR_H
#include "problem.h"

#if HAVE_X86
enum { LOOKED_UP = 1, HAS_AVX2 = 2, HAS_VNNI = 4, HAS_AVXVNNI = 8 };
int ternary_processor(void);
#endif

#endif
