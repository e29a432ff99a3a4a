/* Products of any number of rows with a packed panel, cut into tiles. */
#include "schedule.h"

enum { PANEL_K = 2 * FL_LONG_SLAB }; /* elements of a panel taken at a time: 32 KiB of AVX-512 panel, in L1 while all rows pass */

void fl_multiply(const fl_kernels *kernels, int kind, int far, fl_index slab, char *acc, fl_index acc_next, const char *panel,
                 fl_index panel_next, fl_index blocks, const void **rows, fl_index n, fl_index K)
{
    const fl_index vectors = FL_VECTORS * kernels->V, item = kernels->item, step = vectors * fl_weight_item(kind, item);
    const char *scales = panel;

    panel += fl_scales_bytes(kind, kernels->V);
    if (blocks == 2) {
        kernels->tile_pair[kind](1, far, slab, acc, acc_next, panel, panel_next, scales, rows, K);
        return;
    }
    if (n <= FL_MAX_TILE) {
        kernels->tiles[kind][n - 1](1, far, slab, acc, 0, panel, 0, scales, rows, K);
        return;
    }
    const fl_index tiles = fl_ceil_div(n, FL_MAX_TILE);
    for (fl_index k = 0; k < K; k += PANEL_K) {
        const fl_index count = fl_min(PANEL_K, K - k);
        for (fl_index t = 0; t < tiles; t++) { /* even tiles: 7 rows are 4 and 3, not 6 and 1 */
            const fl_index first = fl_share(n, tiles, t), M = fl_share(n, tiles, t + 1) - first;
            const void *at[FL_MAX_TILE];
            for (fl_index m = 0; m < M; m++)
                at[m] = (const char *)rows[first + m] + k * item;
            kernels->tiles[kind][M - 1](k == 0, far, slab, acc + first * vectors * item, 0, panel + k * step, 0, scales, at,
                                        count);
        }
    }
}
