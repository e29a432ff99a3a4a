/* What the schedules of both passes share: products of any number of rows, the order of rows, and checking whether to stop. */
#ifndef FL_SCHEDULE_H
#define FL_SCHEDULE_H

#include "fastlstm.h"
#include "float_state.h"
#include "team.h"

/* The weights of a product: as fl_tile has them; int8's scales stand before the weights. */
typedef struct {
    int kind;
    int far; /* they come from beyond L2 */
    fl_index K, slab;
    const char *panel;
    fl_index panel_next; /* bytes to a second block's */
    fl_index columns;    /* that are wanted of a block's 4V: others may be left out; 0: all */
    const char *then;    /* of the next product, to be fetched early; NULL: it is not known, or near */
} fl_factor;

/* Steps of a row; `lengths` as in fl_call. */
static inline fl_index fl_length(const int64_t *lengths, fl_index row, fl_index T)
{
    return lengths ? fl_max(0, fl_min((fl_index)lengths[row], T)) : T;
}

/* Rows by falling length, and of equal ones by number. */
int fl_order_rows(const int64_t *lengths, fl_index B, fl_index *order);

/* Whether a row begins step t anew. */
static inline int fl_reset_at(const fl_array *resets, fl_index t, fl_index row)
{
    return resets->data && resets->data[t * resets->strides[0] + row * resets->strides[1]];
}

/* A thread's part in stopping a call. */
typedef struct {
    fl_watch *watch;
    int64_t polled; /* when, ns; 0: not yet, as a look at the clock is dear to a call of a microsecond */
    fl_index work;  /* multiply-adds since */
    int asks;       /* thread 0 asks the caller, the others only look */
    uint64_t found; /* the caller's floating-point state */
} fl_watcher;

enum { FL_POLL_WORK = 1 << 20 }; /* multiply-adds between two looks at the clock */
static const int64_t FL_POLL_NS = 25000000;

static inline fl_watcher fl_watcher_of(fl_watch *watch, int thread, uint64_t found)
{
    return (fl_watcher){.watch = watch, .asks = thread == 0 && watch->poll, .found = found};
}

/* Counts work; thread 0 asks its caller now and then whether to go on. Non-zero: leave at once. */
static inline int fl_check_stop(fl_watcher *watcher, fl_index work)
{
    fl_watch *watch = watcher->watch;

    if (watcher->asks && (watcher->work += work) > FL_POLL_WORK) {
        const int64_t now = fl_now_ns();
        watcher->work = 0;
        if (watcher->polled && now - watcher->polled > FL_POLL_NS) {
            fl_leave_float_state(watcher->found); /* what the caller does when asked, it does in its own */
            if (watch->poll(watch->context))
                atomic_store_explicit(&watch->stop, 1, memory_order_relaxed);
            fl_enter_float_state();
            watcher->polled = fl_now_ns();
        } else if (!watcher->polled)
            watcher->polled = now;
    }
    return atomic_load_explicit(&watch->stop, memory_order_relaxed);
}

/* acc = n rows, at least one, times one block's weights, or two neighbouring ones' (then n is 1). It is left unfinished if the call is
 * stopped: the caller asks fl_check_stop before it goes on. */
void fl_multiply(const fl_kernels *kernels, const fl_factor *weights, fl_index blocks, char *acc, fl_index acc_next,
                 const void **rows, fl_index n, fl_watcher *watcher);

#endif
