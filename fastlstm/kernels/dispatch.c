/* Which instruction sets this machine runs: asked of the CPU and of the operating system, at import, by CPUID and XGETBV. */
#include "fastlstm.h"

extern const fl_kernels fl_kernels_baseline_f32, fl_kernels_baseline_f64;
#if defined(__x86_64__)
#include <cpuid.h>
extern const fl_kernels fl_kernels_avx2_f32, fl_kernels_avx2_f64;
extern const fl_kernels fl_kernels_avx512_f32, fl_kernels_avx512_f64;
#elif defined(__aarch64__)
extern const fl_kernels fl_kernels_neon_f32, fl_kernels_neon_f64;
#endif

#if defined(__x86_64__)
static int has(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

/* Bits of XCR0: 1 SSE, 2 AVX, 5-7 AVX-512's masks, upper halves and upper registers. */
static unsigned saved_registers(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static void ask_cpu(int *avx2, int *avx512)
{
    unsigned a, b, c, d, features;

    *avx2 = *avx512 = 0;
    if (!__get_cpuid(1, &a, &b, &features, &d) || !has(features, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C))
        return;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return;
    const unsigned saved = saved_registers();
    *avx2 = has(b, bit_AVX2) && has(saved, 0x06);
    *avx512 = *avx2 && has(b, bit_AVX512F | bit_AVX512VL | bit_AVX512BW | bit_AVX512DQ) && has(saved, 0xe6);
}
#endif

const fl_isa *fl_isas(void)
{
    static fl_isa isas[3 + 1]; /* and the one without a name that ends them */
    fl_isa *isa = isas;

    *isa++ = (fl_isa){"baseline", 1, &fl_kernels_baseline_f32, &fl_kernels_baseline_f64};
#if defined(__x86_64__)
    int avx2, avx512;
    ask_cpu(&avx2, &avx512);
    *isa++ = (fl_isa){"avx2", avx2, &fl_kernels_avx2_f32, &fl_kernels_avx2_f64};
    *isa++ = (fl_isa){"avx512", avx512, &fl_kernels_avx512_f32, &fl_kernels_avx512_f64};
#elif defined(__aarch64__)
    *isa++ = (fl_isa){"neon", 1, &fl_kernels_neon_f32, &fl_kernels_neon_f64};
#endif
    return isas;
}
