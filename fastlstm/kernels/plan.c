/* How a call is divided: every division of the team is priced by a small model, the cheapest is taken.
 *
 * Prices are nanoseconds on one core of an AVX-512 server of 2023, but for reading from the shared L3: machines differ there by four
 * times, so it is measured. A Zen 5 machine reads L2 twice as fast; with its own prices for all the model divided no shape better there
 * (bench/NOTES.md). They decide between divisions, so only their ratios matter; a division never changes a result.
 */
#include "caches.h"
#include "fastlstm.h"
#include "meeting.h"
#include "pace.h"

#include <math.h>

#define FMA_PER_NS_PER_BYTE 1.4 /* multiply-adds per ns and byte of vector, in full tiles: 16 lanes x 2 x 3.5 GHz x 0.8 / 64 */
#define L2_BYTES_PER_NS 110.0   /* weights of one core, streamed from its own L2 */
#define L3_NS_PER_BYTE 0.0015   /* what weights from beyond L2 cost where arithmetic hides reading them */
#define LINE_NS 4.5             /* a cache line that another thread wrote comes over, or one that it read is written again */
#define FAR_BYTES_PER_NS 48.0   /* beyond the shared cache, beside the arithmetic: full tiles do not hide it */
#define CELL_NS_PER_VECTOR 14.0 /* five exponentials and three divisions for V units */
#define STEP_NS 25.0            /* book-keeping of one step of one layer */
#define FORK_NS 500.0           /* OpenMP: a team that is awake begins and ends */
#define FORK_NS_PER_THREAD 300.0

enum { PATIENCE_NS = 200000 };    /* shorter than a scheduler's time slice, longer than an interrupt */
enum { CHUNK_BYTES = 512 << 10 }; /* pre-activations of a chunk: leave half of a small L2 to R */
enum { NEAR_BYTES = 16 << 20 };   /* of a shared cache that a call can count on; systems report the sum of several */
enum { L1_WEIGHTS = 24 << 10 };   /* weights that stay in L1 from step to step */
enum { CHUNK_ROWS = 192 };        /* so many reuse each panel of W often enough */
enum { STRIDE_TOKENS = 256 };     /* tokens one layer hands to the next while they are still in a cache */

/* Whether between two uses of one weight so many bytes of others pass, in one thread, that L2 does not keep it: then they are fetched
 * early. */
static int is_far(double bytes) { return bytes > 0.8 * (double)fl_l2_bytes(); }

/* One product of `rows` rows with a packed matrix of `vectors` panel columns and K elements: arithmetic or reading, the larger. */
static double product_ns(const fl_network *net, double rows, double vectors, double K, double resident)
{
    const double tiles = ceil(rows / FL_MAX_TILE), lanes = (double)net->V;
    /* A tile of M rows loads 4 vectors and M broadcasts for 4 M multiply-adds; below two rows the loads decide. */
    const double busy = fmax(rows, tiles * 1.25);
    const double arithmetic = busy * vectors * lanes * K / (FMA_PER_NS_PER_BYTE * (double)(net->V * net->item));
    const double bytes = vectors * lanes * (double)fl_weight_item(net->kind, net->item) * K;
    if (!is_far(resident))
        return fmax(arithmetic, bytes / L2_BYTES_PER_NS);
    const double reading = bytes / fmin(fl_l3_bytes_per_ns(), L2_BYTES_PER_NS);
    return fmax(arithmetic, reading) + L3_NS_PER_BYTE * bytes;
}

static double fork_ns(double meeting_price, int threads)
{
    return threads > 1 ? meeting_price * (FORK_NS + FORK_NS_PER_THREAD * threads) : 0;
}

static double meeting_ns(const fl_plan *plan, int threads) { return plan->meeting_price * fl_usual_meeting_ns(threads); }

/* Threads that divide units meet after each step, and what they have written goes from one to the others: so many bytes for each. */
static double exchange_ns(const fl_plan *plan, double bytes)
{
    const double lines = plan->unit_groups > 1 ? bytes / FL_ALIGNMENT : 0;
    return meeting_ns(plan, plan->unit_groups) + plan->meeting_price * lines * LINE_NS;
}

/* What the busiest thread has to do of n things in so many parts, in units of what a thread of an even pair needs for one thing. */
static double busiest(const fl_plan *plan, fl_index n, int parts)
{
    if (plan->threads != 2 || parts != 2)
        return (double)fl_ceil_div(n, parts);
    const double first = (double)fl_part(n, 2, 1, plan->share), share = plan->share;
    return fmax(first * FL_EVEN / share, ((double)n - first) * FL_EVEN / (1000 - share));
}

/* How many times as long as an even pair's the slower of two threads takes, where the plan cannot give them unequal shares: one thread
 * alone, or two directions or groups of layers side by side. */
static double delay(const fl_plan *plan)
{
    const double share = plan->share;

    if (plan->threads == 1)
        return FL_EVEN / share;
    return plan->threads == 2 && plan->row_groups * plan->unit_groups == 1 ? FL_EVEN / fmin(share, 1000 - share) : 1;
}

/* Weights of one thread between two uses of one of them: those of a layer's step, but of all layers where each hands on single steps. */
static double between_uses(const fl_network *net, const fl_plan *plan, double step)
{
    return plan->stride > 1 ? step : (double)net->bytes / (plan->directions * plan->unit_groups);
}

/* One layer's step for the busiest thread of a division. */
static double step_ns(const fl_network *net, const fl_plan *plan, fl_index B, fl_index I)
{
    const double rows = busiest(plan, B, plan->row_groups), blocks = busiest(plan, net->blocks, plan->unit_groups);
    const double projected = busiest(plan, net->projected_blocks, plan->unit_groups);
    const double panel = FL_VECTORS * (double)(net->V * fl_weight_item(net->kind, net->item));
    const double R = blocks * (double)net->P * panel + projected * (double)net->H * panel, W = blocks * (double)I * panel;
    const double step = between_uses(net, plan, R + W);
    double ns = STEP_NS + rows * blocks * CELL_NS_PER_VECTOR;

    if (plan->chunk)
        ns += product_ns(net, rows * (double)plan->chunk, FL_VECTORS * blocks, (double)I, W) / (double)plan->chunk
              + product_ns(net, rows, FL_VECTORS * blocks, (double)net->P, R);
    else
        ns += product_ns(net, rows, FL_VECTORS * blocks, (double)I + (double)net->P, step);
    if (net->has_projection)
        ns += product_ns(net, rows, FL_VECTORS * projected, (double)net->H, R);
    if (step * plan->unit_groups > NEAR_BYTES)
        ns += (plan->chunk ? R : R + W) / FAR_BYTES_PER_NS;
    const double h = rows * (double)(net->P * net->item), m = rows * (double)(net->H * net->item);
    return ns + exchange_ns(plan, h) + (net->has_projection ? exchange_ns(plan, m) : 0);
}

/* A step of all layers of the group that has most to do. */
static double layers_ns(const fl_network *net, const fl_plan *plan, fl_index B)
{
    const fl_index bottom = fl_even_part(net->L, plan->layer_groups, 1),
                   most = fl_ceil_div(net->L - bottom, fl_max(plan->layer_groups - 1, 1));
    const double first = step_ns(net, plan, B, net->I), others = step_ns(net, plan, B, net->D * net->P);
    return fmax(first + (double)(bottom - 1) * others, plan->layer_groups > 1 ? (double)most * others : 0);
}

/* Every group of layers waits for the first stride of those below, and all meet after each. */
static double call_ns(const fl_network *net, const fl_plan *plan, fl_index T, fl_index B)
{
    const double steps = (double)T * (double)net->D / plan->directions, lag = (double)(plan->layer_groups - 1);
    const double meetings = lag > 0 ? ceil(steps / (double)plan->stride) + lag : 0;
    return fork_ns(plan->meeting_price, plan->threads)
           + (steps + lag * (double)plan->stride) * layers_ns(net, plan, B) * delay(plan)
           + meetings * meeting_ns(plan, plan->threads / plan->row_groups);
}

/* Steps of a chunk, 0 if it would be one. W is read once for all of them and their rows fill the tiles; the pre-activations go out and
 * come back, best from L2. A buffer of a sixteenth of W costs an eighth of reading W. */
static fl_index chunk_for(const fl_network *net, fl_index T, fl_index rows, fl_index blocks)
{
    const fl_index row_bytes = blocks * FL_VECTORS * net->V * net->item;
    const fl_index bytes = fl_max(CHUNK_BYTES, row_bytes * net->I / 16);
    const fl_index most = fl_min(CHUNK_ROWS, fl_max(bytes / row_bytes, FL_MAX_TILE));
    const fl_index chunk = fl_min(T, most / fl_max(rows, 1));
    return chunk > 1 ? chunk : 0;
}

/* Of the layer that has most. */
static fl_index most_inputs(const fl_network *net) { return net->L > 1 ? fl_max(net->I, net->D * net->P) : net->I; }

/* One block's four chains wait for the latency of multiply-add, four cycles: they use up one vector per cycle. That is all that L2 can
 * give if a vector is a cache line (and one stream it gives more steadily than two: 230 against 128 GB/s measured). What comes from far
 * beyond, so that L2 keeps next to nothing, comes faster in two streams: 127 against 109 GB/s from L3, 92 against 78 from memory. */
static int blocks_at_once(const fl_network *net, double R)
{
    return net->V * net->item < 64 || R <= L1_WEIGHTS || R > 4 * (double)fl_l2_bytes() ? 2 : 1;
}

/* Steps that a layer hands on at a time. Side by side, few meetings (T / stride) are weighed against a short lag (stride steps). */
static fl_index stride_for(const fl_network *net, const fl_plan *plan, fl_index T, fl_index B)
{
    if (net->L == 1 || net->D > 1) /* both directions need the whole layer before */
        return T;
    if (plan->layer_groups > 1) {
        const double lag_ns = (double)(plan->layer_groups - 1) * layers_ns(net, plan, B);
        return fl_min(T, (fl_index)ceil(sqrt((double)T * meeting_ns(plan, plan->threads / plan->row_groups) / lag_ns)));
    }
    const fl_index stride = fl_max(1, STRIDE_TOKENS / fl_max(B, 1));
    return fl_min(T, plan->chunk ? fl_round_up(stride, plan->chunk) : stride);
}

/* Completes a division and prices it, in ns. */
typedef double pricing(const fl_network *net, fl_plan *plan, fl_index T, fl_index B);

/* The cheapest division. */
static fl_plan search(pricing *price, const fl_network *net, fl_index T, fl_index B, int threads, int most_layers,
                      fl_index most_units, double meeting_price, int pace)
{
    fl_plan best = {
        .threads = 1, .layer_groups = 1, .directions = 1, .row_groups = 1, .unit_groups = 1, .meeting_price = meeting_price};
    double best_ns = INFINITY;

    threads = threads > 1 ? threads : 1;
    for (int layer_groups = 1; layer_groups <= most_layers; layer_groups++)
        for (int directions = 1; directions <= fl_min(net->D, threads); directions++) {
            const int sides = layer_groups * directions;
            for (int row_groups = 1; row_groups <= fl_max(fl_min(threads / sides, B), 1); row_groups++)
                for (int unit_groups = 1; unit_groups <= fl_max(fl_min(threads / (sides * row_groups), most_units), 1);
                     unit_groups++) {
                    fl_plan plan = {
                        .threads = sides * row_groups * unit_groups,
                        .layer_groups = layer_groups,
                        .directions = directions,
                        .row_groups = row_groups,
                        .unit_groups = unit_groups,
                        .meeting_price = meeting_price,
                        .share = threads > 2 ? FL_EVEN : pace,
                    };
                    if (fork_ns(meeting_price, plan.threads) >= best_ns)
                        break; /* nor does a larger one pay */
                    const double ns = price(net, &plan, T, B);
                    if (ns < best_ns) {
                        best = plan;
                        best_ns = ns;
                    }
                }
        }
    if (best.row_groups * best.unit_groups == 1) /* the two sides are even */
        best.share = FL_EVEN;
    best.expected_ns = (int64_t)fmin(best_ns, 9e18);
    return best;
}

static double forward_ns(const fl_network *net, fl_plan *plan, fl_index T, fl_index B)
{
    plan->chunk = chunk_for(net, T, fl_largest_part(B, plan->row_groups, plan->share),
                            fl_largest_part(net->blocks, plan->unit_groups, plan->share));
    plan->stride = T;
    plan->stride = stride_for(net, plan, T, B);
    plan->chunk = plan->stride > 1 ? fl_min(plan->chunk, plan->stride) : 0;
    return call_ns(net, plan, T, B);
}

fl_plan fl_make_plan(const fl_network *net, fl_index T, fl_index B, int threads, double meeting_price, int pace)
{
    const int most_layers = net->D == 1 && T > 1 ? (int)fl_max(fl_min(net->L, threads), 1) : 1;
    fl_plan best = search(forward_ns, net, T, B, threads, most_layers, net->blocks, meeting_price, pace);
    const fl_index blocks = fl_largest_part(net->blocks, best.unit_groups, best.share);
    const double R = (double)(blocks * fl_panel_bytes(net, net->P)), W = (double)(blocks * fl_panel_bytes(net, most_inputs(net)));
    const double all = between_uses(net, &best, R + W);

    best.far_W = is_far(all);
    best.far_R = is_far(best.chunk ? R : all);
    best.blocks_at_once = blocks_at_once(net, best.stride > 1 ? R : all);
    const double step = fmax(step_ns(net, &best, B, net->I), step_ns(net, &best, B, net->D * net->P));
    best.patience_ns = PATIENCE_NS + (int64_t)fmin(4 * step, 1e18);
    return best;
}

/* ---- Gradients ----------------------------------------------------------------------------------------------------------------- */

/* One layer's step of the busiest thread, and its share of the products over tokens that one step brings: their work is divided evenly. */
static double backward_step_ns(const fl_network *net, const fl_plan *plan, fl_index B, fl_index I)
{
    const fl_index width = FL_VECTORS * net->V;
    const double rows = busiest(plan, B, plan->row_groups), lanes = (double)width * (double)net->item;
    const double columns = busiest(plan, fl_ceil_div(net->P, width), plan->unit_groups);
    const double units = busiest(plan, fl_ceil_div(net->H, width), plan->unit_groups);
    const double K = (double)fl_gate_rows(net), R = columns * K * lanes;
    double ns = STEP_NS + rows * units * FL_VECTORS * CELL_NS_PER_VECTOR + product_ns(net, rows, FL_VECTORS * columns, K, R);

    if (net->has_projection)
        ns += product_ns(net, rows, FL_VECTORS * units, (double)net->P, R);
    ns += exchange_ns(plan, rows * K * (double)net->item);
    if (net->has_projection)
        ns += exchange_ns(plan, rows * (double)(net->P * net->item));
    const double per_token = K * (double)(2 * I + net->P) / (FMA_PER_NS_PER_BYTE * (double)(net->V * net->item));
    return ns + (double)B * per_token * plan->directions / plan->threads;
}

static double backward_ns(const fl_network *net, fl_plan *plan, fl_index T, fl_index B)
{
    const double steps = (double)T * (double)net->D / plan->directions;
    const double first = backward_step_ns(net, plan, B, net->I), others = backward_step_ns(net, plan, B, net->D * net->P);

    return fork_ns(plan->meeting_price, plan->threads) + steps * (first + (double)(net->L - 1) * others) * delay(plan);
}

fl_plan fl_make_backward_plan(const fl_network *net, fl_index T, fl_index B, int threads, double meeting_price, int pace)
{
    fl_plan best = search(backward_ns, net, T, B, threads, 1, threads, meeting_price, pace);
    const double column = (double)(fl_gate_rows(net) * net->item); /* of W and R, transposed */

    best.patience_ns = PATIENCE_NS + (int64_t)fmin(4 * (double)best.expected_ns / (double)fl_max(T, 1), 1e18);
    best.far_R = is_far(column * (double)net->P / best.unit_groups);
    best.far_W = is_far(column * (T * B > FL_DX_ROWS ? FL_VECTORS * (double)net->V : (double)most_inputs(net) / best.threads));
    return best;
}
