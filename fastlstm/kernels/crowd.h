/* Other processes that keep the processors busy; see crowd.c. */
#ifndef FL_CROWD_H
#define FL_CROWD_H

#include <stdint.h>

/* Whether calls had better leave one processor free. */
int fl_is_crowded(void);

/* A call that a team began then ends. worked_ns is one thread's time without its waits, which may have other causes than busy processors. */
void fl_note_team(int64_t begun_ns, int64_t worked_ns);

/* In that call other processes kept the team waiting: if that goes on, teams leave one processor free for a while. */
void fl_note_crowd(int64_t begun_ns, int64_t waited_ns);

#endif
