/* The contract between the Cython boundary, the schedule and the leaf kernels.
 *
 * Letters: T steps, B rows (sequences), I inputs, H hidden units, P size of h (H, or proj_size), L layers, D directions, V lanes
 * of a vector. "Units" are hidden units; a "block" is as many units as one panel has room for: V of an LSTM, whose four gates stand
 * side by side, or 4V of a plain RNN.
 *
 * Arrays of either floating-point type pass as untyped pointers and byte strides; `net->item` is the size of one element.
 */
#ifndef FASTLSTM_H
#define FASTLSTM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef ptrdiff_t fl_index;
_Static_assert(sizeof(fl_index) == 8, "sizes are 64 bits wide: products of three of them are taken");

enum { FL_VECTORS = 4 };  /* vectors of one panel: the gates i, f, g, o of a block; or four of units or projected outputs */
enum { FL_MAX_TILE = 6 }; /* the most rows of one tile */
enum { FL_SLAB = 16, FL_LONG_SLAB = 64 }; /* products that are summed on their own before they join the sum, see fl_slab */
enum { FL_UNITS = 16 };     /* hidden units that stand side by side in a tape, gate by gate: as many lanes as any vector has */
enum { FL_ALIGNMENT = 64 }; /* of packed weights and scratch: a cache line, and the widest vector */

/* ---- Leaf kernels: one table per instruction set and type, compiled from kernel_text.h ------------------------------------- */

/* How the weights of a panel are stored; the arithmetic is float32 for all but double's own. */
enum {
    FL_FULL,     /* as the kernels' own type: [K][FL_VECTORS][V] */
    FL_FLOAT16,  /* IEEE half precision, likewise */
    FL_BFLOAT16, /* the upper half of a float32: two vectors share 32-bit lanes, the first one in the lower halves */
    FL_INT8, /* -127 .. 127: the four vectors share lanes likewise; behind one scale (float32) for each column: [FL_VECTORS][V] */
    FL_WEIGHTS
};

/* Elements of a slab of h R, of which K products are summed, and of a gradient's products. Slabs of s elements leave a rounding error like
 * sqrt(K s / 2 + K^2 / 2s): of the chains, and of adding their sums. For h, between -1 and 1 in PyTorch's cell, that is lost beside x W,
 * whose slabs are short, as inputs may be of any size. Long ones cost fewer additions (2 to 3 %); below six of them short ones are kept: a
 * single row needs several independent chains to hide the latency of multiply-add. */
static inline fl_index fl_slab(fl_index K) { return K < 6 * FL_LONG_SLAB ? FL_SLAB : FL_LONG_SLAB; }

/* Weights from beyond L2 that a tile asks for while it works: its own some elements early or, where several tiles use them one after the
 * other, a share of those that come next. */
typedef struct {
    const char *next; /* NULL: its own */
    fl_index step;    /* bytes of `next` for each element, at most two lines: all that they touch are asked for */
} fl_fetch;
enum { FL_NOTHING, FL_OWN, FL_NEXT }; /* the same as a constant for a tile's text */

/* acc[m] += sum over k of rows[m][k] * panel[k], slab by slab, k ascending: each slab is one chain of fused multiply-adds from zero,
 * whose sum is added to acc, of int8 times the column's scale. (One chain from end to end loses twice the bits at K 400: its later terms
 * are added to a large sum.) The order depends on k and the slab alone, so every shape of tile gives the same bits.
 *   begins        acc holds nothing yet: it is set, and K is not 0
 *   fetch         what to ask for before it is needed; NULL: nothing
 *   slab          FL_SLAB or FL_LONG_SLAB
 *   acc     INOUT [M][FL_VECTORS][V], aligned; a second block's accumulators stand acc_next elements behind
 *   panel   IN    [K][FL_VECTORS][V], aligned; a second block's panel, and its scales, stand panel_next bytes behind
 *   scales  IN    [FL_VECTORS][V], of int8 alone
 *   rows    IN    M pointers to K elements each, any alignment */
typedef void fl_tile(int begins, const fl_fetch *fetch, fl_index slab, void *acc, fl_index acc_next, const void *panel,
                     fl_index panel_next, const void *scales, const void *const *rows, fl_index K);

/* The LSTM cell for n rows of one block. The pre-activations of i, f, g, o are (x W + h R) + bias: each product is a sum of its
 * own, so that the terms of a small h R are not added one by one to a large x W, nor to a large bias.
 *   xW, hR  IN    [n][FL_VECTORS][V]
 *   bias    IN    [FL_VECTORS][V]
 *   c       INOUT n rows of V elements, c_pitch elements apart
 *   h       OUT   n rows of V elements, h_pitch elements apart
 *   gates   OUT   NULL, or n rows, gates_pitch elements apart, of the activations i, f, g, o, FL_UNITS elements from gate to gate */
typedef void fl_cell(fl_index n, const void *xW, const void *hR, const void *bias, void *c, fl_index c_pitch, void *h,
                     fl_index h_pitch, void *gates, fl_index gates_pitch);

/* The cell of a plain RNN for n rows of one block: h = tanh or, if `relu`, max(0, .) of (x W + h R) + bias.
 *   xW, hR  IN    [n][FL_VECTORS][V], units side by side
 *   bias    IN    [FL_VECTORS][V]
 *   h       OUT   n rows of 4V elements, h_pitch elements apart */
typedef void fl_rnn_cell(int relu, fl_index n, const void *xW, const void *hR, const void *bias, void *h, fl_index h_pitch);

/* Its derivatives for V units of n rows; pitches in elements.
 *   dh      IN    [n][V], of h
 *   dy      IN    of the output, to be added to dh
 *   h       IN    what the cell has put out, any alignment
 *   dz      OUT   of the pre-activations */
typedef void fl_rnn_backward(int relu, fl_index n, const void *dh, fl_index dh_pitch, const void *dy, fl_index dy_pitch,
                             const void *h, fl_index h_pitch, void *dz, fl_index dz_pitch);

/* The derivatives of one block's cell for n rows; pitches in elements. */
typedef struct {
    const void *dh; /* IN of o tanh(c): [n][V] */
    fl_index dh_pitch;
    const void *dy; /* IN of the output, to be added to dh; NULL: zero */
    fl_index dy_pitch;
    void *gates; /* IN i, f, g, o, OUT the gradients of their pre-activations */
    fl_index gates_pitch;
    const void *const *c_prev; /* IN n rows, from element c_prev_from on */
    fl_index c_prev_from;
    const void *c; /* IN */
    fl_index c_pitch;
    void *dc; /* INOUT: of the state after this step, then of the one before */
    fl_index dc_pitch;
    void *m; /* OUT o tanh(c), c_pitch apart, may be c; or NULL */
} fl_cell_gradient;

typedef void fl_cell_backward(fl_index n, const fl_cell_gradient *cell);

/* As a tile with long slabs, of inputs that stand in columns: acc[m][j] += sum over k of a[k][m] * panel[k][j].
 *   acc     INOUT M rows of 4V, of which NV at least are summed
 *   panel   IN    K times 4V
 *   a       IN    [K] rows a_pitch elements apart, of which M elements are used */
typedef void fl_outer(void *acc, const void *panel, const void *a, fl_index a_pitch, fl_index K);

/* out[j] += sum over k of a[k][j], in slabs of FL_SLAB, for `columns` <= FL_UNITS; a has FL_UNITS readable elements a row. */
typedef void fl_sum_rows(fl_index K, const void *a, fl_index a_pitch, void *out, fl_index columns);

/* out[j] += a[j]; any alignment. */
typedef void fl_add(fl_index n, const void *a, void *out);

/* Store accumulators as they are (projection): out row m, vectors in order; NaN made canonical. */
typedef void fl_store(fl_index n, const void *acc, void *out, fl_index out_pitch);

/* ---- Variants of the cell ------------------------------------------------------------------------------------------------------ */

enum { /* in the order of fastlstm.cell.ACTIVATIONS, where the formulas are */
       FL_SIGMOID,
       FL_TANH,
       FL_RELU,
       FL_LINEAR,
       FL_HARD_SIGMOID,
       FL_SOFTSIGN,
       FL_SOFTPLUS,
       FL_ELU,
       FL_LEAKY_RELU,
       FL_THRESHOLDED_RELU,
       FL_SCALED_TANH,
       FL_AFFINE,
       FL_ACTIVATIONS
};
enum { FL_FORGET = 1, FL_INPUT = 2 }; /* coupled gates: f = 1 - i; i = 1 - f */

typedef struct {
    int kind;
    double alpha, beta;
} fl_activation;

/* What fastlstm.cell.Cell holds. */
typedef struct {
    fl_activation gate, candidate, hidden;
    int coupled;
    double gate_clip, cell_clip, proj_clip; /* INFINITY: none */
} fl_variant;

/* Any cell, as fl_cell but for:
 *   peephole  IN    [3][V], c's factors for i, f, o; NULL: none
 *   hR        INOUT overwritten
 *   z         OUT   n rows, z_pitch elements apart: the pre-activations before they are clipped, FL_UNITS elements from gate to gate;
 *                   NULL: not wanted */
typedef void fl_variant_cell(const fl_variant *variant, const void *peephole, fl_index n, const void *xW, void *hR,
                             const void *bias, void *c, fl_index c_pitch, void *h, fl_index h_pitch, void *z, fl_index z_pitch);

/* Its derivatives, as fl_cell_backward but for: gates IN hold the pre-activations z; m is a place of its own, or NULL or c. */
typedef void fl_variant_backward(const fl_variant *variant, const void *peephole, fl_index n, const fl_cell_gradient *cell);

/* What fl_store has stored, INOUT, within [-bound, bound]. */
typedef void fl_clip(fl_index n, double bound, void *out, fl_index out_pitch);

/* The gradient d[j], INOUT, is zero where the clipped value reached the bound; any alignment. */
typedef void fl_clip_backward(fl_index n, double bound, const void *clipped, void *d);

/* out[j] += sum over k of a[k][j] * b[k][j], summed as by fl_sum_rows; b's rows have FL_UNITS readable elements from b_from on. */
typedef void fl_sum_products(fl_index K, const void *a, fl_index a_pitch, const void *const *b, fl_index b_from, void *out,
                             fl_index columns);

typedef struct {
    fl_index item;                           /* bytes of one element */
    fl_index V;                              /* lanes */
    fl_tile *tiles[FL_WEIGHTS][FL_MAX_TILE]; /* tiles[kind][M - 1]: M rows, one block; of double FL_FULL alone */
    fl_tile *tile_pair[FL_WEIGHTS];          /* one row, two neighbouring blocks: enough independent chains for one row */
    fl_tile *narrow[2][FL_MAX_TILE];         /* narrow[N - 1][M - 1]: M rows, the first N vectors of a block; of FL_FULL */
    fl_cell *cell;
    fl_store *store;
    fl_cell_backward *cell_backward;
    fl_outer *outers[FL_VECTORS][FL_MAX_TILE]; /* outers[N - 1][M - 1]: at least the first N vectors of a panel */
    fl_sum_rows *sum_rows;
    fl_add *add;
    fl_variant_cell *variant_cell;
    fl_clip *clip;
    fl_variant_backward *variant_backward;
    fl_clip_backward *clip_backward;
    fl_sum_products *sum_products;
    fl_rnn_cell *rnn_cell;
    fl_rnn_backward *rnn_backward;
} fl_kernels;

typedef struct {
    const char *name;
    int available; /* this machine has the instructions and the operating system saves the registers */
    const fl_kernels *f32, *f64;
} fl_isa;

/* From worst to best; ends with a NULL name. */
const fl_isa *fl_isas(void);

/* ---- Packed weights ---------------------------------------------------------------------------------------------------------- */

/* One direction of one layer. A packed matrix is [blocks][K][FL_VECTORS][V], each block as fl_panel_bytes has it; units past H are zero. */
typedef struct {
    fl_index I;          /* inputs of this layer */
    void *bias;          /* [blocks][FL_VECTORS][V]: the sum of both biases, or zeros */
    void *W;             /* x's weights, K = I */
    void *R;             /* h's weights, K = P */
    void *projection;    /* weight_hr, K = H, [ceil(P / 4V)][H][4V]; NULL without one */
    fl_variant *variant; /* NULL: PyTorch's cell */
    void *peephole;      /* [blocks][3][V]: of i, f, o; NULL: none */
    void *h_0, *c_0;     /* [P] and [H]: where a row begins that is given no state; NULL: at zeros */
} fl_layer;

typedef struct {
    const fl_kernels *kernels;
    fl_index I, H, P, L, D;
    fl_index C;     /* size of the state c: H, or 0 of a plain RNN, which has none */
    fl_index gates; /* 4, or 1 of a plain RNN */
    fl_index units; /* of one block: V * FL_VECTORS / gates */
    int relu;       /* of a plain RNN: instead of tanh */
    int has_projection;
    int reverse; /* D is 1, and this direction runs from the end to the beginning */
    fl_index item, V;
    int kind;                  /* of all packed matrices: FL_FULL, FL_FLOAT16, ... */
    fl_index blocks;           /* ceil(H / units) */
    fl_index projected_blocks; /* ceil(P / 4V), 0 without projection */
    fl_layer *layers;          /* L * D records, layer-major */
    void *memory;              /* of all panels */
    size_t bytes;
} fl_network;

/* Row-major weights as PyTorch has them, C-contiguous; a NULL bias is zero. */
typedef struct {
    const void *weight_ih;         /* (gates * H, I) */
    const void *weight_hh;         /* (gates * H, P) */
    const void *bias_ih, *bias_hh; /* (gates * H,) or NULL */
    const void *weight_hr;         /* (P, H) or NULL */
    const fl_variant *variant;     /* NULL: PyTorch's cell, without peepholes */
    const void *weight_peephole;   /* (3H,) or NULL */
    const void *h_0, *c_0;         /* (P,) and (H,), or NULL: zeros */
} fl_layer_weights;

/* A second packing for gradients, transposed; the gates of FL_UNITS units follow each other as in a tape: K = fl_gate_rows(net). */
typedef struct {
    void *W;          /* [ceil(I / 4V)][K][4V] */
    void *R;          /* [ceil(P / 4V)][K][4V] */
    void *projection; /* [ceil(H / 4V)][P, padded][4V], or NULL */
} fl_transposed_layer;

typedef struct {
    fl_transposed_layer *layers; /* L * D records */
    void *memory;
    size_t bytes;
} fl_transposed;

enum { FL_OK = 0, FL_NO_MEMORY = 1, FL_STOPPED = 2 };

/* Sets what follows from kernels, I, H, P, L, D, gates and has_projection. */
void fl_complete(fl_network *net);

/* Fills net->layers and net->memory of a network that is complete, and has its kind. */
int fl_pack(fl_network *net, const fl_layer_weights *weights);
void fl_unpack(fl_network *net); /* frees what fl_pack took */

int fl_transpose(const fl_network *net, const fl_layer_weights *weights, fl_transposed *transposed);
void fl_free_transposed(fl_transposed *transposed);

/* ---- What a recorded call keeps ---------------------------------------------------------------------------------------------- */

/* Dropout between layers: an element is dropped with probability p, the others are divided by 1 - p. Which ones follows from the seed,
 * the layer below, the step, the row and the column, by a hash: the same for any division of labour. */
typedef struct {
    double p;
    uint64_t seed;
} fl_dropout;

/* values[0..n) are those of the columns from `column` on. */
void fl_drop(const fl_dropout *dropout, fl_index layer, fl_index t, fl_index row, fl_index column, fl_index n, fl_index item,
             void *values);

/* Real tokens alone, step by step; in each step the active rows by falling length (their rank). All pitches are in bytes. */
typedef struct {
    fl_index T, B, tokens;
    fl_index *first; /* [T + 1]: tokens before step t */
    fl_index *order; /* [B]: the row of each rank */
    char *x;         /* [tokens][I] */
    char *y;         /* [L][tokens][D*P]: outputs of the layers */
    /* [L*D][tokens][H / FL_UNITS][gates][FL_UNITS]: i, f, g, o, or a variant's pre-activations; nothing of a plain RNN. Backward leaves
     * the gradients of the pre-activations. */
    char *gates;
    char *c;      /* [L*D][tokens][C]; with a projection and no peepholes backward leaves o tanh(c) */
    char *inputs; /* [L - 1][tokens][D*P]: what the layers above the first read, y with elements dropped; NULL without dropout */
    char *h_0, *c_0; /* [L*D][B][P] and [L*D][B][C]; NULL: zeros */
    fl_dropout dropout;
    fl_index x_pitch, y_pitch, gates_pitch, c_pitch, h_pitch; /* c_0 has c's */
    void *memory;
    fl_index bytes;
} fl_tape;

/* Sets everything from the sizes; h_0, c_0 and lengths as in fl_call. FL_NO_MEMORY leaves nothing behind. */
int fl_make_tape(fl_tape *tape, const fl_network *net, fl_index T, fl_index B, const int64_t *lengths, const char *h_0,
                 const char *c_0, fl_dropout dropout);
void fl_free_tape(fl_tape *tape);

/* Zeros where a recorded call writes nothing and the memory is that of earlier calls: before a tape leaves the process. */
void fl_clear_unused(fl_tape *tape, const fl_network *net);

/* gates: those of one token, whose units past H become zero. */
void fl_clear_padding(const fl_network *net, char *gates);

/* One direction of one layer, before backward: `what` is the number of a gate, or FL_C or FL_H.
 *   to      OUT   [T][B][H], or [P] of FL_H; padding is left alone */
enum { FL_C = FL_VECTORS, FL_H };
void fl_read_tape(const fl_tape *tape, const fl_network *net, fl_index record, int what, char *to);

/* ---- A call ------------------------------------------------------------------------------------------------------------------ */

enum { FL_DX_ROWS = 48 }; /* of dx = dG W, that reuse a panel of W */

/* How a team divides a call: threads = layer_groups x directions x row_groups x unit_groups (all at least 1). */
typedef struct {
    int threads;
    int layer_groups;     /* of neighbouring layers that run side by side, each a stride behind the one below; 1 if D is 2 */
    int directions;       /* 2: the two directions of a layer run side by side */
    int row_groups;       /* groups of rows that never wait for each other */
    int unit_groups;      /* threads that share one group's rows and divide its hidden units; they meet every step */
    fl_index chunk;       /* steps whose x.W is taken as one product; 0: x.W and h.R in one pass per step */
    fl_index stride;      /* steps that one layer runs before the next layer takes them */
    int far_W, far_R;     /* W, R come from beyond L2 */
    int blocks_at_once;   /* 1 or 2: blocks that a single row takes together */
    int64_t expected_ns;  /* what the model in plan.c takes the call for */
    int64_t patience_ns;  /* a pair parts when it has lost more than this and a quarter of the call; < 0, in tests: at any wait */
    double meeting_price; /* how many times the usual price of a meeting this plan assumes */
    int share;            /* per mille of a pair's work that its first thread takes (pace.h) */
} fl_plan;

typedef struct {
    char *data;
    fl_index strides[2]; /* bytes; the last axis is contiguous */
} fl_array;

/* Thread 0 calls it every few tens of milliseconds; non-zero stops the call. */
typedef int fl_poll(void *context);

typedef struct {
    fl_poll *poll; /* may be NULL */
    void *context;
    atomic_int stop; /* set once: everybody leaves, and the results are unfinished */
} fl_watch;

typedef struct fl_job fl_job;

/* What can be done with a call of either pass. */
typedef struct {
    /* The division of labour for at most `threads` threads, if meetings take so many times as long as usual (meeting.h) and two of them have
     * this pace (pace.h). */
    fl_plan (*plan)(const fl_job *job, int threads, double meeting_price, int pace);
    /* Takes scratch for job->plan. FL_NO_MEMORY leaves nothing behind. */
    int (*prepare)(fl_job *job);
    /* Every thread 0 .. plan.threads-1 of the team calls this once, at the same time. */
    void (*work)(fl_job *job, int thread);
} fl_job_type;

/* What a team has to know of a call of either pass, which begins with it. */
struct fl_job {
    const fl_job_type *type;
    fl_watch watch;
    fl_plan plan; /* from type->plan */

    /* Set by type->prepare: */
    char *scratch;
    int begun;            /* set by thread 0: a team of the planned size has come together */
    int64_t worked_ns[2]; /* set by a pair: how long each worked; 0: not to the end */
};

/* Takes so much scratch, and nobody has begun or is to stop: the first thing type->prepare does. FL_NO_MEMORY leaves nothing behind. */
int fl_begin_job(fl_job *job, fl_index bytes);

/* A thread's part of the work begins: in the floating-point state of the kernels. Returns the one found. */
uint64_t fl_begin_work(fl_job *job, int thread);

/* It ends, in the state found and with this status. */
void fl_end_work(fl_job *job, int thread, uint64_t found, int status);

/* After the team's work, or before it is prepared anew: gives the scratch back. */
void fl_end_job(fl_job *job);

/* How a call of a pair turned out: the next one may be divided otherwise. */
void fl_learn(const fl_job *job);

typedef struct {
    fl_job job; /* its type: fl_forward_job */
    const fl_network *net;
    fl_index T, B;
    fl_array x;             /* IN  (T, B, I) */
    fl_array output;        /* OUT (T, B, D*P) */
    const char *h_0, *c_0;  /* IN  (L*D, B, P) and (L*D, B, C), contiguous; NULL: the layers' own, or zeros */
    char *h_n, *c_n;        /* OUT the same shapes, contiguous */
    const int64_t *lengths; /* IN  (B,); below 0 counts as 0, above T as T, but for the order of rows; NULL: all T */
    fl_array resets;        /* IN  (T, B), bytes; NULL data: none */
    fl_tape *tape;          /* OUT; NULL: nothing is kept */

    /* Set by job.type->prepare: */
    fl_index *order; /* [B] rows: one row group's after another, each group's by falling length */
} fl_call;

extern const fl_job_type fl_forward_job;

/* In one process the same arguments give the same plan; L2 and the speed of L3 are asked for once (caches.h). */
fl_plan fl_make_plan(const fl_network *net, fl_index T, fl_index B, int threads, double meeting_price, int pace);

/* ---- Gradients -------------------------------------------------------------------------------------------------------------- */

/* One layer's and direction's: OUT, or INOUT if the call adds to them. Shapes as in fl_layer_weights; NULL where there is none. */
typedef struct {
    char *weight_ih, *weight_hh, *bias, *weight_hr, *weight_peephole, *h_0, *c_0;
} fl_layer_gradients;

typedef struct {
    fl_job job; /* its type: fl_backward_job */
    const fl_network *net;
    const fl_transposed *transposed;
    fl_tape *tape;             /* INOUT: used up */
    fl_array d_output;         /* IN  (T, B, D*P); NULL data: zeros */
    const char *d_h_n, *d_c_n; /* IN  as h_n and c_n; NULL: zeros */
    fl_array resets;           /* IN  as in the recorded call */
    fl_index first_step;       /* the number that the first step has in `steps` */
    fl_index steps;            /* truncation: gradients stop between t - 1 and t where t + first_step is a multiple; 0: none */
    fl_array d_x;              /* OUT (T, B, I); padding is left alone; NULL data: not wanted */
    char *d_h_0, *d_c_0;       /* OUT as h_0 and c_0; rows of length 0 are left alone */
    const fl_layer_gradients *d_weights; /* L * D records */
    int adds;                            /* to what they hold; 0: they hold nothing */
} fl_backward_call;

extern const fl_job_type fl_backward_job;

fl_plan fl_make_backward_plan(const fl_network *net, fl_index T, fl_index B, int threads, double meeting_price, int pace);
fl_index fl_block_steps(fl_index B); /* steps whose tokens are summed on their own before they join the gradient of a weight */

/* ---- Small things every part uses -------------------------------------------------------------------------------------------- */

/* FL_ALIGNMENT-aligned memory of any contents, or NULL: allocated for a network, borrowed for a call or a tape. */
void *fl_allocate(size_t bytes);
void fl_free(void *memory);
void *fl_borrow(size_t bytes);
void fl_give_back(void *memory);

static inline fl_index fl_ceil_div(fl_index a, fl_index b) { return (a + b - 1) / b; }
static inline fl_index fl_round_up(fl_index a, fl_index b) { return fl_ceil_div(a, b) * b; }
static inline fl_index fl_min(fl_index a, fl_index b) { return a < b ? a : b; }
static inline fl_index fl_max(fl_index a, fl_index b) { return a > b ? a : b; }

/* H, or P, filled up to whole groups of units. */
static inline fl_index fl_padded(fl_index units) { return fl_round_up(units, FL_UNITS); }

/* The gates of one token in a tape, [H / FL_UNITS][gates][FL_UNITS]: how many elements, and which one is this gate of this unit. */
static inline fl_index fl_gate_rows(const fl_network *net) { return net->gates * fl_padded(net->H); }
static inline fl_index fl_gate_element(const fl_network *net, fl_index unit, fl_index gate)
{
    return (unit / FL_UNITS * net->gates + gate) * FL_UNITS + unit % FL_UNITS;
}

/* Rows whose pitch is a multiple of 1 KiB fall into few sets of a cache: step aside by a line. */
static inline fl_index fl_pitch(fl_index elements, fl_index item)
{
    const fl_index bytes = fl_round_up(elements * item, FL_ALIGNMENT);
    return bytes % 1024 ? bytes : bytes + FL_ALIGNMENT;
}

/* Bytes of one weight, of the scales before a panel, and of a panel with them. */
static inline fl_index fl_weight_item(int kind, fl_index item) { return kind == FL_FULL ? item : kind == FL_INT8 ? 1 : 2; }
static inline fl_index fl_scales_bytes(int kind, fl_index V)
{
    return kind == FL_INT8 ? FL_VECTORS * V * (fl_index)sizeof(float) : 0;
}
static inline fl_index fl_panel_bytes(const fl_network *net, fl_index K)
{
    return fl_scales_bytes(net->kind, net->V)
           + fl_round_up(K * FL_VECTORS * net->V * fl_weight_item(net->kind, net->item),
                         FL_ALIGNMENT); /* 4 lanes of int8 are less than a line */
}

/* A block's part of a layer's peepholes, or NULL. */
static inline const void *fl_peephole_of(const fl_network *net, const fl_layer *layer, fl_index block)
{
    return layer->peephole ? (const char *)layer->peephole + block * 3 * net->V * net->item : NULL;
}

/* Whether record `index` of a network, layer-major, runs from the end to the beginning. */
static inline int fl_runs_back(const fl_network *net, fl_index index) { return net->D == 2 ? index % 2 : net->reverse; }

/* Where part `part` of `parts` even parts of n things begins; fl_even_part(n, parts, parts) == n. */
static inline fl_index fl_even_part(fl_index n, fl_index parts, fl_index part)
{
    return n / parts * part + fl_min(n % parts, part);
}

/* So much of n things. */
static inline fl_index fl_per_mille(fl_index n, int share) { return (n * share + 500) / 1000; }

/* As fl_even_part, but the first of two parts has `share` per mille, and neither is empty. */
static inline fl_index fl_part(fl_index n, fl_index parts, fl_index part, int share)
{
    if (parts != 2 || part != 1 || n < 2)
        return fl_even_part(n, parts, part);
    return fl_max(1, fl_min(fl_per_mille(n, share), n - 1));
}

/* The most that one of them has. */
static inline fl_index fl_largest_part(fl_index n, fl_index parts, int share)
{
    const fl_index first = fl_part(n, parts, 1, share);
    return parts == 2 ? fl_max(first, n - first) : fl_ceil_div(n, parts);
}

#endif
