/* The forward pass: layers, directions and time, run by every thread of the team at once.
 *
 *     for each stride of steps                       (a unidirectional stack hands on a few steps at a time; otherwise all)
 *       for each layer of this thread                (groups of layers side by side: each works a stride behind the one below)
 *         for each direction of this thread
 *           for each chunk of steps:  x W                               (one product for the whole chunk, if its rows are not too many)
 *             for each step:          h R;  c, h = cell(x W + h R + bias, c);  wait for the unit group
 *
 * A thread owns a range of hidden units for all rows of its group, so every sum is made by one thread from beginning to end, in one
 * order. Rows stand by falling length: the active ones are always the first n. No vector code here.
 *
 * What two threads divide is in parts by how fast they were lately (pace.h).
 *
 * Two threads that divide hidden units wait for each other at every step. If another process takes one of their processors, the first of
 * them goes on alone from the next step: half as fast, but not at the mercy of the scheduler's time slices of some milliseconds.
 */
#include "pace.h"
#include "schedule.h"

#include <string.h>

/* The recurrent state of one direction of one layer for one group's rows; a plain RNN has h alone. */
typedef struct {
    char *h[2]; /* [rows][h_pitch]: step s reads h[s % 2] and writes h[(s + 1) % 2] */
    char *c;    /* [rows][c_pitch] */
    char *m;    /* [rows][c_pitch]: o tanh(c) before the projection; h[...] itself without one */
} state;

/* Sizes of scratch, in bytes; everything begins on a cache line. */
typedef struct {
    int sides;                       /* of a row group: directions or groups of layers */
    fl_index rows;                   /* the largest row group */
    fl_index product_rows;           /* the most rows of one product */
    fl_index h_pitch, c_pitch;       /* bytes from one row of a state to the next */
    fl_index state, states;          /* one state; all states of a row group: L*D */
    fl_index between, betweens;      /* one buffer between two layers, all rows; all of them */
    fl_index width;                  /* bytes of one row of it */
    fl_index order, barriers;        /* for the team */
    fl_index xW, hR, inputs, hidden; /* for each thread */
    fl_index thread;                 /* the same in all */
    fl_index bytes;                  /* in all */
} layout;

/* A thread's place in the team, and what it works with. */
typedef struct {
    fl_call *call;
    const fl_network *net;
    const layout *l;
    fl_index layer, layer_end;         /* its layers */
    int direction, directions;         /* first direction it runs, and how many */
    fl_index row, rows;                /* its group's rows in call->order */
    fl_index block, block_end;         /* its hidden units, in blocks */
    fl_index column, column_end;       /* its columns of h: units, or projected outputs */
    fl_index projected, projected_end; /* its blocks of projected outputs */
    fl_barrier *units, *group;         /* the unit group of one direction or group of layers; the whole row group */
    int units_size, group_size;
    int row_group, unit_group;     /* the numbers of its groups */
    int64_t patience_ns;           /* after waiting for longer, a team of two parts: see go_alone */
    fl_index chunk;                /* as in the plan */
    char *xW, *hR;                 /* the two parts of the pre-activations: [blocks at once][rows][FL_VECTORS][V] */
    const void **inputs, **hidden; /* rows of x, for a chunk or a step; rows of h */
    fl_index rank, rank_step;      /* of its rows in the tape: rank, rank + rank_step, ... */
    fl_watcher watcher;
} place;

static layout make_layout(const fl_call *call)
{
    const fl_network *net = call->net;
    const fl_plan *plan = &call->job.plan;
    const fl_index item = net->item, panel = FL_VECTORS * net->V * item;
    const fl_index blocks = fl_largest_part(net->blocks, plan->unit_groups, plan->share);
    layout l;

    l.sides = plan->layer_groups * plan->directions;
    l.rows = fl_largest_part(call->B, plan->row_groups, plan->share);
    l.product_rows = l.rows * fl_max(plan->chunk, 1);
    l.h_pitch = fl_pitch(net->has_projection ? net->projected_blocks * FL_VECTORS * net->V : net->blocks * net->units, item);
    l.c_pitch = net->C ? fl_pitch(net->blocks * net->units, item) : 0;
    l.state = l.rows * (2 * l.h_pitch + l.c_pitch * (net->has_projection ? 2 : 1));
    l.states = l.state * net->L * net->D;
    l.width = net->D * net->P * item;
    l.between = fl_round_up(plan->stride * call->B * l.width, FL_ALIGNMENT);
    l.betweens = l.between * (plan->layer_groups > 1 ? 2 * (net->L - 1) : fl_min(net->L - 1, 2));
    l.order = fl_round_up(call->B * (fl_index)sizeof *call->order, FL_ALIGNMENT);
    l.barriers = (fl_index)sizeof(fl_barrier) * plan->row_groups * (l.sides + 1);
    l.hR = fl_max(l.rows, 2) * panel; /* 2: a pair of blocks for one row */
    l.xW = plan->chunk ? l.product_rows * blocks * panel : l.hR;
    l.inputs = fl_round_up(l.product_rows * (fl_index)sizeof(void *), FL_ALIGNMENT);
    l.hidden = fl_round_up(l.rows * (fl_index)sizeof(void *), FL_ALIGNMENT);
    l.thread = l.xW + l.hR + l.inputs + l.hidden;
    l.bytes = l.order + l.barriers + plan->row_groups * l.states + l.betweens + plan->threads * l.thread;
    return l;
}

static state state_of(const place *p, fl_index index)
{
    char *base = p->call->job.scratch + p->l->order + p->l->barriers + p->row_group * p->l->states + index * p->l->state;
    state s = {.h = {base, base + p->l->rows * p->l->h_pitch}, .c = base + 2 * p->l->rows * p->l->h_pitch};
    s.m = s.c + p->l->rows * p->l->c_pitch;
    return s;
}

/* What layer `layer` hands on. Side by side it writes one stride while the layer above reads the last. */
static char *between_of(const place *p, fl_index layer, fl_index stride)
{
    const fl_plan *plan = &p->call->job.plan;
    const fl_index number = plan->layer_groups > 1 ? 2 * layer + stride % 2 : layer % 2;
    return p->call->job.scratch + p->l->order + p->l->barriers + plan->row_groups * p->l->states + number * p->l->between;
}

static fl_index length_of(const fl_call *call, fl_index row) { return fl_length(call->lengths, row, call->T); }

/* ---- States -------------------------------------------------------------------------------------------------------------------- */

/* This thread's columns of a row's state as it begins: as given or, if NULL, the layer's own, or zeros. */
static void begin_row(const place *p, const fl_layer *layer, char *h, char *c, const char *h_0, const char *c_0)
{
    const fl_network *net = p->net;
    const fl_index item = net->item, unit = p->block * net->units, units = fl_min(p->block_end * net->units, net->C) - unit;
    const fl_index columns = p->column_end - p->column;

    h_0 = h_0 ? h_0 : layer->h_0;
    c_0 = c_0 ? c_0 : layer->c_0;
    if (units > 0) {
        const fl_index given = c_0 ? unit + units : unit;
        if (c_0)
            memcpy(c + unit * item, c_0 + unit * item, (size_t)(units * item));
        /* Lanes past H take part in the arithmetic and are never read: they must only be cheap. */
        if (given < p->block_end * net->units)
            memset(c + given * item, 0, (size_t)((p->block_end * net->units - given) * item));
    }
    if (columns > 0 && h_0)
        memcpy(h + p->column * item, h_0 + p->column * item, (size_t)(columns * item));
    else if (columns > 0)
        memset(h + p->column * item, 0, (size_t)(columns * item));
}

/* The initial state into h and c; rows that are reset before their first step begin without one. Into both h if the direction runs back
 * over rows of several lengths: they begin at different steps. */
static void load_state(place *p, const state *s, fl_index index)
{
    const fl_call *call = p->call;
    const fl_network *net = p->net;

    const int copies = call->lengths && fl_runs_back(net, index) ? 2 : 1;

    for (fl_index row = 0; row < p->rows; row++) {
        const fl_index b = call->order[p->row + row], at = index * call->B + b;
        const int fresh = !fl_runs_back(net, index) && length_of(call, b) && fl_reset_at(&call->resets, 0, b);
        const char *h_0 = call->h_0 && !fresh ? call->h_0 + at * net->P * net->item : NULL;
        const char *c_0 = call->c_0 && !fresh ? call->c_0 + at * net->C * net->item : NULL;

        for (int i = 0; i < copies; i++)
            begin_row(p, &net->layers[index], s->h[i] + row * p->l->h_pitch, s->c + row * p->l->c_pitch, h_0, c_0);
        if (fl_check_stop(&p->watcher, net->P + net->C)) /* the memory of very many rows may have to be found first */
            return;
    }
}

static void save_state(const place *p, const state *s, fl_index index)
{
    const fl_call *call = p->call;
    const fl_network *net = p->net;
    const fl_index item = net->item, unit = p->block * net->units, units = fl_min(p->block_end * net->units, net->C) - unit;
    const fl_index columns = p->column_end - p->column;

    for (fl_index row = 0; row < p->rows; row++) {
        const fl_index b = call->order[p->row + row];
        const fl_index last =
            fl_runs_back(net, index) ? call->T : length_of(call, b); /* the step count after which h was last written */
        if (units > 0)
            memcpy(call->c_n + ((index * call->B + b) * net->C + unit) * item, s->c + row * p->l->c_pitch + unit * item,
                   (size_t)(units * item));
        if (columns > 0)
            memcpy(call->h_n + ((index * call->B + b) * net->P + p->column) * item,
                   s->h[last % 2] + row * p->l->h_pitch + p->column * item, (size_t)(columns * item));
    }
}

/* ---- Steps --------------------------------------------------------------------------------------------------------------------- */

/* Where a layer reads and writes: the caller's arrays by row number, or a buffer between layers by place in call->order. */
typedef struct {
    char *data;
    fl_index t_stride, row_stride;
    const fl_index *order; /* NULL: rows stand in call->order already */
} grid;

static char *row_at(const grid *g, fl_index t, fl_index place_in_order)
{
    return g->data + t * g->t_stride + (g->order ? g->order[place_in_order] : place_in_order) * g->row_stride;
}

/* One direction of one layer. */
typedef struct {
    fl_index index; /* in net->layers */
    const fl_layer *layer;
    state state;
    int reverse;
    grid in, out;
    int last; /* the last layer: out is the caller's, padding is zero */
} pass;

static fl_index time_of(const place *p, const pass *q, fl_index s) { return q->reverse ? p->call->T - 1 - s : s; }

/* Rows of the group that have step t; they are the first ones. */
static fl_index group_rows(const place *p, fl_index t)
{
    fl_index low = 0, high = p->rows;

    if (!p->call->lengths)
        return high;
    while (low < high) {
        const fl_index middle = (low + high) / 2;
        if (length_of(p->call, p->call->order[p->row + middle]) > t)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* ---- The tape ------------------------------------------------------------------------------------------------------------------ */

/* The token of this group's first row at step t, in an array of one layer's or direction's tokens. */
static fl_index token_of(const place *p, fl_index index, fl_index t)
{
    const fl_tape *tape = p->call->tape;
    return index * tape->tokens + tape->first[t] + p->rank;
}

/* Where the gates of the first row's units from `unit` on are kept. */
static char *gates_of(const place *p, const pass *q, fl_index t, fl_index unit)
{
    return p->call->tape->gates + token_of(p, q->index, t) * p->call->tape->gates_pitch
           + fl_gate_element(p->net, unit, 0) * p->net->item;
}

/* Keeps this thread's units of c and columns of h. */
static void keep_state(const place *p, const pass *q, const char *h, fl_index t, fl_index n)
{
    const fl_tape *tape = p->call->tape;
    const fl_index item = p->net->item, unit = p->block * p->net->units * item, layer = q->index / p->net->D,
                   side = q->index % p->net->D;
    const fl_index from = p->column * item, bytes = (p->column_end - p->column) * item;
    char *c = tape->c + token_of(p, q->index, t) * tape->c_pitch;
    char *y = tape->y + token_of(p, layer, t) * tape->y_pitch + side * p->net->P * item;

    for (fl_index row = 0; row < n; row++) {
        if (p->net->C)
            memcpy(c + unit, q->state.c + row * p->l->c_pitch + unit, (size_t)((p->block_end - p->block) * p->net->units * item));
        if (bytes > 0)
            memcpy(y + from, h + row * p->l->h_pitch + from, (size_t)bytes);
        c += p->rank_step * tape->c_pitch;
        y += p->rank_step * tape->y_pitch;
    }
}

/* Drops elements of this thread's columns of what the next layer is to read, and keeps the rest. */
static void drop(const place *p, const pass *q, char *out, fl_index t, fl_index row)
{
    const fl_tape *tape = p->call->tape;
    const fl_index item = p->net->item, layer = q->index / p->net->D, side = q->index % p->net->D * p->net->P;
    const fl_index n = p->column_end - p->column, token = token_of(p, layer, t) + row * p->rank_step;

    fl_drop(&tape->dropout, layer, t, p->call->order[p->row + row], side + p->column, n, item, out);
    memcpy(tape->inputs + token * tape->y_pitch + (side + p->column) * item, out, (size_t)(n * item));
}

/* Keeps the inputs: each thread those of some steps. */
static void keep_inputs(place *p, int thread)
{
    const fl_call *call = p->call;
    const fl_tape *tape = call->tape;
    const fl_index from = fl_even_part(call->T, call->job.plan.threads, thread),
                   to = fl_even_part(call->T, call->job.plan.threads, thread + 1);

    for (fl_index t = from; t < to; t++)
        for (fl_index token = tape->first[t]; token < tape->first[t + 1]; token++) {
            if (fl_check_stop(&p->watcher, call->net->I)) /* the memory of a long call may have to be found first */
                return;
            memcpy(tape->x + token * tape->x_pitch,
                   call->x.data + t * call->x.strides[0] + tape->order[token - tape->first[t]] * call->x.strides[1],
                   (size_t)(call->net->I * call->net->item));
        }
}

/* Copies this thread's columns of h to the output, with zeros for rows past their end; then starts rows anew where asked. */
static void finish_step(const place *p, const pass *q, char *h, fl_index t, fl_index n)
{
    const fl_call *call = p->call;
    const fl_index item = p->net->item, from = p->column * item, bytes = (p->column_end - p->column) * item;
    const fl_index next = q->reverse ? t : t + 1; /* the reset that separates this step from the next one processed */

    if (call->tape)
        keep_state(p, q, h, t, n);
    if (bytes > 0) {
        for (fl_index row = 0; row < n; row++) {
            char *out = row_at(&q->out, t, p->row + row) + from;
            memcpy(out, h + row * p->l->h_pitch + from, (size_t)bytes);
            if (call->tape && call->tape->dropout.p > 0 && !q->last)
                drop(p, q, out, t, row);
        }
        for (fl_index row = n; q->last && row < p->rows; row++)
            memset(row_at(&q->out, t, p->row + row) + from, 0, (size_t)bytes);
    }
    if (!call->resets.data || next == 0 || next >= call->T)
        return;
    for (fl_index row = 0; row < n; row++) {
        const fl_index b = call->order[p->row + row];
        if (next < length_of(call, b) && fl_reset_at(&call->resets, next, b))
            begin_row(p, q->layer, h + row * p->l->h_pitch, q->state.c + row * p->l->c_pitch, NULL, NULL);
    }
}

/* h = projection m, for this thread's blocks of outputs. */
static int project(place *p, const pass *q, char *h, fl_index n)
{
    const fl_network *net = p->net;
    const fl_index bytes = FL_VECTORS * net->V * net->item;

    for (fl_index row = 0; row < n; row++)
        p->hidden[row] = q->state.m + row * p->l->c_pitch;
    for (fl_index block = p->projected; block < p->projected_end; block++) {
        const char *panel = (const char *)q->layer->projection + block * fl_panel_bytes(net, net->H);
        const fl_factor weights = {
            .kind = net->kind,
            .far = p->call->job.plan.far_R,
            .K = net->H,
            .slab = fl_slab(net->H),
            .panel = panel,
            .then = block + 1 < p->projected_end ? panel + fl_panel_bytes(net, net->H) : NULL,
        };
        fl_multiply(net->kernels, &weights, 1, p->hR, 0, p->hidden, n, &p->watcher);
        net->kernels->store(n, p->hR, h + block * bytes, p->l->h_pitch / net->item);
        if (q->layer->variant)
            net->kernels->clip(n, q->layer->variant->proj_clip, h + block * bytes, p->l->h_pitch / net->item);
        if (fl_check_stop(&p->watcher, n * net->H * FL_VECTORS * net->V))
            return 1;
    }
    return 0;
}

/* Panels of a block. */
static const char *W_of(const place *p, const pass *q, fl_index block)
{
    return (const char *)q->layer->W + block * fl_panel_bytes(p->net, q->layer->I);
}
static const char *R_of(const place *p, const pass *q, fl_index block)
{
    return (const char *)q->layer->R + block * fl_panel_bytes(p->net, p->net->P);
}

/* xW = x W for `count` blocks of `rows` rows of inputs; the panel `then` is next. */
static void input_product(place *p, const pass *q, char *xW, fl_index block, fl_index count, fl_index rows, const char *then)
{
    const fl_factor W = {
        .kind = p->net->kind,
        .far = p->call->job.plan.far_W,
        .K = q->layer->I,
        .slab = FL_SLAB,
        .panel = W_of(p, q, block),
        .panel_next = fl_panel_bytes(p->net, q->layer->I),
        .then = then,
    };

    fl_multiply(p->net->kernels, &W, count, xW, rows * FL_VECTORS * p->net->V, p->inputs, rows, &p->watcher);
}

/* h R for `count` blocks, then the cell. */
static void recur(place *p, const pass *q, const char *xW, fl_index xW_next, fl_index block, fl_index count, char *h_new,
                  fl_index t, fl_index n, const char *then)
{
    const fl_network *net = p->net;
    const fl_index item = net->item, block_bytes = net->units * item, panel = FL_VECTORS * net->V;
    const fl_factor R = {
        .kind = net->kind,
        .far = p->call->job.plan.far_R,
        .K = net->P,
        .slab = fl_slab(net->P),
        .panel = R_of(p, q, block),
        .panel_next = fl_panel_bytes(net, net->P),
        .then = then,
    };
    const char *bias = (const char *)q->layer->bias;
    char *to = net->has_projection ? q->state.m : h_new;
    const fl_index to_pitch = net->has_projection ? p->l->c_pitch : p->l->h_pitch;

    fl_multiply(net->kernels, &R, count, p->hR, n * panel, p->hidden, n, &p->watcher);
    for (fl_index i = 0; i < count; i++) {
        const char *b = bias + (block + i) * panel * item, *x = xW + i * xW_next * item;
        char *r = p->hR + i * n * panel * item, *c_new = q->state.c + (block + i) * block_bytes,
             *m_new = to + (block + i) * block_bytes;
        char *gates = p->call->tape ? gates_of(p, q, t, (block + i) * net->units) : NULL;
        const fl_index gates_pitch = gates ? p->rank_step * p->call->tape->gates_pitch / item : 0;

        if (net->gates == 1) /* h is all that its gradient needs */
            net->kernels->rnn_cell(net->relu, n, x, r, b, m_new, to_pitch / item);
        else if (q->layer->variant)
            net->kernels->variant_cell(q->layer->variant, fl_peephole_of(net, q->layer, block + i), n, x, r, b, c_new,
                                       p->l->c_pitch / item, m_new, to_pitch / item, gates, gates_pitch);
        else
            net->kernels->cell(n, x, r, b, c_new, p->l->c_pitch / item, m_new, to_pitch / item, gates, gates_pitch);
    }
}

/* Neighbouring blocks taken together: a single row may need two for enough independent chains. */
static fl_index together(const place *p, fl_index blocks_left, fl_index n)
{
    return n == 1 && blocks_left > 1 ? p->call->job.plan.blocks_at_once : 1;
}

/* Step s: all blocks of this thread. If `chunk_rows` is not 0, xW is there already, as a chunk of so many rows has it. Every other step
 * goes through the blocks backwards: weights that do not fit a cache are then met again before they have left it. */
static int step(place *p, const pass *q, fl_index s, fl_index n, char *xW, fl_index chunk_rows)
{
    const fl_network *net = p->net;
    const fl_index panel = FL_VECTORS * net->V, xW_next = (chunk_rows ? chunk_rows : n) * panel, t = time_of(p, q, s);
    const char *h = q->state.h[s % 2];
    char *h_new = q->state.h[(s + 1) % 2];

    for (fl_index row = 0; row < n; row++)
        p->hidden[row] = h + row * p->l->h_pitch;
    for (fl_index row = 0; !chunk_rows && row < n; row++)
        p->inputs[row] = row_at(&q->in, t, p->row + row);
    for (fl_index done = 0, count; done < p->block_end - p->block; done += count) {
        count = together(p, p->block_end - p->block - done, n);
        const fl_index block = s % 2 ? p->block_end - done - count : p->block + done, after = s % 2 ? block - 1 : block + 1;
        const int last = done + count == p->block_end - p->block;
        char *xW_block = chunk_rows ? xW + (block - p->block) * xW_next * net->item : xW;
        if (!chunk_rows)
            input_product(p, q, xW_block, block, count, n, R_of(p, q, block));
        recur(p, q, xW_block, xW_next, block, count, h_new, t, n,
              last         ? NULL
              : chunk_rows ? R_of(p, q, after)
                           : W_of(p, q, after));
        if (fl_check_stop(&p->watcher, n * count * (q->layer->I + net->P) * panel))
            return FL_STOPPED;
    }
    if (net->has_projection
        && (fl_wait(p->units, p->units_size, &p->call->job.watch.stop, p->patience_ns) || project(p, q, h_new, n)))
        return FL_STOPPED;
    return FL_OK;
}

/* xW for the steps [s, end) as one product of all their active rows, one step after another. Returns the rows, or -1: stopped. */
static fl_index chunk_product(place *p, const pass *q, fl_index s, fl_index end)
{
    const fl_index panel = FL_VECTORS * p->net->V;
    fl_index rows = 0;

    for (; s < end; s++) {
        const fl_index t = time_of(p, q, s), n = group_rows(p, t);
        for (fl_index row = 0; row < n; row++)
            p->inputs[rows++] = row_at(&q->in, t, p->row + row);
    }
    for (fl_index block = p->block, count; rows && block < p->block_end; block += count) {
        count = together(p, p->block_end - block, rows);
        input_product(p, q, p->xW + (block - p->block) * rows * panel * p->net->item, block, count, rows,
                      block + 1 < p->block_end ? W_of(p, q, block + 1) : NULL);
        if (fl_check_stop(&p->watcher, rows * count * q->layer->I * panel))
            return -1;
    }
    return rows;
}

/* This thread takes all hidden units from the next step on, or all layers from the next stride on. */
static void go_alone(place *p)
{
    p->units_size = p->group_size = 1;
    p->layer = p->block = p->projected = p->column = 0;
    p->layer_end = p->net->L;
    p->block_end = p->net->blocks;
    p->projected_end = p->net->projected_blocks;
    p->column_end = p->net->P;
    p->chunk = 0; /* its buffer has no room for more units */
}

/* The steps [first, end) in processing order, of one direction of one layer. */
static int run(place *p, const pass *q, fl_index first, fl_index end)
{
    const fl_index row_bytes = FL_VECTORS * p->net->V * p->net->item;

    for (fl_index s = first; s < end;) {
        fl_index chunk_end = fl_min(s + fl_max(p->chunk, 1), end);
        const fl_index chunk_rows = p->chunk ? chunk_product(p, q, s, chunk_end) : 0;
        char *xW = p->xW;

        if (chunk_rows < 0)
            return FL_STOPPED;
        for (; s < chunk_end; s++) {
            const fl_index t = time_of(p, q, s), n = group_rows(p, t);
            char *h_new = q->state.h[(s + 1) % 2];

            if (n && step(p, q, s, n, xW, chunk_rows))
                return FL_STOPPED;
            finish_step(p, q, h_new, t, n);
            if (q->last && s + 1 == p->call->T) /* nobody reads this h; all meet at the end of the call */
                return FL_OK;
            if (n && fl_wait(p->units, p->units_size, &p->call->job.watch.stop, p->patience_ns))
                return FL_STOPPED;
            xW += chunk_rows ? n * row_bytes : 0;
            if (p->units_size > 1 && atomic_load_explicit(&p->units->apart, memory_order_relaxed)) {
                if (p->unit_group > 0)
                    return FL_STOPPED;
                go_alone(p);
                chunk_end = s + 1;
            }
        }
    }
    return FL_OK;
}

/* ---- The call ------------------------------------------------------------------------------------------------------------------ */

/* A thread's place: groups of layers vary slowest, then directions, row groups, units, so that neighbours share most. */
static place take_place(fl_call *call, const layout *l, int thread, uint64_t found)
{
    const fl_network *net = call->net;
    const fl_plan *plan = &call->job.plan;
    const int unit_group = thread % plan->unit_groups, group = thread / plan->unit_groups % plan->row_groups;
    const int side = thread / plan->unit_groups / plan->row_groups, layers = side / plan->directions;
    fl_barrier *barriers = (fl_barrier *)(call->job.scratch + l->order) + group * (l->sides + 1);
    char *mine = call->job.scratch + l->bytes - (plan->threads - thread) * l->thread;
    const fl_index row = fl_part(call->B, plan->row_groups, group, plan->share);
    place p = {
        .call = call,
        .net = net,
        .l = l,
        .layer = fl_even_part(net->L, plan->layer_groups, layers),
        .layer_end = fl_even_part(net->L, plan->layer_groups, layers + 1),
        .direction = side % plan->directions,
        .directions = (int)net->D / plan->directions,
        .row = row,
        .rows = fl_part(call->B, plan->row_groups, group + 1, plan->share) - row,
        .block = fl_part(net->blocks, plan->unit_groups, unit_group, plan->share),
        .block_end = fl_part(net->blocks, plan->unit_groups, unit_group + 1, plan->share),
        .projected = fl_part(net->projected_blocks, plan->unit_groups, unit_group, plan->share),
        .projected_end = fl_part(net->projected_blocks, plan->unit_groups, unit_group + 1, plan->share),
        .units = barriers + 1 + side,
        .group = barriers,
        .units_size = plan->unit_groups,
        .group_size = plan->unit_groups * l->sides,
        .row_group = group,
        .unit_group = unit_group,
        .patience_ns = plan->threads / plan->row_groups == 2 ? plan->patience_ns : INT64_MAX,
        .chunk = plan->chunk,
        .xW = mine,
        .hR = mine + l->xW,
        .inputs = (const void **)(mine + l->xW + l->hR),
        .hidden = (const void **)(mine + l->xW + l->hR + l->inputs),
        .rank = call->lengths ? group : row,
        .rank_step = call->lengths ? plan->row_groups : 1,
        .watcher = fl_watcher_of(&call->job.watch, thread, found),
    };
    const fl_index width = net->has_projection ? FL_VECTORS * net->V : net->units;
    p.column = fl_min((net->has_projection ? p.projected : p.block) * width, net->P);
    p.column_end = fl_min((net->has_projection ? p.projected_end : p.block_end) * width, net->P);
    return p;
}

/* Strides that a layer is behind the first one: groups of layers that lie below its own. */
static fl_index lag_of(const fl_call *call, fl_index layer)
{
    fl_index lag = 0;

    while (layer >= fl_even_part(call->net->L, call->job.plan.layer_groups, lag + 1))
        lag++;
    return lag;
}

/* Stride number `number` of one layer, in this thread's directions. */
static int run_layer(place *p, fl_index layer, fl_index number)
{
    fl_call *call = p->call;
    const fl_network *net = p->net;
    const fl_index stride = call->job.plan.stride, first = number * stride, end = fl_min(first + stride, call->T);
    /* A buffer between layers holds the steps of one stride, from `lowest` on. */
    const fl_index lowest = net->reverse ? fl_max(call->T - first - stride, 0) : first, step = call->B * p->l->width;
    const grid below = {between_of(p, layer - 1, number) - lowest * step, step, p->l->width, NULL};
    const grid above = {between_of(p, layer, number) - lowest * step, step, p->l->width, NULL};
    const grid x = {call->x.data, call->x.strides[0], call->x.strides[1], call->order};
    const grid output = {call->output.data, call->output.strides[0], call->output.strides[1], call->order};

    for (int d = p->direction; d < p->direction + p->directions; d++) {
        const fl_index index = layer * net->D + d;
        pass q = {
            .index = index,
            .layer = &net->layers[index],
            .state = state_of(p, index),
            .reverse = fl_runs_back(net, index),
            .in = layer ? below : x,
            .out = layer + 1 < net->L ? above : output,
            .last = layer + 1 == net->L,
        };
        q.out.data += d * net->P * net->item;
        if (run(p, &q, first, end))
            return FL_STOPPED;
    }
    const int is_read = net->D > 1 && layer + 1 < net->L; /* by all, both directions */
    return is_read && fl_wait(p->group, p->group_size, &call->job.watch.stop, INT64_MAX) ? FL_STOPPED : FL_OK;
}

static int run_layers(place *p)
{
    fl_call *call = p->call;
    const fl_index strides = call->T ? fl_ceil_div(call->T, call->job.plan.stride) : 0,
                   most_lag = call->job.plan.layer_groups - 1;

    for (fl_index now = 0; now < strides + most_lag; now++) {
        for (fl_index layer = p->layer; layer < p->layer_end; layer++) {
            const fl_index number = now - lag_of(call, layer);
            if (number >= 0 && number < strides && run_layer(p, layer, number))
                return FL_STOPPED;
        }
        if (most_lag && fl_wait(p->group, p->group_size, &call->job.watch.stop, p->patience_ns))
            return FL_STOPPED;
        if (most_lag && p->group_size > 1 && atomic_load_explicit(&p->group->apart, memory_order_relaxed)) {
            if (p->layer > 0)
                return FL_STOPPED;
            go_alone(p);
        }
    }
    return FL_OK;
}

static void fl_forward(fl_job *job, int thread)
{
    fl_call *call = (fl_call *)job;
    const fl_network *net = call->net;
    const layout l = make_layout(call);
    const uint64_t found = fl_begin_work(job, thread);
    place p = take_place(call, &l, thread, found);
    int status;

    if (call->tape)
        keep_inputs(&p, thread);
    for (fl_index layer = p.layer; layer < p.layer_end; layer++)
        for (int d = p.direction; d < p.direction + p.directions; d++) {
            const state s = state_of(&p, layer * net->D + d);
            load_state(&p, &s, layer * net->D + d);
        }
    status = fl_wait(p.group, p.group_size, &call->job.watch.stop, p.patience_ns) ? FL_STOPPED : run_layers(&p);
    if (status == FL_OK)
        for (fl_index layer = p.layer; layer < p.layer_end; layer++)
            for (int d = p.direction; d < p.direction + p.directions; d++) {
                const state s = state_of(&p, layer * net->D + d);
                save_state(&p, &s, layer * net->D + d);
            }
    fl_end_work(job, thread, found, status);
}

/* ---- Before and after ---------------------------------------------------------------------------------------------------------- */

/* Rows by falling length, dealt to the groups in turn, or to a pair as its share is: each gets its part of long and short ones. */
static int deal_rows(fl_call *call, const layout *l)
{
    const fl_index B = call->B, groups = call->job.plan.row_groups;
    fl_index *ranked = (fl_index *)(call->job.scratch + l->bytes) - B; /* the threads' part is not in use yet */

    if (!call->lengths)
        return fl_order_rows(NULL, B, call->order);
    const int status = fl_order_rows(call->lengths, B, ranked);
    const int share = call->job.plan.share;
    fl_index next[2] = {0, fl_part(B, 2, 1, share)};
    if (status)
        return status;
    for (fl_index rank = 0; groups == 2 && rank < B; rank++)
        call->order[next[fl_per_mille(rank + 1, share) == fl_per_mille(rank, share)]++] = ranked[rank];
    for (fl_index group = 0, at = 0; groups != 2 && group < groups; group++)
        for (fl_index rank = group; rank < B; rank += groups)
            call->order[at++] = ranked[rank];
    return FL_OK;
}

static int prepare(fl_job *job)
{
    fl_call *call = (fl_call *)job;
    /* A tape has rows of a group at even distances; and so few rows leave no share of one. */
    if (call->lengths && call->job.plan.row_groups > 1 && (call->tape || call->B < 4))
        call->job.plan.share = FL_EVEN;
    const layout l = make_layout(call);

    if (fl_begin_job(job, l.bytes))
        return FL_NO_MEMORY;
    call->order = (fl_index *)call->job.scratch;
    if (call->job.plan.threads > 1)
        fl_open_barriers((fl_barrier *)(call->job.scratch + l.order), call->job.plan.row_groups * (l.sides + 1));
    const int status = deal_rows(call, &l);
    if (status)
        fl_end_job(job);
    return status;
}

static fl_plan plan(const fl_job *job, int threads, double meeting_price, int pace)
{
    const fl_call *call = (const fl_call *)job;
    return fl_make_plan(call->net, call->T, call->B, threads, meeting_price, pace);
}

const fl_job_type fl_forward_job = {.plan = plan, .prepare = prepare, .work = fl_forward};
