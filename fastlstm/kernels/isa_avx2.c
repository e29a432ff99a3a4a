#if defined(__x86_64__)
#define FL_ISA avx2
#define FL_WIDTH 32
#define FL_REGISTERS 16
#define FL_TARGET "avx2,fma,f16c"
#include "isa.h"
#endif
