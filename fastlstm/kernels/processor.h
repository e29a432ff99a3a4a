/* Which processor a thread runs on; see processor.c. */
#ifndef FL_PROCESSOR_H
#define FL_PROCESSOR_H

/* The number of the processor that the calling thread runs on; -1 where the system does not say. */
int fl_processor(void);

/* Moves the calling thread to another processor that it may use, if there is one. It may go anywhere again at once. */
void fl_change_processor(void);

#endif
