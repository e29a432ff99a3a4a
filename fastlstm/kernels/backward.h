/* What the time loop of the backward pass (backward.c) and its products over tokens (token_products.c) share: a thread's place, and
 * where in the tape things are. */
#ifndef FL_BACKWARD_H
#define FL_BACKWARD_H

#include "schedule.h"

#include <string.h>

/* Rows of one panel of inputs, 96 KiB, that all gate rows pass by; fewer touch the sums more often. */
enum { BLOCK_TOKENS = 384 };

/* Sizes of scratch, in bytes; everything begins on a cache line. */
typedef struct {
    fl_index rows;                         /* the largest row group */
    fl_index steps;                        /* of a block */
    fl_index dy_side, dy_pitch;            /* gradient of a layer's output: one direction's columns, one token */
    fl_index dx_pitch, dx;                 /* gradient of a layer's input, by one direction */
    fl_index dh_pitch, dh;                 /* with a projection: gradient of h, one direction */
    fl_index dc_pitch, dc;                 /* gradient of the state c, one direction */
    fl_index own_h, own_c;                 /* gradients of the network's own initial state, row by row; 0 without one */
    fl_index m;                            /* with a projection and peepholes: o hidden(c), one direction */
    fl_index barriers, zeros;              /* for the team */
    fl_index acc, panel, pointers, c_rows; /* for each thread */
    fl_index thread;                       /* the same in all */
    fl_index bytes;                        /* in all */
} layout;

/* A thread's place in the team, and what it works with. */
typedef struct {
    fl_backward_call *call;
    const fl_network *net;
    const fl_kernels *kernels;
    const fl_tape *tape;
    const layout *l;
    int direction, directions;       /* first direction it runs, and how many */
    fl_index rank, rank_step, rows;  /* its group's rows */
    fl_index column, column_end;     /* its columns of h, in panels of 4V */
    fl_index unit, unit_end;         /* its hidden units, in panels of 4V */
    fl_barrier *units, *side, *team; /* the unit group; all threads of the direction; all */
    int units_size, side_size, team_size, side_rank, team_rank;
    int64_t patience_ns; /* of a team of two that divides units: after waiting for longer one goes on alone */
    char *zeros, *dy, *dx, *dh, *dc, *own, *m;
    char *acc, *panel;
    const void **rows_at; /* rows of a product */
    const void **c_prev;  /* rows of c before a step */
    fl_watcher watcher;
} place;

/* One direction of one layer. */
typedef struct {
    fl_index index, layer, side;
    int reverse;
    const fl_layer *packed;
    const fl_transposed_layer *weights;
    const fl_layer_gradients *d_weights;
    char *dx;            /* [tokens], or NULL */
    char *dc;            /* [B] by rank */
    char *dh;            /* [tokens], with a projection */
    char *own_h, *own_c; /* [B] by rank, if the layer has a state of its own; else NULL */
    char *m;             /* [tokens], or NULL: in c's place */
} pass;

static inline fl_index active_rows(const fl_tape *tape, fl_index t) { return tape->first[t + 1] - tape->first[t]; }

/* Rows of this group that have step t; they are the first ones. */
static inline fl_index group_rows(const place *p, fl_index t)
{
    const fl_index n = active_rows(p->tape, t) - p->rank;
    return p->rank_step == 1 ? fl_max(0, fl_min(n, p->rows)) : fl_max(0, fl_ceil_div(n, p->rank_step));
}

static inline fl_index row_of(const place *p, fl_index i) { return p->tape->order[p->rank + i * p->rank_step]; }

/* Tokens of one direction, from `token` on. */
static inline char *gates_at(const place *p, const pass *q, fl_index token)
{
    return p->tape->gates + (q->index * p->tape->tokens + token) * p->tape->gates_pitch;
}

static inline char *c_at(const place *p, const pass *q, fl_index token)
{
    return p->tape->c + (q->index * p->tape->tokens + token) * p->tape->c_pitch;
}

/* h of this direction; the other one's stands beside it. */
static inline char *h_at(const place *p, const pass *q, fl_index token)
{
    return p->tape->y + (q->layer * p->tape->tokens + token) * p->tape->y_pitch + q->side * p->net->P * p->net->item;
}

/* o hidden(c) of the tokens from `token` on, kept for the projection's gradient. */
static inline char *m_at(const place *p, const pass *q, fl_index token)
{
    return q->m ? q->m + token * p->tape->c_pitch : c_at(p, q, token);
}

/* The state before step t of the row of a rank: the token it was computed at; or -1, the initial state; or -2, the network's own. */
enum { INITIAL = -1, OWN = -2 };
static inline fl_index state_before(const place *p, const pass *q, fl_index t, fl_index rank)
{
    const fl_tape *tape = p->tape;
    const fl_index before = q->reverse ? t + 1 : t - 1;
    const int inside = before >= 0 && before < tape->T && rank < active_rows(tape, before);

    if (inside ? fl_reset_at(&p->call->resets, fl_max(t, before), tape->order[rank])
               : !q->reverse && fl_reset_at(&p->call->resets, t, tape->order[rank]))
        return OWN;
    return inside ? tape->first[before] + rank : INITIAL;
}

static inline const char *c_before(const place *p, const pass *q, fl_index t, fl_index rank)
{
    const fl_index before = state_before(p, q, t, rank);

    if (before >= 0)
        return c_at(p, q, before);
    if (before == INITIAL && p->tape->c_0)
        return p->tape->c_0 + (q->index * p->tape->B + p->tape->order[rank]) * p->tape->c_pitch;
    return q->packed->c_0 ? q->packed->c_0 : p->zeros;
}

static inline void copy_padded(char *to, const char *from, fl_index bytes, fl_index room)
{
    memcpy(to, from, (size_t)bytes);
    memset(to + bytes, 0, (size_t)(room - bytes));
}

/* Where the outputs of the rank'th thread of a direction begin, of n. */
static inline fl_index my_part(const place *p, fl_index n, fl_index rank)
{
    return fl_part(n, p->side_size, rank, p->call->job.plan.share);
}

/* All products over the tokens of the steps [t, end), a block's: dX, dW, dR and the gradients of biases, projection and peepholes. The
 * first tokens of a call begin the gradients of weights; then `begins` is 0. Non-zero: the call was stopped. */
int fl_token_products(place *p, const pass *q, int *begins, fl_index t, fl_index end);

#endif
