/* The floating-point state that every thread computes in. */
#ifndef FL_FLOAT_STATE_H
#define FL_FLOAT_STATE_H

#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Rounding to nearest, no traps, subnormal numbers as zero: the state every kernel runs in. Returns the state found. */
static inline uint64_t fl_enter_float_state(void)
{
#if defined(__x86_64__)
    const uint32_t found = _mm_getcsr();
    _mm_setcsr(0x9fc0); /* all exceptions masked, FTZ, DAZ */
    return found;
#elif defined(__aarch64__)
    uint64_t found;
    __asm__ volatile("mrs %0, fpcr" : "=r"(found));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)1 << 24)); /* FZ */
    return found;
#else
    return 0;
#endif
}

static inline void fl_leave_float_state(uint64_t found)
{
#if defined(__x86_64__)
    _mm_setcsr((uint32_t)found);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(found));
#else
    (void)found;
#endif
}

#endif
