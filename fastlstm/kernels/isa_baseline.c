#define FL_ISA baseline
#define FL_WIDTH 16
#define FL_REGISTERS 16
#define FL_COMPACT /* for processors before 2013: two fifths of what it would fill */
#include "isa.h"
