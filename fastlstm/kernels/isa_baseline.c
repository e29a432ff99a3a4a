#define FL_ISA baseline
#define FL_WIDTH 16
#define FL_TILE 3
#include "isa.h"
