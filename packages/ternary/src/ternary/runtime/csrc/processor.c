/* What instructions this processor and its system run. Compilers have a builtin for it, which always answers no in
 * libraries that zig links (0.17), and those are the published wheels. */
#include "processor.h"

#if HAVE_X86
#include <cpuid.h>

/* The registers that the system saves for a process: bits 1 and 2 for AVX, 5 to 7 for AVX-512. */
static unsigned saved_registers(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int look_up(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0; /* no xgetbv */
    const unsigned saved = saved_registers();
    if ((saved & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    int has = b >> 5 & 1 ? HAS_AVX2 : 0;
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    if ((saved & 0xE6) == 0xE6 && (b & avx512) == avx512 && c >> 11 & 1) has |= HAS_VNNI;
    const unsigned leaves = a; /* of number 7 */
    if (has && leaves && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1) has |= HAS_AVXVNNI;
    return has;
}

int ternary_processor(void) {
    static int known; /* cpuid takes microseconds in a virtual machine */
    int state = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!state) {
        state = LOOKED_UP | look_up();
        __atomic_store_n(&known, state, __ATOMIC_RELAXED);
    }
    return state;
}
#endif
