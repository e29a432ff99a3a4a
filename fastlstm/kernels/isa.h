/* The kernel text, compiled for one instruction set and both types. An isa_*.c file sets
 *   FL_ISA        its name           FL_WIDTH   bytes of a vector
 *   FL_REGISTERS  of vectors         FL_TARGET  what to ask of the compiler (left out: nothing)
 *   FL_HAS_NEON_FMA  vectors of 16 bytes have NEON's instructions
 *   FL_COMPACT    where small code matters more than the last tenth of speed (left out: it does not)
 * The target holds for what stands between here and the end of the region: leaf kernels and nothing else. */
#include "fastlstm.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define FL_PRAGMA_(text) _Pragma(#text)
#define FL_PRAGMA(text) FL_PRAGMA_(text)
#ifdef FL_TARGET
#ifdef __clang__
FL_PRAGMA(clang attribute push(__attribute__((target(FL_TARGET))), apply_to = function))
#else
FL_PRAGMA(GCC push_options)
FL_PRAGMA(GCC target(FL_TARGET))
#endif
#endif

#define FL_BITS 32
#include "kernel_text.h"
#define FL_BITS 64
#include "kernel_text.h"

#ifdef FL_TARGET
#ifdef __clang__
FL_PRAGMA(clang attribute pop)
#else
FL_PRAGMA(GCC pop_options)
#endif
#endif
