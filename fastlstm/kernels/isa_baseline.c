#define FL_ISA baseline
#define FL_WIDTH 16
#define FL_ACCUMULATORS 12
#include "isa.h"
