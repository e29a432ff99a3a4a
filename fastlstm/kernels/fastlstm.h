/* The contract between the Cython boundary, the schedule and the leaf kernels.
 *
 * Letters: T steps, B rows (sequences), I inputs, H hidden units, P size of h (H, or proj_size), L layers, D directions, V lanes
 * of a vector. "Units" are hidden units; a "block" is V units, whose four gates stand side by side in one panel.
 *
 * Arrays of either floating-point type pass as untyped pointers and byte strides; `net->item` is the size of one element.
 */
#ifndef FASTLSTM_H
#define FASTLSTM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef ptrdiff_t fl_index;

enum { FL_VECTORS = 4 };    /* vectors of one panel: the gates i, f, g, o of a block, or four blocks of projected outputs */
enum { FL_MAX_TILE = 6 };   /* the most rows that any instruction set takes in one tile */
enum { FL_SLAB = 16 };      /* products that are summed on their own before they join the sum, see fl_tile */
enum { FL_ALIGNMENT = 64 }; /* of packed weights and scratch: a cache line, and the widest vector */

/* ---- Leaf kernels: one table per instruction set and type, compiled from kernel_text.h ------------------------------------- */

/* acc[m] += sum over k of rows[m][k] * panel[k], slab by slab of FL_SLAB elements, k ascending: each slab is one chain of fused
 * multiply-adds from zero, whose sum is added to acc. (One chain from end to end loses twice the bits at K 400: its later terms are
 * added to a large sum.) The order depends on k alone, so every shape of tile gives the same bits.
 *   acc     INOUT [M][FL_VECTORS][V], aligned; a second block's accumulators stand acc_next elements behind
 *   panel   IN    [K][FL_VECTORS][V], aligned; a second block's panel stands panel_next elements behind
 *   rows    IN    M pointers to K elements each, any alignment */
typedef void fl_tile(void *acc, fl_index acc_next, const void *panel, fl_index panel_next, const void *const *rows, fl_index K);

/* The LSTM cell for n rows of one block. The pre-activations of i, f, g, o are (x W + h R) + bias: each product is a sum of its
 * own, so that the terms of a small h R are not added one by one to a large x W, nor to a large bias.
 *   xW, hR  IN    [n][FL_VECTORS][V]
 *   bias    IN    [FL_VECTORS][V]
 *   c       INOUT n rows of V elements, c_pitch elements apart
 *   h       OUT   n rows of V elements, h_pitch elements apart */
typedef void fl_cell(fl_index n, const void *xW, const void *hR, const void *bias, void *c, fl_index c_pitch, void *h,
                     fl_index h_pitch);

/* Store accumulators as they are (projection): out row m, vectors in order; NaN made canonical. */
typedef void fl_store(fl_index n, const void *acc, void *out, fl_index out_pitch);

typedef struct {
    fl_index item;               /* bytes of one element */
    fl_index V;                  /* lanes */
    fl_index max_tile;           /* M of the largest tile */
    fl_tile *tiles[FL_MAX_TILE]; /* tiles[M - 1]: M rows, one block */
    fl_tile *tile_pair;          /* one row, two neighbouring blocks: enough independent chains for one row */
    fl_cell *cell;
    fl_store *store;
} fl_kernels;

typedef struct {
    const char *name;
    int available; /* this machine has the instructions and the operating system saves the registers */
    const fl_kernels *f32, *f64;
} fl_isa;

/* From worst to best; ends with a NULL name. */
const fl_isa *fl_isas(void);

/* ---- Packed weights ---------------------------------------------------------------------------------------------------------- */

/* One direction of one layer. A packed matrix is [blocks][K][FL_VECTORS][V]; units past H are zero. */
typedef struct {
    fl_index I;       /* inputs of this layer */
    void *bias;       /* [blocks][FL_VECTORS][V]: the sum of both biases, or zeros */
    void *W;          /* x's weights, K = I */
    void *R;          /* h's weights, K = P */
    void *projection; /* weight_hr, K = H, [ceil(P / 4V)][H][4V]; NULL without one */
} fl_layer;

typedef struct {
    const fl_kernels *kernels;
    fl_index I, H, P, L, D;
    int has_projection;
    fl_index item, V;
    fl_index blocks;           /* ceil(H / V) */
    fl_index projected_blocks; /* ceil(P / 4V), 0 without projection */
    fl_layer *layers;          /* L * D records, layer-major */
    void *memory;              /* of all panels */
    size_t bytes;
} fl_network;

/* Row-major weights as PyTorch has them, C-contiguous; a NULL bias is zero. */
typedef struct {
    const void *weight_ih;         /* (4H, I) */
    const void *weight_hh;         /* (4H, P) */
    const void *bias_ih, *bias_hh; /* (4H,) or NULL */
    const void *weight_hr;         /* (P, H) or NULL */
} fl_layer_weights;

enum { FL_OK = 0, FL_NO_MEMORY = 1, FL_STOPPED = 2 };

/* Fills net->layers and net->memory; the sizes in *net and its kernels are set by the caller. */
int fl_pack(fl_network *net, const fl_layer_weights *weights);
void fl_unpack(fl_network *net); /* frees what fl_pack took */

/* ---- A call ------------------------------------------------------------------------------------------------------------------ */

/* How a team divides a call: threads = directions x row_groups x unit_groups (all at least 1). */
typedef struct {
    int threads;
    int directions;      /* 2: the two directions of a layer run side by side */
    int row_groups;      /* groups of rows that never wait for each other */
    int unit_groups;     /* threads that share one group's rows and divide its hidden units; they meet every step */
    fl_index chunk;      /* steps whose x.W is taken as one product; 0: x.W and h.R in one pass per step */
    fl_index stride;     /* steps that one layer runs before the next layer takes them */
    int blocks_at_once;  /* 1 or 2: blocks that a single row takes together */
    int64_t patience_ns; /* to be kept waiting for longer means that other processes need the processors */
} fl_plan;

typedef struct {
    char *data;
    fl_index strides[3]; /* bytes; the last axis is contiguous */
} fl_array;

/* Thread 0 calls it every few tens of milliseconds; non-zero stops the call. */
typedef int fl_poll(void *context);

typedef struct {
    const fl_network *net;
    fl_index T, B;
    fl_array x;             /* IN  (T, B, I) */
    fl_array output;        /* OUT (T, B, D*P) */
    const char *h_0, *c_0;  /* IN  (L*D, B, P) and (L*D, B, H), contiguous; NULL: zeros */
    char *h_n, *c_n;        /* OUT the same shapes, contiguous */
    const int64_t *lengths; /* IN  (B,), 0..T; NULL: all T */
    const uint8_t *resets;  /* IN  (T, B) at resets_strides (bytes); NULL: none */
    fl_index resets_strides[2];
    fl_poll *poll; /* may be NULL */
    void *poll_context;

    fl_plan plan; /* from fl_make_plan */

    /* Set by fl_prepare: */
    fl_index *order; /* [B] rows: one row group's after another, each group's by falling length */
    char *scratch;
    fl_index scratch_bytes;
    atomic_int stop;               /* set once: everybody leaves; h_n, c_n and the output are then unfinished */
    int64_t begun_ns, finished_ns; /* by thread 0; begun_ns stays 0 if no team of the planned size came together */
} fl_call;

/* The division of labour for at most `threads` threads. Pure: the same arguments give the same plan. */
fl_plan fl_make_plan(const fl_network *net, fl_index T, fl_index B, int threads);

/* Takes scratch for call->plan and orders the rows. FL_NO_MEMORY leaves nothing behind. */
int fl_prepare(fl_call *call);

/* Every thread 0 .. plan.threads-1 of the team calls this once, at the same time. */
void fl_forward(fl_call *call, int thread);

/* After the team has come together again, on the calling thread: notes whether it was kept waiting. */
void fl_joined(const fl_call *call);

void fl_release(fl_call *call);

/* ---- Small things every part uses -------------------------------------------------------------------------------------------- */

/* FL_ALIGNMENT-aligned memory of any contents, or NULL; to be given back with the same number of bytes. */
void *fl_allocate(size_t bytes);
void fl_free(void *memory, size_t bytes);

static inline fl_index fl_ceil_div(fl_index a, fl_index b) { return (a + b - 1) / b; }
static inline fl_index fl_round_up(fl_index a, fl_index b) { return fl_ceil_div(a, b) * b; }
static inline fl_index fl_min(fl_index a, fl_index b) { return a < b ? a : b; }
static inline fl_index fl_max(fl_index a, fl_index b) { return a > b ? a : b; }

/* Where part `part` of `parts` even parts of n things begins; share_start(n, parts, parts) == n. */
static inline fl_index fl_share(fl_index n, fl_index parts, fl_index part) { return n / parts * part + fl_min(n % parts, part); }

#endif
