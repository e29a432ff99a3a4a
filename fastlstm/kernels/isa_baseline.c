#define FL_ISA baseline
#define FL_WIDTH 16
#define FL_REGISTERS 16
#define FL_COMPACT /* for processors before 2013: a third of what it would fill */
#include "isa.h"
