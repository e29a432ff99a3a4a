/* The number of threads that a call may have; see claim.c. */
#ifndef FL_CLAIM_H
#define FL_CLAIM_H

/* At least 1 and at most `wanted`; at most what is left of `limit` processors, if limit > 0. Give back what you got. */
int fl_claim_threads(int wanted, int limit);
void fl_return_threads(int threads);

#endif
