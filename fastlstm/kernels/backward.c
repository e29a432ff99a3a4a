/* Backpropagation through time, run by every thread of the team at once.
 *
 *     for each layer, the last first
 *       for each direction of this thread
 *         for each block of steps, last first in the direction's own time
 *           for each step:   dh = dG R of the step after + dy;  dG, dc = cell_backward(dh, dc);  wait for the unit group
 *           all tokens of the block:  dX = dG W;  dW += dG^T X;  dR += dG^T H;  db += dG
 *         the network's own initial state += what rows ask of it that began from it
 *       dy of the layer below = dX of both directions
 *
 * As in the forward pass a thread owns outputs: columns of dh and dX, gate rows of dW and dR. A block's tokens are summed on their own,
 * slab by slab, before they join the gradient: the order depends on T, B and the lengths alone. No vector code here.
 */
#include "pace.h"
#include "schedule.h"

#include <string.h>

/* Rows of one panel of inputs, 96 KiB, that all gate rows pass by; fewer touch the sums more often. */
enum { BLOCK_TOKENS = 384 };
enum { BLOCK_STEPS = 192 }; /* what a recomputing tape holds at once is whole blocks */
enum { RUNS = 16 };         /* runs of FL_UNITS gate rows whose part of dG, 384 KiB, stays in L2 while all inputs pass */

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
    char *barriers, *zeros, *dy, *dx, *dh, *dc, *own, *m;
    char *acc, *panel;
    const void **rows_at; /* rows of a product */
    const void **c_prev;  /* rows of c before a step */
    fl_watcher watcher;
} place;

/* One direction of one layer. */
typedef struct {
    fl_index index, layer, side;
    fl_index I;
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

fl_index fl_block_steps(fl_index B) { return fl_max(1, fl_min(BLOCK_STEPS, BLOCK_TOKENS / fl_max(B, 1))); }

/* Whether any record has a state of its own. */
static int has_own(const fl_network *net)
{
    int found = 0;
    for (fl_index index = 0; index < net->L * net->D; index++)
        found |= net->layers[index].h_0 || net->layers[index].c_0;
    return found;
}

/* Whether any record has peepholes. */
static int has_peephole(const fl_network *net)
{
    int found = 0;
    for (fl_index index = 0; index < net->L * net->D; index++)
        found |= net->layers[index].peephole != NULL;
    return found;
}

static int is_ragged(const fl_tape *tape) { return tape->tokens < tape->T * tape->B; }

static layout make_layout(const fl_backward_call *call)
{
    const fl_network *net = call->net;
    const fl_plan *plan = &call->plan;
    const fl_index item = net->item, tokens = call->tape->tokens, B = call->tape->B;
    const fl_index widest = net->L > 1 ? fl_max(net->I, net->D * net->P) : net->I;
    layout l;

    l.rows = fl_largest_part(B, plan->row_groups, plan->share);
    l.steps = fl_block_steps(B);
    l.dy_side = fl_padded(net->P) * item;
    l.dy_pitch = fl_pitch(net->D * fl_padded(net->P), item);
    l.dx_pitch = fl_pitch(widest, item);
    l.dx = tokens * l.dx_pitch;
    l.dh_pitch = fl_pitch(fl_padded(net->P), item);
    l.dh = net->has_projection ? tokens * l.dh_pitch : 0;
    l.dc_pitch = net->C ? fl_pitch(fl_padded(net->H), item) : 0;
    l.dc = B * l.dc_pitch;
    l.own_h = has_own(net) ? B * l.dh_pitch : 0;
    l.own_c = has_own(net) ? B * l.dc_pitch : 0;
    l.m = net->has_projection && has_peephole(net) ? tokens * call->tape->c_pitch : 0;
    l.barriers = (fl_index)sizeof(fl_barrier) * (plan->directions * (plan->row_groups + 1) + 1);
    l.zeros = fl_round_up(fl_max(fl_padded(net->H), net->P) * item, FL_ALIGNMENT); /* where a row has no state before */
    l.acc = fl_max(l.rows, FL_DX_ROWS) * FL_VECTORS * net->V * item;
    l.pointers = fl_round_up(fl_max(fl_max(l.rows, FL_DX_ROWS), BLOCK_TOKENS) * (fl_index)sizeof(void *), FL_ALIGNMENT);
    l.c_rows = fl_round_up(l.rows * (fl_index)sizeof(void *), FL_ALIGNMENT);
    l.panel = fl_min(tokens, BLOCK_TOKENS) * FL_VECTORS * net->V * item;
    l.thread = l.acc + l.panel + l.pointers + l.c_rows;
    l.bytes = l.barriers + l.zeros + tokens * l.dy_pitch + net->D * (l.dx + l.dh + l.dc + l.own_h + l.own_c + l.m)
              + plan->threads * l.thread;
    return l;
}

/* ---- Where things are ---------------------------------------------------------------------------------------------------------- */

static fl_index active_rows(const fl_tape *tape, fl_index t) { return tape->first[t + 1] - tape->first[t]; }

/* Rows of this group that have step t; they are the first ones. */
static fl_index group_rows(const place *p, fl_index t)
{
    const fl_index n = active_rows(p->tape, t) - p->rank;
    return p->rank_step == 1 ? fl_max(0, fl_min(n, p->rows)) : fl_max(0, fl_ceil_div(n, p->rank_step));
}

static fl_index row_of(const place *p, fl_index i) { return p->tape->order[p->rank + i * p->rank_step]; }

/* Tokens of one direction, from `token` on. */
static char *gates_at(const place *p, const pass *q, fl_index token)
{
    return p->tape->gates + (q->index * p->tape->tokens + token) * p->tape->gates_pitch;
}

static char *c_at(const place *p, const pass *q, fl_index token)
{
    return p->tape->c + (q->index * p->tape->tokens + token) * p->tape->c_pitch;
}

/* h of this direction; the other one's stands beside it. */
static char *h_at(const place *p, const pass *q, fl_index token)
{
    return p->tape->y + (q->layer * p->tape->tokens + token) * p->tape->y_pitch + q->side * p->net->P * p->net->item;
}

static int reset_at(const fl_backward_call *call, fl_index t, fl_index row)
{
    return call->resets && call->resets[t * call->resets_strides[0] + row * call->resets_strides[1]];
}

/* o hidden(c) of the tokens from `token` on, kept for the projection's gradient. */
static char *m_at(const place *p, const pass *q, fl_index token)
{
    return q->m ? q->m + token * p->tape->c_pitch : c_at(p, q, token);
}

/* The state before step t of the row of a rank: the token it was computed at; or -1, the initial state; or -2, the network's own. */
enum { INITIAL = -1, OWN = -2 };
static fl_index state_before(const place *p, const pass *q, fl_index t, fl_index rank)
{
    const fl_tape *tape = p->tape;
    const fl_index before = q->reverse ? t + 1 : t - 1;
    const int inside = before >= 0 && before < tape->T && rank < active_rows(tape, before);

    if (inside ? reset_at(p->call, fl_max(t, before), tape->order[rank]) : !q->reverse && reset_at(p->call, t, tape->order[rank]))
        return OWN;
    return inside ? tape->first[before] + rank : INITIAL;
}

/* Whether gradients cross from step t to the one before it, t >= 1. */
static int cut(const place *p, fl_index t, fl_index row)
{
    return reset_at(p->call, t, row) || (p->call->steps && (t + p->call->first_step) % p->call->steps == 0);
}

/* Waits for the others. A pair that is kept waiting parts here: thread 0 takes over all of the work. Non-zero: leave at once. */
static int meet(place *p, fl_barrier *barrier, int size)
{
    if (fl_wait(barrier, size, &p->call->watch.stop, p->patience_ns))
        return FL_STOPPED;
    if (size == 1 || !atomic_load_explicit(&barrier->apart, memory_order_relaxed))
        return FL_OK;
    if (p->team_rank > 0)
        return FL_STOPPED;
    p->units_size = p->side_size = p->team_size = 1;
    p->column = p->unit = 0;
    p->column_end = fl_ceil_div(p->net->P, FL_VECTORS * p->net->V);
    p->unit_end = fl_ceil_div(p->net->H, FL_VECTORS * p->net->V);
    return FL_OK;
}

/* ---- The time loop ------------------------------------------------------------------------------------------------------------- */

static void copy_padded(char *to, const char *from, fl_index bytes, fl_index room)
{
    memcpy(to, from, (size_t)bytes);
    memset(to + bytes, 0, (size_t)(room - bytes));
}

/* Gradients that leave the sequence where the i-th row begins from the network's own state; `from` in columns. */
static void add_own(const place *p, char *own, fl_index pitch, fl_index i, fl_index from, fl_index count, const char *d)
{
    if (own)
        p->kernels->add(count, d, own + (p->rank + i * p->rank_step) * pitch + from * p->net->item);
}

/* What the final state asks of h, or of dc, for a row that begins here: columns [from, from + count) of `width`. */
static void begin_row(const place *p, const pass *q, const char *d_n, fl_index width, fl_index row, fl_index from, fl_index count,
                      char *to, fl_index room)
{
    const fl_index item = p->net->item, real = fl_max(0, fl_min(count, width - from));

    if (d_n && real)
        copy_padded(to, d_n + ((q->index * p->tape->B + row) * width + from) * item, real * item, room);
    else
        memset(to, 0, (size_t)room);
}

/* The step processed before this one: which, and how many of the group's rows it had. */
typedef struct {
    fl_index t, n;
} processed;

/* p->acc = dh before dy is added, columns of panel j, for the n rows of step t: from the step after, or from the final state. Rows that
 * end here (in the reverse direction) give their initial state its gradient. With n = 0 all do. Panel `then` is next; < 0: none. */
static void recur(place *p, const pass *q, processed after, fl_index t, fl_index n, fl_index j, fl_index then)
{
    const fl_network *net = p->net;
    const fl_index width = FL_VECTORS * net->V, bytes = width * net->item, K = net->gates * fl_padded(net->H);
    const fl_index from = j * width, count = fl_min(width, net->P - from);

    if (after.n) {
        char *gates = gates_at(p, q, p->tape->first[after.t] + p->rank);
        for (fl_index i = 0; i < after.n; i++)
            p->rows_at[i] = gates + i * p->rank_step * p->tape->gates_pitch;
        const char *R = (const char *)q->weights->R;
        const fl_factor weights = {
            .kind = FL_FULL,
            .far = p->call->plan.far_R,
            .K = K,
            .slab = fl_slab(K),
            .panel = R + j * K * bytes,
            .then = then < 0 ? NULL : R + then * K * bytes,
        };
        fl_multiply(p->kernels, &weights, 1, p->acc, 0, p->rows_at, after.n);
    }
    for (fl_index i = 0; i < fl_min(n, after.n); i++)
        if (cut(p, fl_max(t, after.t), row_of(p, i))) {
            if (reset_at(p->call, fl_max(t, after.t), row_of(p, i)))
                add_own(p, q->own_h, p->l->dh_pitch, i, from, count, p->acc + i * bytes);
            memset(p->acc + i * bytes, 0, (size_t)bytes);
        }
    for (fl_index i = n; i < after.n; i++) {
        char *to = p->call->d_h_0 + ((q->index * p->tape->B + row_of(p, i)) * net->P + from) * net->item;
        const int reset = !q->reverse && reset_at(p->call, after.t, row_of(p, i));

        if (reset || !p->tape->h_0)
            add_own(p, q->own_h, p->l->dh_pitch, i, from, count, p->acc + i * bytes);
        if (reset)
            memset(to, 0, (size_t)(count * net->item));
        else {
            p->kernels->store(1, p->acc + i * bytes, p->acc + i * bytes, width);
            memcpy(to, p->acc + i * bytes, (size_t)(count * net->item));
        }
    }
    for (fl_index i = after.n; i < n; i++)
        begin_row(p, q, p->call->d_h_n, net->P, row_of(p, i), from, count, p->acc + i * bytes, bytes);
}

/* dc for the units [from, to): of rows that begin or are cut here; then what goes to the initial state. */
static void carry_c(const place *p, const pass *q, processed after, fl_index t, fl_index n)
{
    const fl_index item = p->net->item, width = FL_VECTORS * p->net->V;
    const fl_index from = p->unit * width, end = fl_min(p->unit_end * width, fl_padded(p->net->H));
    const fl_index count = fl_min(end, p->net->C) - from;

    if (count <= 0)
        return;
    for (fl_index i = 0; i < fl_max(n, after.n); i++) {
        const fl_index row = row_of(p, i);
        char *dc = q->dc + (p->rank + i * p->rank_step) * p->l->dc_pitch + from * item;

        if (i >= after.n)
            begin_row(p, q, p->call->d_c_n, p->net->C, row, from, count, dc, (end - from) * item);
        else if (i < n && cut(p, fl_max(t, after.t), row)) {
            if (reset_at(p->call, fl_max(t, after.t), row))
                add_own(p, q->own_c, p->l->dc_pitch, i, from, count, dc);
            memset(dc, 0, (size_t)((end - from) * item));
        } else if (i >= n) {
            char *to = p->call->d_c_0 + ((q->index * p->tape->B + row) * p->net->C + from) * item;
            const int reset = !q->reverse && reset_at(p->call, after.t, row);

            if (reset || !p->tape->c_0)
                add_own(p, q->own_c, p->l->dc_pitch, i, from, count, dc);
            if (reset)
                memset(to, 0, (size_t)(count * item));
            else
                memcpy(to, dc, (size_t)(count * item));
        }
    }
}

/* The cells of panel j of units; p->acc is dh of what the cell put out. */
static void cells(place *p, const pass *q, fl_index t, fl_index n, fl_index j, const char *dy)
{
    const fl_network *net = p->net;
    const fl_index item = net->item, V = net->V, token = p->tape->first[t] + p->rank;
    char *gates = gates_at(p, q, token), *c = c_at(p, q, token), *m = m_at(p, q, token), *h = h_at(p, q, token);

    for (fl_index v = 0; v < FL_VECTORS && (j * FL_VECTORS + v) * V < net->H; v++) {
        const fl_index unit = (j * FL_VECTORS + v) * V, element = unit / FL_UNITS * net->gates * FL_UNITS + unit % FL_UNITS;
        if (net->gates == 1) {
            p->kernels->rnn_backward(net->relu, n, p->acc + v * V * item, FL_VECTORS * V, dy + unit * item,
                                     p->rank_step * p->l->dy_pitch / item, h + unit * item,
                                     p->rank_step * p->tape->y_pitch / item, gates + element * item,
                                     p->rank_step * p->tape->gates_pitch / item);
            continue;
        }
        const fl_cell_gradient cell = {
            .dh = p->acc + v * V * item,
            .dh_pitch = FL_VECTORS * V,
            .dy = dy ? dy + unit * item : NULL,
            .dy_pitch = p->rank_step * p->l->dy_pitch / item,
            .gates = gates + element * item,
            .gates_pitch = p->rank_step * p->tape->gates_pitch / item,
            .c_prev = p->c_prev,
            .c_prev_from = unit,
            .c = c + unit * item,
            .c_pitch = p->rank_step * p->tape->c_pitch / item,
            .dc = q->dc + p->rank * p->l->dc_pitch + unit * item,
            .dc_pitch = p->rank_step * p->l->dc_pitch / item,
            .m = net->has_projection ? m + unit * item : NULL,
        };
        if (q->packed->variant)
            p->kernels->variant_backward(q->packed->variant, fl_peephole_of(net, q->packed, unit / V), n, &cell);
        else
            p->kernels->cell_backward(n, &cell);
    }
    /* Units past H would spread a NaN of theirs: 0 times infinity. */
    const fl_index last = fl_padded(net->H) - FL_UNITS, real = net->H - last;
    if (real < FL_UNITS && (net->H - 1) / (FL_VECTORS * V) == j)
        for (fl_index i = 0; i < n; i++)
            for (fl_index gate = 0; gate < net->gates; gate++)
                memset(gates + i * p->rank_step * p->tape->gates_pitch + (last * net->gates + gate * FL_UNITS + real) * item, 0,
                       (size_t)((FL_UNITS - real) * item));
}

static const char *c_before(const place *p, const pass *q, fl_index t, fl_index rank)
{
    const fl_index before = state_before(p, q, t, rank);

    if (before >= 0)
        return c_at(p, q, before);
    if (before == INITIAL && p->tape->c_0)
        return p->tape->c_0 + (q->index * p->tape->B + p->tape->order[rank]) * p->tape->c_pitch;
    return q->packed->c_0 ? q->packed->c_0 : p->zeros;
}

/* c before step t, of n rows. */
static void point_to_c(const place *p, const pass *q, fl_index t, fl_index n)
{
    for (fl_index i = 0; i < n; i++)
        p->c_prev[i] = c_before(p, q, t, p->rank + i * p->rank_step);
}

/* dh of one row, where h was clipped: its columns from byte `from` on. */
static void clip_gradient(const place *p, const pass *q, fl_index token, fl_index from, fl_index count, char *dh)
{
    p->kernels->clip_backward(count, q->packed->variant->proj_clip, h_at(p, q, token) + from, dh);
}

static int step(place *p, const pass *q, processed after, fl_index t, fl_index n)
{
    const fl_network *net = p->net;
    const fl_index width = FL_VECTORS * net->V, item = net->item, token = n ? p->tape->first[t] + p->rank : 0;
    const fl_index K = net->gates * fl_padded(net->H);
    const char *dy = p->dy + token * p->l->dy_pitch + q->side * p->l->dy_side;

    point_to_c(p, q, t, n);
    carry_c(p, q, after, t, n);
    for (fl_index done = 0; done < p->column_end - p->column; done++) {
        const fl_index j = t % 2 ? p->column_end - 1 - done : p->column + done; /* as in the forward pass */
        const int last = done + 1 == p->column_end - p->column;

        recur(p, q, after, t, n, j, last ? -1 : t % 2 ? j - 1 : j + 1);
        if (!net->has_projection && n)
            cells(p, q, t, n, j, dy);
        else
            for (fl_index i = 0; net->has_projection && i < n; i++) {
                const fl_index from = j * width * item, count = fl_min(width, net->P - j * width);
                char *to = q->dh + (token + i * p->rank_step) * p->l->dh_pitch + from;
                memcpy(to, p->acc + i * width * item, (size_t)(count * item));
                p->kernels->add(count, dy + i * p->rank_step * p->l->dy_pitch + from, to);
                if (q->packed->variant)
                    clip_gradient(p, q, token + i * p->rank_step, from, count, to);
            }
        if (fl_stopped(&p->watcher, fl_max(n, 1) * K * width))
            return FL_STOPPED;
    }
    if (!net->has_projection)
        return FL_OK;
    if (meet(p, p->units, p->units_size))
        return FL_STOPPED;
    for (fl_index j = p->unit; n && j < p->unit_end; j++) {
        for (fl_index i = 0; i < n; i++)
            p->rows_at[i] = q->dh + (token + i * p->rank_step) * p->l->dh_pitch;
        const char *projection = (const char *)q->weights->projection + j * fl_padded(net->P) * width * item;
        const fl_factor weights = {
            .kind = FL_FULL,
            .far = p->call->plan.far_R,
            .K = net->P,
            .slab = fl_slab(net->P),
            .panel = projection,
            .then = j + 1 < p->unit_end ? projection + fl_padded(net->P) * width * item : NULL,
        };
        fl_multiply(p->kernels, &weights, 1, p->acc, 0, p->rows_at, n);
        cells(p, q, t, n, j, NULL);
        if (fl_stopped(&p->watcher, n * net->P * width))
            return FL_STOPPED;
    }
    return FL_OK;
}

/* ---- Products over the tokens of a block --------------------------------------------------------------------------------------- */

/* Where the outputs of the rank'th thread of a direction begin, of n. */
static fl_index my_part(const place *p, fl_index n, fl_index rank) { return fl_part(n, p->side_size, rank, p->call->plan.share); }

/* dx = dG W: pieces of FL_DX_ROWS tokens and one panel are shared out. */
static int input_gradient(place *p, const pass *q, fl_index first, fl_index tokens)
{
    const fl_index width = FL_VECTORS * p->net->V, item = p->net->item, K = p->net->gates * fl_padded(p->net->H);
    const fl_index pieces = fl_ceil_div(tokens, FL_DX_ROWS), panels = fl_ceil_div(q->I, width);
    const fl_index begin = my_part(p, pieces * panels, p->side_rank);
    const fl_index end = my_part(p, pieces * panels, p->side_rank + 1);

    for (fl_index at = begin; at < end; at++) {
        const fl_index j = at / pieces, from = first + fl_share(tokens, pieces, at % pieces);
        const fl_index n = first + fl_share(tokens, pieces, at % pieces + 1) - from, count = fl_min(width, q->I - j * width);

        for (fl_index i = 0; i < n; i++)
            p->rows_at[i] = gates_at(p, q, from + i);
        const char *W = (const char *)q->weights->W + j * K * width * item;
        const fl_factor weights = {
            .kind = FL_FULL,
            .far = p->call->plan.far_W,
            .K = K,
            .slab = fl_slab(K),
            .panel = W,
            .then = at + 1 < end ? (const char *)q->weights->W + (at + 1) / pieces * K * width * item : NULL,
        };
        fl_multiply(p->kernels, &weights, 1, p->acc, 0, p->rows_at, n);
        p->kernels->store(n, p->acc, p->acc, width);
        for (fl_index i = 0; i < n; i++)
            memcpy(q->dx + (from + i) * p->l->dx_pitch + j * width * item, p->acc + i * width * item, (size_t)(count * item));
        if (fl_stopped(&p->watcher, n * K * width))
            return FL_STOPPED;
    }
    return FL_OK;
}

/* Columns [column, column + 4V) of n rows b, of `columns` columns, as a panel. */
static void pack_panel(const place *p, const void **b, fl_index n, fl_index columns, fl_index column)
{
    const fl_index item = p->net->item, width = FL_VECTORS * p->net->V * item;
    const fl_index bytes = fl_min(width, (columns - column) * item);

    for (fl_index i = 0; i < n; i++)
        copy_padded(p->panel + i * width, (const char *)b[i] + column * item, bytes, width);
}

/* out (rows, columns) += a^T panel over n tokens, or = if it `begins`, for one run of at most FL_UNITS rows and the panel's columns, from
 * `column` on; `a` points at the first row's column. */
static void outer_product(const place *p, int begins, fl_index n, const char *a, fl_index a_pitch, char *out, fl_index rows,
                          fl_index columns, fl_index column)
{
    const fl_index item = p->net->item, width = FL_VECTORS * p->net->V, tiles = fl_ceil_div(rows, FL_MAX_TILE);
    const fl_index count = fl_min(width, columns - column);

    for (fl_index tile = 0; tile < tiles; tile++) {
        const fl_index from = fl_share(rows, tiles, tile), M = fl_share(rows, tiles, tile + 1) - from;
        char *to = out + (from * columns + column) * item;

        for (fl_index m = 0; m < M; m++) /* wanted at the end, from afar */
            for (fl_index at = 0; at < count * item; at += FL_ALIGNMENT)
                __builtin_prefetch(to + m * columns * item + at, 1);
        memset(p->acc, 0, (size_t)(M * width * item));
        p->kernels->outers[M - 1](p->acc, p->panel, a + from * item, a_pitch / item, n);
        for (fl_index m = 0; m < M; m++) {
            if (begins)
                memset(to + m * columns * item, 0, (size_t)(count * item));
            p->kernels->add(count, p->acc + m * width * item, to + m * columns * item);
        }
    }
}

/* d_weight (gates * H, columns) += dG^T b for this thread's gate rows: runs of FL_UNITS units of one gate are shared out. */
static int gate_weights(place *p, const pass *q, int begins, fl_index token, fl_index n, const void **b, char *d_weight,
                        fl_index columns)
{
    const fl_network *net = p->net;
    const fl_index width = FL_VECTORS * net->V, runs = net->gates * fl_padded(net->H) / FL_UNITS;
    const fl_index begin = my_part(p, runs, p->side_rank), end = my_part(p, runs, p->side_rank + 1);
    const char *gates = gates_at(p, q, token);

    for (fl_index from = begin; from < end; from += RUNS)
        for (fl_index column = 0; column < columns; column += width) {
            const fl_index to = fl_min(from + RUNS, end);
            pack_panel(p, b, n, columns, column);
            for (fl_index run = from; run < to; run++) {
                const fl_index unit = run / net->gates * FL_UNITS, gate = run % net->gates;
                outer_product(p, begins, n, gates + run * FL_UNITS * net->item, p->tape->gates_pitch,
                              d_weight + (gate * net->H + unit) * columns * net->item, fl_min(FL_UNITS, net->H - unit), columns,
                              column);
            }
            if (fl_stopped(&p->watcher, n * (to - from) * FL_UNITS * width))
                return FL_STOPPED;
        }
    return FL_OK;
}

static void gate_biases(place *p, const pass *q, fl_index token, fl_index n)
{
    const fl_index H = p->net->H, item = p->net->item, gates = p->net->gates, runs = gates * fl_padded(H) / FL_UNITS;
    const fl_index end = my_part(p, runs, p->side_rank + 1);

    for (fl_index run = my_part(p, runs, p->side_rank); run < end; run++) {
        const fl_index unit = run / gates * FL_UNITS, gate = run % gates;
        p->kernels->sum_rows(n, gates_at(p, q, token) + run * FL_UNITS * item, p->tape->gates_pitch / item,
                             q->d_weights->bias + (gate * H + unit) * item, fl_min(FL_UNITS, H - unit));
    }
}

/* d_weight_hr (P, H) += dh^T m */
static int projection_weights(place *p, const pass *q, int begins, fl_index token, fl_index n)
{
    const fl_network *net = p->net;
    const fl_index width = FL_VECTORS * net->V, runs = fl_padded(net->P) / FL_UNITS;
    const fl_index begin = my_part(p, runs, p->side_rank), end = my_part(p, runs, p->side_rank + 1);

    for (fl_index i = 0; i < n; i++)
        p->rows_at[i] = m_at(p, q, token + i);
    for (fl_index column = 0; column < net->H; column += width) {
        pack_panel(p, p->rows_at, n, net->H, column);
        for (fl_index run = begin; run < end; run++)
            outer_product(p, begins, n, q->dh + token * p->l->dh_pitch + run * FL_UNITS * net->item, p->l->dh_pitch,
                          q->d_weights->weight_hr + run * FL_UNITS * net->H * net->item,
                          fl_min(FL_UNITS, net->P - run * FL_UNITS), net->H, column);
        if (fl_stopped(&p->watcher, n * (end - begin) * FL_UNITS * width))
            return FL_STOPPED;
    }
    return FL_OK;
}

/* Inputs of a layer at n tokens from `token` on. */
static void point_to_inputs(const place *p, const pass *q, fl_index token, fl_index n)
{
    const fl_tape *tape = p->tape;
    const char *above = tape->inputs ? tape->inputs : tape->y;
    const char *rows = q->layer ? above + (q->layer - 1) * tape->tokens * tape->y_pitch : tape->x;

    for (fl_index i = 0; i < n; i++)
        p->rows_at[i] = rows + (token + i) * (q->layer ? tape->y_pitch : tape->x_pitch);
}

/* h before the step of n tokens from `token` on, which is of step t or a later one; its columns of the direction begin at 0. */
static void point_to_h(const place *p, const pass *q, fl_index t, fl_index token, fl_index n)
{
    const fl_tape *tape = p->tape;
    const char *y = h_at(p, q, 0);

    for (fl_index i = 0; i < n; i++, token++) {
        while (token >= tape->first[t + 1])
            t++;
        const fl_index rank = token - tape->first[t], before = state_before(p, q, t, rank);
        if (before >= 0)
            p->rows_at[i] = y + before * tape->y_pitch;
        else if (before == INITIAL && tape->h_0)
            p->rows_at[i] = tape->h_0 + (q->index * tape->B + tape->order[rank]) * tape->h_pitch;
        else
            p->rows_at[i] = q->packed->h_0 ? q->packed->h_0 : p->zeros;
    }
}

/* d_peephole (3H) += dG of i and f times the old c, of o times the new one, over n tokens from step t on. */
static void peephole_weights(const place *p, const pass *q, fl_index t, fl_index token, fl_index n)
{
    static const int gates[3] = {0, 1, 3};
    const fl_tape *tape = p->tape;
    const fl_index H = p->net->H, item = p->net->item, runs = fl_padded(H) / FL_UNITS;
    const fl_index end = my_part(p, runs, p->side_rank + 1);

    for (int k = 0; k < 3; k++) {
        for (fl_index i = 0, step = t; i < n && k % 2 == 0; i++) { /* i and f see the same rows */
            while (token + i >= tape->first[step + 1])
                step++;
            p->rows_at[i] = k ? c_at(p, q, token + i) : c_before(p, q, step, token + i - tape->first[step]);
        }
        for (fl_index run = my_part(p, runs, p->side_rank); run < end; run++)
            p->kernels->sum_products(n, gates_at(p, q, token) + (run * FL_VECTORS + gates[k]) * FL_UNITS * item,
                                     tape->gates_pitch / item, p->rows_at, run * FL_UNITS,
                                     q->d_weights->weight_peephole + (k * H + run * FL_UNITS) * item,
                                     fl_min(FL_UNITS, H - run * FL_UNITS));
    }
}

/* All products over the tokens of the steps [t, end). The first tokens of a call begin the gradients of weights; then `begins` is 0. */
static int products(place *p, const pass *q, int *begins, fl_index t, fl_index end)
{
    const fl_index first = p->tape->first[t], last = p->tape->first[end];

    if (q->dx && input_gradient(p, q, first, last - first))
        return FL_STOPPED;
    for (fl_index token = first; token < last; token += BLOCK_TOKENS) {
        const fl_index n = fl_min(BLOCK_TOKENS, last - token);

        point_to_inputs(p, q, token, n);
        if (gate_weights(p, q, *begins, token, n, p->rows_at, q->d_weights->weight_ih, q->I))
            return FL_STOPPED;
        point_to_h(p, q, t, token, n);
        if (gate_weights(p, q, *begins, token, n, p->rows_at, q->d_weights->weight_hh, p->net->P))
            return FL_STOPPED;
        if (q->d_weights->bias)
            gate_biases(p, q, token, n);
        if (p->net->has_projection && projection_weights(p, q, *begins, token, n))
            return FL_STOPPED;
        if (q->packed->peephole)
            peephole_weights(p, q, t, token, n);
        *begins = 0;
    }
    return FL_OK;
}

/* ---- The network's own initial state ------------------------------------------------------------------------------------------- */

/* Gradients that are sums from the beginning: the small ones, and all where there is no token. */
static void clear_gradients(const place *p, const pass *q)
{
    const fl_network *net = p->net;
    const fl_index item = net->item, rows = net->gates * net->H;
    const fl_layer_gradients *d = q->d_weights;
    const struct {
        char *at;
        fl_index count;
    } small[] = {{d->bias, rows}, {d->weight_peephole, 3 * net->H}, {d->h_0, net->P}, {d->c_0, net->C}},
      large[] = {{d->weight_ih, rows * q->I}, {d->weight_hh, rows * net->P}, {d->weight_hr, net->P * net->H}};

    for (int i = 0; i < 4; i++)
        if (small[i].at)
            memset(small[i].at, 0, (size_t)(small[i].count * item));
    for (int i = 0; i < 3; i++)
        if (large[i].at && !p->tape->tokens)
            memset(large[i].at, 0, (size_t)(large[i].count * item));
}

/* Nothing is asked of it yet, but by rows without a step, which hand on what is asked of their final state. */
static void clear_own(const place *p, const pass *q)
{
    const fl_tape *tape = p->tape;
    const fl_network *net = p->net;
    const fl_index some = tape->T ? active_rows(tape, 0) : 0;

    if (!q->own_h || p->side_rank % p->units_size)
        return;
    for (fl_index i = 0; i < p->rows; i++) {
        const fl_index rank = p->rank + i * p->rank_step;
        begin_row(p, q, rank < some || tape->h_0 ? NULL : p->call->d_h_n, net->P, row_of(p, i), 0, net->P,
                  q->own_h + rank * p->l->dh_pitch, p->l->dh_pitch);
        begin_row(p, q, rank < some || tape->c_0 ? NULL : p->call->d_c_n, net->H, row_of(p, i), 0, net->H,
                  q->own_c + rank * p->l->dc_pitch, p->l->dc_pitch);
    }
}

/* d_h_0 and d_c_0 += the sum over rows, by rank. */
static int sum_own(place *p, const pass *q)
{
    const struct {
        const char *rows;
        fl_index pitch, size;
        char *out;
    } parts[2] = {{q->own_h, p->l->dh_pitch, p->net->P, q->d_weights->h_0},
                  {q->own_c, p->l->dc_pitch, p->net->H, q->d_weights->c_0}};
    const fl_index item = p->net->item;

    if (!q->own_h)
        return FL_OK;
    if (meet(p, p->side, p->side_size))
        return FL_STOPPED;
    for (int k = 0; k < 2; k++) {
        const fl_index runs = fl_padded(parts[k].size) / FL_UNITS, end = my_part(p, runs, p->side_rank + 1);
        for (fl_index run = my_part(p, runs, p->side_rank); run < end && parts[k].out; run++)
            p->kernels->sum_rows(p->tape->B, parts[k].rows + run * FL_UNITS * item, parts[k].pitch / item,
                                 parts[k].out + run * FL_UNITS * item, fl_min(FL_UNITS, parts[k].size - run * FL_UNITS));
    }
    return FL_OK;
}

/* ---- The call ------------------------------------------------------------------------------------------------------------------ */

/* One direction of one layer, from its end to its beginning. */
static int run(place *p, const pass *q)
{
    const fl_index T = p->tape->T, steps = p->l->steps, blocks = fl_ceil_div(T, steps);
    processed after = {0, 0};
    int begins = !p->call->adds;

    if (begins && p->side_rank == 0)
        clear_gradients(p, q);
    clear_own(p, q);
    for (fl_index block = 0; block < blocks; block++) {
        const fl_index first = (q->reverse ? block : blocks - 1 - block) * steps, end = fl_min(first + steps, T);

        for (fl_index s = first; s < end; s++) {
            const fl_index t = q->reverse ? s : end - 1 - (s - first), n = group_rows(p, t);

            if ((n || after.n) && step(p, q, after, t, n))
                return FL_STOPPED;
            after = (processed){t, n};
            if (meet(p, p->units, p->units_size))
                return FL_STOPPED;
        }
        if (meet(p, p->side, p->side_size) || products(p, q, &begins, first, end))
            return FL_STOPPED;
    }
    if (after.n && step(p, q, after, q->reverse ? T : -1, 0))
        return FL_STOPPED;
    return sum_own(p, q);
}

/* The gradient of the output, token by token, with zeros up to whole groups of units: from the caller, or from the layer above. */
static void take_output_gradient(const place *p)
{
    const fl_network *net = p->net;
    const fl_tape *tape = p->tape;
    const fl_array *d = &p->call->d_output;
    const fl_index end = fl_share(tape->T, p->team_size, p->team_rank + 1), bytes = net->P * net->item;

    for (fl_index t = fl_share(tape->T, p->team_size, p->team_rank); t < end; t++)
        for (fl_index token = tape->first[t]; token < tape->first[t + 1]; token++)
            for (fl_index side = 0; side < net->D; side++) {
                char *to = p->dy + token * p->l->dy_pitch + side * p->l->dy_side;
                if (d->data)
                    copy_padded(to,
                                d->data + t * d->strides[0] + tape->order[token - tape->first[t]] * d->strides[1] + side * bytes,
                                bytes, p->l->dy_side);
                else
                    memset(to, 0, (size_t)p->l->dy_side);
            }
}

/* dx of both directions, as the dy of the layer below or as the caller's gradient of x. */
static void hand_down(const place *p, fl_index layer)
{
    const fl_network *net = p->net;
    const fl_tape *tape = p->tape;
    const fl_array *d = &p->call->d_x;
    const fl_index I = layer ? net->D * net->P : net->I, end = fl_share(tape->T, p->team_size, p->team_rank + 1);

    for (fl_index t = fl_share(tape->T, p->team_size, p->team_rank); t < end; t++)
        for (fl_index token = tape->first[t]; token < tape->first[t + 1]; token++) {
            char *dx = p->dx + token * p->l->dx_pitch;
            if (net->D == 2)
                p->kernels->add(I, dx + p->l->dx, dx);
            if (layer && tape->dropout.p > 0)
                fl_drop(&tape->dropout, layer - 1, t, tape->order[token - tape->first[t]], 0, I, net->item, dx);
            if (layer == 0)
                memcpy(d->data + t * d->strides[0] + tape->order[token - tape->first[t]] * d->strides[1], dx,
                       (size_t)(I * net->item));
            for (fl_index side = 0; layer && side < net->D; side++)
                copy_padded(p->dy + token * p->l->dy_pitch + side * p->l->dy_side, dx + side * net->P * net->item,
                            net->P * net->item, p->l->dy_side);
        }
}

static int run_layers(place *p)
{
    fl_backward_call *call = p->call;
    const fl_network *net = p->net;

    take_output_gradient(p);
    for (fl_index layer = net->L - 1; layer >= 0; layer--) {
        if (meet(p, p->team, p->team_size))
            return FL_STOPPED;
        for (int side = p->direction; side < p->direction + p->directions; side++) {
            const fl_index index = layer * net->D + side;
            const pass q = {
                .index = index,
                .layer = layer,
                .side = side,
                .I = layer ? net->D * net->P : net->I,
                .reverse = fl_runs_back(net, index),
                .packed = &net->layers[index],
                .weights = &call->transposed->layers[index],
                .d_weights = &call->d_weights[index],
                .dx = layer || call->d_x.data ? p->dx + side * p->l->dx : NULL,
                .dc = p->dc + side * p->l->dc,
                .dh = p->dh + side * p->l->dh,
                .own_h = net->layers[index].h_0 ? p->own + side * (p->l->own_h + p->l->own_c) : NULL,
                .own_c = net->layers[index].c_0 ? p->own + side * (p->l->own_h + p->l->own_c) + p->l->own_h : NULL,
                .m = p->l->m ? p->m + side * p->l->m : NULL,
            };
            if (run(p, &q))
                return FL_STOPPED;
        }
        if (meet(p, p->team, p->team_size))
            return FL_STOPPED;
        if (layer || call->d_x.data)
            hand_down(p, layer);
    }
    return FL_OK;
}

static place take_place(fl_backward_call *call, const layout *l, int thread, uint64_t found)
{
    const fl_network *net = call->net;
    const fl_tape *tape = call->tape;
    const fl_plan *plan = &call->plan;
    const int unit_group = thread % plan->unit_groups, group = thread / plan->unit_groups % plan->row_groups;
    const int side = thread / plan->unit_groups / plan->row_groups, side_size = plan->unit_groups * plan->row_groups;
    const fl_index width = FL_VECTORS * net->V, columns = fl_ceil_div(net->P, width), units = fl_ceil_div(net->H, width);
    const fl_index row = fl_part(tape->B, plan->row_groups, group, plan->share);
    fl_barrier *barriers = (fl_barrier *)call->scratch;
    char *mine = call->scratch + l->bytes - (plan->threads - thread) * l->thread;
    place p = {
        .call = call,
        .net = net,
        .kernels = net->kernels,
        .tape = tape,
        .l = l,
        .direction = side,
        .directions = (int)net->D / plan->directions,
        .rank = is_ragged(tape) ? group : row,
        .rank_step = is_ragged(tape) ? plan->row_groups : 1,
        .rows = fl_part(tape->B, plan->row_groups, group + 1, plan->share) - row,
        .column = fl_part(columns, plan->unit_groups, unit_group, plan->share),
        .column_end = fl_part(columns, plan->unit_groups, unit_group + 1, plan->share),
        .unit = fl_part(units, plan->unit_groups, unit_group, plan->share),
        .unit_end = fl_part(units, plan->unit_groups, unit_group + 1, plan->share),
        .team = barriers,
        .side = barriers + 1 + side,
        .units = barriers + 1 + plan->directions + side * plan->row_groups + group,
        .units_size = plan->unit_groups,
        .side_size = side_size,
        .team_size = plan->threads,
        .patience_ns = plan->threads == 2 && plan->unit_groups == 2 ? plan->patience_ns : INT64_MAX,
        .side_rank = thread % side_size,
        .team_rank = thread,
        .zeros = call->scratch + l->barriers,
        .dy = call->scratch + l->barriers + l->zeros,
        .acc = mine,
        .panel = mine + l->acc,
        .rows_at = (const void **)(mine + l->acc + l->panel),
        .c_prev = (const void **)(mine + l->acc + l->panel + l->pointers),
        .watcher = fl_watcher_of(&call->watch, thread, found),
    };
    p.dx = p.dy + tape->tokens * l->dy_pitch;
    p.dh = p.dx + net->D * l->dx;
    p.dc = p.dh + net->D * l->dh;
    p.own = p.dc + net->D * l->dc;
    p.m = p.own + net->D * (l->own_h + l->own_c);
    return p;
}

void fl_backward(fl_backward_call *call, int thread)
{
    const layout l = make_layout(call);
    const uint64_t found = fl_enter_float_state();
    place p = take_place(call, &l, thread, found);

    if (thread == 0)
        call->begun = 1;
    if (call->plan.threads > 1)
        fl_start_clock();
    const int status = run_layers(&p);
    if (call->plan.threads == 2)
        call->worked_ns[thread] = status == FL_OK ? fl_worked_ns() : 0;
    fl_leave_float_state(found);
}

int fl_prepare_backward(fl_backward_call *call)
{
    if (is_ragged(call->tape) && call->plan.row_groups > 1) /* as in the forward pass */
        call->plan.share = FL_EVEN;
    const layout l = make_layout(call);

    call->scratch = fl_borrow((size_t)l.bytes);
    if (!call->scratch)
        return FL_NO_MEMORY;
    fl_open_barriers((fl_barrier *)call->scratch, call->plan.directions * (call->plan.row_groups + 1) + 1);
    memset(call->scratch + l.barriers, 0, (size_t)l.zeros);
    atomic_init(&call->watch.stop, 0);
    call->begun = 0;
    return FL_OK;
}

void fl_release_backward(fl_backward_call *call)
{
    fl_give_back(call->scratch);
    call->scratch = NULL;
}
