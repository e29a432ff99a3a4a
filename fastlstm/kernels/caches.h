/* How much a processor's caches hold, and how fast the shared one is; see caches.c. */
#ifndef FL_CACHES_H
#define FL_CACHES_H

#include "fastlstm.h"

/* Bytes of one core's L1 for data, and of its L2; where the system does not say, what most have. */
fl_index fl_l1_bytes(void);
fl_index fl_l2_bytes(void);

/* Bytes per ns that one core reads from beyond its L2. Measured at the first question, in half a millisecond. */
double fl_l3_bytes_per_ns(void);

#endif
