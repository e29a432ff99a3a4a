#if defined(__aarch64__)
#define FL_ISA neon
#define FL_WIDTH 16
#define FL_REGISTERS 32
#define FL_HAS_NEON_FMA
#include "isa.h"
#endif
