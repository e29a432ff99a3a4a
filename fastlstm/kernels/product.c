/* Products of any number of rows with a packed panel, cut into tiles. `kernels->tiles` are in kernel_text.h, each `tile`, slab by slab
 * `add_slab`, and in it, for one element of the rows, `element`: the innermost loop. */
#include "caches.h"
#include "schedule.h"

/* Elements of a panel taken at a time. So many of most panels stay in L1 while all rows pass; where 32 KiB of AVX-512's do not (Zen 4: L1
 * holds as much), every tile reads from L2 anyway, and long parts have fewer ends. */
enum { PANEL_K = 2 * FL_LONG_SLAB, LONG_PANEL_K = 8 * FL_LONG_SLAB };
static fl_index most_elements(fl_index step) { return PANEL_K * step <= fl_l1_bytes() / 4 * 3 ? PANEL_K : LONG_PANEL_K; }

/* Weights from beyond L2 arrive more slowly than the first of several tiles could use them. So all tiles that pass through one part of a
 * panel share in asking for the next part: it is in L2 when its turn comes. */
void fl_multiply(const fl_kernels *kernels, const fl_factor *weights, fl_index blocks, char *acc, fl_index acc_next,
                 const void **rows, fl_index n, fl_watcher *watcher)
{
    const int kind = weights->kind;
    const fl_index vectors = FL_VECTORS * kernels->V, item = kernels->item, step = vectors * fl_weight_item(kind, item);
    const fl_index K = weights->K, slab = weights->slab;
    const char *scales = weights->panel, *panel = scales + fl_scales_bytes(kind, kernels->V);
    const fl_index wanted = kind == FL_FULL ? fl_ceil_div(weights->columns, kernels->V) : 0;
    fl_tile *const *tile = wanted == 1 || wanted == 2 ? kernels->narrow[wanted - 1] : kernels->tiles[kind];
    fl_fetch fetch = {0}, *early = weights->far ? &fetch : NULL;

    if (blocks == 2) {
        kernels->tile_pair[kind](1, early, slab, acc, acc_next, panel, weights->panel_next, scales, rows, K);
        return;
    }
    if (n <= FL_MAX_TILE) {
        tile[n - 1](1, early, slab, acc, 0, panel, 0, scales, rows, K);
        return;
    }
    const fl_index tiles = fl_ceil_div(n, FL_MAX_TILE), parts = fl_ceil_div(K, most_elements(step));
    const fl_index part = fl_round_up(fl_ceil_div(K, parts), slab); /* even ones, of whole slabs */
    for (fl_index k = 0; k < K; k += part) {
        const fl_index count = fl_min(part, K - k), left = K - k - count;
        const char *next = left ? panel + (k + count) * step : weights->then;
        fetch.step = step * (left ? fl_min(count, left) : count) / (tiles * count); /* two lines at most */
        for (fl_index t = 0; t < tiles; t++) { /* even tiles: 7 rows are 4 and 3, not 6 and 1 */
            const fl_index first = fl_even_part(n, tiles, t), M = fl_even_part(n, tiles, t + 1) - first;
            const void *at[FL_MAX_TILE];
            for (fl_index m = 0; m < M; m++)
                at[m] = (const char *)rows[first + m] + k * item;
            if (next)
                fetch.next = next + t * count * fetch.step;
            tile[M - 1](k == 0, next ? early : NULL, slab, acc + first * vectors * item, 0, panel + k * step, 0, scales, at,
                        count);
        }
        if (left && fl_check_stop(watcher, n * count * vectors)) /* one product of many rows may take a second */
            return;
    }
}
