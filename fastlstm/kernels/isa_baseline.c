#define FL_ISA baseline
#define FL_WIDTH 16
#define FL_REGISTERS 16
#include "isa.h"
