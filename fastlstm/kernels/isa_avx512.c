#if defined(__x86_64__)
#define FL_ISA avx512
#define FL_WIDTH 64
#define FL_REGISTERS 32
#define FL_TARGET "avx512f,avx512vl,avx512bw,avx512dq,fma,f16c"
#include "isa.h"
#endif
