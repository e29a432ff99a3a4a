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
#include "backward.h"
#include "pace.h"

#include <math.h>
#include <string.h>

enum { BLOCK_STEPS = 192 }; /* what a recomputing tape holds at once is whole blocks */

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
    const fl_plan *plan = &call->job.plan;
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

/* Whether a reset or truncation stops gradients between steps t and t - 1, t >= 1. */
static int cut(const place *p, fl_index t, fl_index row)
{
    return fl_reset_at(&p->call->resets, t, row) || (p->call->steps && (t + p->call->first_step) % p->call->steps == 0);
}

/* Waits for the others. A pair that is kept waiting parts here: thread 0 takes over all of the work. Non-zero: leave at once. */
static int meet(place *p, fl_barrier *barrier, int size)
{
    if (fl_wait(barrier, size, &p->call->job.watch.stop, p->patience_ns))
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
    const fl_index width = FL_VECTORS * net->V, bytes = width * net->item, K = fl_gate_rows(net);
    const fl_index from = j * width, count = fl_min(width, net->P - from);

    if (after.n) {
        char *gates = gates_at(p, q, p->tape->first[after.t] + p->rank);
        for (fl_index i = 0; i < after.n; i++)
            p->rows_at[i] = gates + i * p->rank_step * p->tape->gates_pitch;
        const char *R = (const char *)q->weights->R;
        const fl_factor weights = {
            .kind = FL_FULL,
            .far = p->call->job.plan.far_R,
            .K = K,
            .slab = fl_slab(K),
            .panel = R + j * K * bytes,
            .columns = count,
            .then = then < 0 ? NULL : R + then * K * bytes,
        };
        fl_multiply(p->kernels, &weights, 1, p->acc, 0, p->rows_at, after.n, &p->watcher);
    }
    for (fl_index i = 0; i < fl_min(n, after.n); i++)
        if (cut(p, fl_max(t, after.t), row_of(p, i))) {
            if (fl_reset_at(&p->call->resets, fl_max(t, after.t), row_of(p, i)))
                add_own(p, q->own_h, p->l->dh_pitch, i, from, count, p->acc + i * bytes);
            memset(p->acc + i * bytes, 0, (size_t)bytes);
        }
    for (fl_index i = n; i < after.n; i++) {
        char *to = p->call->d_h_0 + ((q->index * p->tape->B + row_of(p, i)) * net->P + from) * net->item;
        const int reset = !q->reverse && fl_reset_at(&p->call->resets, after.t, row_of(p, i));

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
            if (fl_reset_at(&p->call->resets, fl_max(t, after.t), row))
                add_own(p, q->own_c, p->l->dc_pitch, i, from, count, dc);
            memset(dc, 0, (size_t)((end - from) * item));
        } else if (i >= n) {
            char *to = p->call->d_c_0 + ((q->index * p->tape->B + row) * p->net->C + from) * item;
            const int reset = !q->reverse && fl_reset_at(&p->call->resets, after.t, row);

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
        const fl_index unit = (j * FL_VECTORS + v) * V, element = fl_gate_element(net, unit, 0);
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
    if ((net->H - 1) / (FL_VECTORS * V) == j)
        for (fl_index i = 0; i < n; i++)
            fl_clear_padding(net, gates + i * p->rank_step * p->tape->gates_pitch);
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
    const fl_index K = fl_gate_rows(net);
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
                if (q->packed->variant && q->packed->variant->proj_clip < INFINITY)
                    clip_gradient(p, q, token + i * p->rank_step, from, count, to);
            }
        if (fl_check_stop(&p->watcher, fl_max(n, 1) * K * width))
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
            .far = p->call->job.plan.far_R,
            .K = net->P,
            .slab = fl_slab(net->P),
            .panel = projection,
            .columns = net->H - j * width,
            .then = j + 1 < p->unit_end ? projection + fl_padded(net->P) * width * item : NULL,
        };
        fl_multiply(p->kernels, &weights, 1, p->acc, 0, p->rows_at, n, &p->watcher);
        cells(p, q, t, n, j, NULL);
        if (fl_check_stop(&p->watcher, n * net->P * width))
            return FL_STOPPED;
    }
    return FL_OK;
}

/* ---- Where sums begin, and the network's own initial state --------------------------------------------------------------------- */

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
      large[] = {{d->weight_ih, rows * q->packed->I}, {d->weight_hh, rows * net->P}, {d->weight_hr, net->P * net->H}};

    for (int i = 0; i < 4; i++)
        if (small[i].at)
            memset(small[i].at, 0, (size_t)(small[i].count * item));
    for (int i = 0; i < 3; i++)
        if (large[i].at && !p->tape->tokens)
            memset(large[i].at, 0, (size_t)(large[i].count * item));
}

/* Gradients of the network's own h_0 and c_0 begin with zeros; but a row without a step hands on the gradient of its final state. */
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
        if (meet(p, p->side, p->side_size) || fl_token_products(p, q, &begins, first, end))
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
    const fl_index end = fl_even_part(tape->T, p->team_size, p->team_rank + 1), bytes = net->P * net->item;

    for (fl_index t = fl_even_part(tape->T, p->team_size, p->team_rank); t < end; t++)
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
    const fl_index I = net->layers[layer * net->D].I, end = fl_even_part(tape->T, p->team_size, p->team_rank + 1);

    for (fl_index t = fl_even_part(tape->T, p->team_size, p->team_rank); t < end; t++)
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
    const fl_plan *plan = &call->job.plan;
    const int unit_group = thread % plan->unit_groups, group = thread / plan->unit_groups % plan->row_groups;
    const int side = thread / plan->unit_groups / plan->row_groups, side_size = plan->unit_groups * plan->row_groups;
    const fl_index width = FL_VECTORS * net->V, columns = fl_ceil_div(net->P, width), units = fl_ceil_div(net->H, width);
    const fl_index row = fl_part(tape->B, plan->row_groups, group, plan->share);
    fl_barrier *barriers = (fl_barrier *)call->job.scratch;
    char *mine = call->job.scratch + l->bytes - (plan->threads - thread) * l->thread;
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
        .zeros = call->job.scratch + l->barriers,
        .dy = call->job.scratch + l->barriers + l->zeros,
        .acc = mine,
        .panel = mine + l->acc,
        .rows_at = (const void **)(mine + l->acc + l->panel),
        .c_prev = (const void **)(mine + l->acc + l->panel + l->pointers),
        .watcher = fl_watcher_of(&call->job.watch, thread, found),
    };
    p.dx = p.dy + tape->tokens * l->dy_pitch;
    p.dh = p.dx + net->D * l->dx;
    p.dc = p.dh + net->D * l->dh;
    p.own = p.dc + net->D * l->dc;
    p.m = p.own + net->D * (l->own_h + l->own_c);
    return p;
}

static void fl_backward(fl_job *job, int thread)
{
    fl_backward_call *call = (fl_backward_call *)job;
    const layout l = make_layout(call);
    const uint64_t found = fl_begin_work(job, thread);
    place p = take_place(call, &l, thread, found);

    fl_end_work(job, thread, found, run_layers(&p));
}

static int prepare(fl_job *job)
{
    fl_backward_call *call = (fl_backward_call *)job;

    if (is_ragged(call->tape) && call->job.plan.row_groups > 1) /* as in the forward pass */
        call->job.plan.share = FL_EVEN;
    const layout l = make_layout(call);

    if (fl_begin_job(job, l.bytes))
        return FL_NO_MEMORY;
    fl_open_barriers((fl_barrier *)call->job.scratch, call->job.plan.directions * (call->job.plan.row_groups + 1) + 1);
    memset(call->job.scratch + l.barriers, 0, (size_t)l.zeros);
    return FL_OK;
}

static fl_plan plan(const fl_job *job, int threads, double meeting_price, int pace)
{
    const fl_backward_call *call = (const fl_backward_call *)job;
    return fl_make_backward_plan(call->net, call->tape->T, call->tape->B, threads, meeting_price, pace);
}

const fl_job_type fl_backward_job = {.plan = plan, .prepare = prepare, .work = fl_backward};
