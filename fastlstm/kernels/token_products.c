/* Products over the tokens of a block, when the time loop has left their gradients of pre-activations behind: gradients of inputs and
 * weights. Each output is one thread's, and its sum over tokens has one order. No vector code here. */
#include "backward.h"

enum { RUNS = 16 }; /* runs of FL_UNITS gate rows whose part of dG, 384 KiB, stays in L2 while all inputs pass */

/* dx = dG W: pieces of FL_DX_ROWS tokens and one panel are shared out. */
static int input_gradient(place *p, const pass *q, fl_index first, fl_index tokens)
{
    const fl_index width = FL_VECTORS * p->net->V, item = p->net->item, K = fl_gate_rows(p->net);
    const fl_index pieces = fl_ceil_div(tokens, FL_DX_ROWS), panels = fl_ceil_div(q->packed->I, width);
    const fl_index begin = my_part(p, pieces * panels, p->side_rank);
    const fl_index end = my_part(p, pieces * panels, p->side_rank + 1);

    for (fl_index at = begin; at < end; at++) {
        const fl_index j = at / pieces, from = first + fl_even_part(tokens, pieces, at % pieces);
        const fl_index n = first + fl_even_part(tokens, pieces, at % pieces + 1) - from,
                       count = fl_min(width, q->packed->I - j * width);

        for (fl_index i = 0; i < n; i++)
            p->rows_at[i] = gates_at(p, q, from + i);
        const char *W = (const char *)q->weights->W + j * K * width * item;
        const fl_factor weights = {
            .kind = FL_FULL,
            .far = p->call->job.plan.far_W,
            .K = K,
            .slab = fl_slab(K),
            .panel = W,
            .columns = count,
            .then = at + 1 < end ? (const char *)q->weights->W + (at + 1) / pieces * K * width * item : NULL,
        };
        fl_multiply(p->kernels, &weights, 1, p->acc, 0, p->rows_at, n, &p->watcher);
        p->kernels->store(n, p->acc, p->acc, width);
        for (fl_index i = 0; i < n; i++)
            memcpy(q->dx + (from + i) * p->l->dx_pitch + j * width * item, p->acc + i * width * item, (size_t)(count * item));
        if (fl_check_stop(&p->watcher, n * K * width))
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
    fl_outer *const *outer = p->kernels->outers[fl_ceil_div(count, p->net->V) - 1];

    for (fl_index tile = 0; tile < tiles; tile++) {
        const fl_index from = fl_even_part(rows, tiles, tile), M = fl_even_part(rows, tiles, tile + 1) - from;
        char *to = out + (from * columns + column) * item;

        for (fl_index m = 0; m < M; m++) /* wanted at the end, from afar */
            for (fl_index at = 0; at < count * item; at += FL_ALIGNMENT)
                __builtin_prefetch(to + m * columns * item + at, 1);
        memset(p->acc, 0, (size_t)(M * width * item));
        outer[M - 1](p->acc, p->panel, a + from * item, a_pitch / item, n);
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
    const fl_index width = FL_VECTORS * net->V, runs = fl_gate_rows(net) / FL_UNITS;
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
            if (fl_check_stop(&p->watcher, n * (to - from) * FL_UNITS * width))
                return FL_STOPPED;
        }
    return FL_OK;
}

static void gate_biases(place *p, const pass *q, fl_index token, fl_index n)
{
    const fl_index H = p->net->H, item = p->net->item, gates = p->net->gates, runs = fl_gate_rows(p->net) / FL_UNITS;
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
        if (fl_check_stop(&p->watcher, n * (end - begin) * FL_UNITS * width))
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
            p->kernels->sum_products(n, gates_at(p, q, token) + fl_gate_element(p->net, run * FL_UNITS, gates[k]) * item,
                                     tape->gates_pitch / item, p->rows_at, run * FL_UNITS,
                                     q->d_weights->weight_peephole + (k * H + run * FL_UNITS) * item,
                                     fl_min(FL_UNITS, H - run * FL_UNITS));
    }
}

int fl_token_products(place *p, const pass *q, int *begins, fl_index t, fl_index end)
{
    const fl_index first = p->tape->first[t], last = p->tape->first[end];

    if (q->dx && input_gradient(p, q, first, last - first))
        return FL_STOPPED;
    for (fl_index token = first; token < last; token += BLOCK_TOKENS) {
        const fl_index n = fl_min(BLOCK_TOKENS, last - token);

        point_to_inputs(p, q, token, n);
        if (gate_weights(p, q, *begins, token, n, p->rows_at, q->d_weights->weight_ih, q->packed->I))
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
