/* Weights, from PyTorch's rows to panels: for a block of units, element k holds their gates side by side. And transposed, for
 * gradients: for a block of 4V inputs, element k holds what gate row k makes of them. */
#include "fastlstm.h"
#include "float_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 16 }; /* of a row at a time: a cache line of floats is used up while it is there, whatever the rows' distance */

/* out [columns][stride] OUT, [rows] of each written; matrix (., K) IN, from its first row and column: transposed. */
static void gather(char *out, fl_index stride, const char *matrix, fl_index K, fl_index rows, fl_index columns, fl_index item)
{
    for (fl_index row = 0; row < rows; row++)
        for (fl_index k = 0; k < columns; k++)
            if (item == 4)
                ((float *)out)[k * stride + row] = ((const float *)matrix)[row * K + k];
            else
                ((double *)out)[k * stride + row] = ((const double *)matrix)[row * K + k];
}

/* The half of a float32 that is one: the only rounding was the caller's. */
static uint16_t half_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x7f800000)
        return (uint16_t)(sign | 0x7c00 | (magnitude > 0x7f800000 ? 0x0200 : 0)); /* infinity, or NaN */
    if (magnitude < 0x38800000)
        return (uint16_t)(sign | (uint32_t)(fabsf(value) * 0x1p24f)); /* subnormal: it counts 2^-24 */
    return (uint16_t)(sign | (magnitude - (112u << 23)) >> 13);
}

static uint32_t upper_half(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return bits >> 16;
}

/* packed OUT as the kind has it; panel [K][FL_VECTORS * V] IN, whose numbers the kind can express. */
static void shrink(char *packed, const float *panel, int kind, fl_index K, fl_index V)
{
    const fl_index width = FL_VECTORS * V;

    if (kind == FL_FLOAT16)
        for (fl_index i = 0; i < K * width; i++)
            ((uint16_t *)packed)[i] = half_of(panel[i]);
    else if (kind == FL_BFLOAT16)
        for (fl_index i = 0; i < K * width; i += 2 * V)
            for (fl_index lane = i; lane < i + V; lane++)
                ((uint32_t *)packed)[i / 2 + lane - i] = upper_half(panel[lane]) | upper_half(panel[lane + V]) << 16;
    else
        for (fl_index column = 0; column < width; column++) {
            float largest = 0;
            for (fl_index k = 0; k < K; k++)
                largest = fmaxf(largest, fabsf(panel[k * width + column]));
            const float scale = largest / 127;
            ((float *)packed)[column] = scale;
            for (fl_index k = 0; k < K; k++)
                (packed + fl_scales_bytes(kind, V))[k * width + column % V * FL_VECTORS + column / V] =
                    (char)(scale > 0 ? (int8_t)lrintf(panel[k * width + column] / scale) : 0);
        }
}

/* packed [ceil(H / units)] panels OUT (zeroed before), the gates of `units` units side by side; matrix (gates * H, K) IN; `one` has room
 * for one panel of full numbers, if the network's are smaller. */
static void pack_gates(const fl_network *net, char *packed, const char *matrix, fl_index gates, fl_index H, fl_index K,
                       float *one)
{
    const fl_index item = net->item, width = FL_VECTORS * net->V, units = width / gates;

    for (fl_index block = 0; block < H; block += units, packed += fl_panel_bytes(net, K)) {
        char *panel = net->kind == FL_FULL ? packed : memset(one, 0, (size_t)(K * width * item));
        for (fl_index k = 0; k < K; k += COLUMNS)
            for (fl_index gate = 0; gate < gates; gate++)
                gather(panel + (k * width + gate * units) * item, width, matrix + ((gate * H + block) * K + k) * item, K,
                       fl_min(units, H - block), fl_min(COLUMNS, K - k), item);
        if (net->kind != FL_FULL)
            shrink(packed, one, net->kind, K, net->V);
    }
}

static void pack_bias(char *packed, const fl_layer_weights *weights, const fl_network *net)
{
    const fl_index H = net->H, units = net->units, item = net->item;

    if (!weights->bias_ih)
        return;
    for (fl_index unit = 0; unit < H; unit++)
        for (fl_index gate = 0; gate < net->gates; gate++) {
            const fl_index from = gate * H + unit, to = (unit / units * net->gates + gate) * units + unit % units;
            if (item == 4)
                ((float *)packed)[to] = ((const float *)weights->bias_ih)[from] + ((const float *)weights->bias_hh)[from];
            else
                ((double *)packed)[to] = ((const double *)weights->bias_ih)[from] + ((const double *)weights->bias_hh)[from];
        }
}

/* packed [blocks][3][V] OUT (zeroed before); matrix (3H,) IN. */
static void pack_peephole(char *packed, const char *matrix, fl_index H, fl_index V, fl_index item)
{
    for (fl_index unit = 0; unit < H; unit += V)
        for (int gate = 0; gate < 3; gate++, packed += V * item)
            memcpy(packed, matrix + (gate * H + unit) * item, (size_t)(fl_min(V, H - unit) * item));
}

/* Bytes of one layer's parts, each a multiple of the alignment. */
typedef struct {
    size_t bias, W, R, projection, variant, peephole, h_0, c_0, all;
} fl_layer_bytes;

static size_t aligned(size_t bytes) { return (bytes + FL_ALIGNMENT - 1) / FL_ALIGNMENT * FL_ALIGNMENT; }

static fl_layer_bytes layer_bytes(const fl_network *net, const fl_layer_weights *weights, fl_index I)
{
    const size_t vector = (size_t)(net->V * net->item), panel = FL_VECTORS * vector;
    fl_layer_bytes bytes = {
        .bias = (size_t)net->blocks * panel,
        .W = (size_t)(net->blocks * fl_panel_bytes(net, I)),
        .R = (size_t)(net->blocks * fl_panel_bytes(net, net->P)),
        .projection = (size_t)(net->projected_blocks * fl_panel_bytes(net, net->H)),
        .variant = weights->variant ? aligned(sizeof *weights->variant) : 0,
        .peephole = weights->weight_peephole ? aligned((size_t)net->blocks * 3 * vector) : 0,
        .h_0 = weights->h_0 ? aligned((size_t)(net->P * net->item)) : 0,
        /* Gradients read c in groups of FL_UNITS. */
        .c_0 = weights->c_0 ? aligned((size_t)(fl_padded(net->H) * net->item)) : 0,
    };
    bytes.all = bytes.bias + bytes.W + bytes.R + bytes.projection + bytes.variant + bytes.peephole + bytes.h_0 + bytes.c_0;
    return bytes;
}

/* What differs from PyTorch's cell, one part after another; what there is none of is NULL. */
static void pack_variant(fl_layer *layer, char *next, const fl_layer_weights *weights, const fl_network *net,
                         const fl_layer_bytes *bytes)
{
    if (weights->variant)
        layer->variant = memcpy(next, weights->variant, sizeof *weights->variant);
    next += bytes->variant;
    if (weights->weight_peephole)
        pack_peephole(layer->peephole = next, weights->weight_peephole, net->H, net->V, net->item);
    next += bytes->peephole;
    if (weights->h_0)
        layer->h_0 = memcpy(next, weights->h_0, (size_t)(net->P * net->item));
    next += bytes->h_0;
    if (weights->c_0)
        layer->c_0 = memcpy(next, weights->c_0, (size_t)(net->H * net->item));
}

void fl_complete(fl_network *net)
{
    const fl_index width = FL_VECTORS * net->kernels->V;

    net->item = net->kernels->item;
    net->V = net->kernels->V;
    net->C = net->gates == 1 ? 0 : net->H;
    net->units = width / net->gates;
    net->blocks = fl_ceil_div(net->H, net->units);
    net->projected_blocks = net->has_projection ? fl_ceil_div(net->P, width) : 0;
}

static fl_index layer_inputs(const fl_network *net, fl_index index) { return index < net->D ? net->I : net->D * net->P; }

int fl_pack(fl_network *net, const fl_layer_weights *weights)
{
    const fl_index records = net->L * net->D;
    size_t total = 0;

    for (fl_index index = 0; index < records; index++)
        total += layer_bytes(net, &weights[index], layer_inputs(net, index)).all;
    const fl_index longest = fl_max(fl_max(net->I, net->D * net->P), net->H) * FL_VECTORS * net->V;
    float *one = net->kind == FL_FULL ? NULL : malloc((size_t)longest * sizeof *one);
    net->layers = calloc((size_t)records, sizeof *net->layers);
    net->memory = fl_allocate(total);
    net->bytes = total;
    if (!net->layers || !net->memory || (net->kind != FL_FULL && !one)) {
        free(one);
        fl_unpack(net);
        return FL_NO_MEMORY;
    }
    memset(net->memory, 0, total);

    const uint64_t found = fl_enter_float_state(); /* the two biases are added here */
    char *next = net->memory;
    for (fl_index index = 0; index < records; index++) {
        const fl_index I = layer_inputs(net, index);
        const fl_layer_bytes bytes = layer_bytes(net, &weights[index], I);
        fl_layer *layer = &net->layers[index];

        layer->I = I;
        layer->bias = next;
        layer->W = next + bytes.bias;
        layer->R = next + bytes.bias + bytes.W;
        layer->projection = net->has_projection ? next + bytes.bias + bytes.W + bytes.R : NULL;
        pack_variant(layer, next + bytes.bias + bytes.W + bytes.R + bytes.projection, &weights[index], net, &bytes);
        next += bytes.all;

        pack_bias(layer->bias, &weights[index], net);
        pack_gates(net, layer->W, weights[index].weight_ih, net->gates, net->H, I, one);
        pack_gates(net, layer->R, weights[index].weight_hh, net->gates, net->H, net->P, one);
        if (net->has_projection)
            pack_gates(net, layer->projection, weights[index].weight_hr, 1, net->P, net->H, one);
    }
    fl_leave_float_state(found);
    free(one);
    return FL_OK;
}

void fl_unpack(fl_network *net)
{
    free(net->layers);
    fl_free(net->memory);
    net->layers = NULL;
    net->memory = NULL;
}

/* ---- Transposed ---------------------------------------------------------------------------------------------------------------- */

/* packed [ceil(columns / width)][K][width] OUT (zeroed before); matrix (groups * H, columns) IN, whose rows stand in a tape's order:
 * FL_UNITS rows of each group, then the next ones. Returns where it ends. */
static char *pack_rows(char *packed, const char *matrix, fl_index columns, fl_index width, fl_index item, fl_index groups,
                       fl_index H)
{
    for (fl_index from = 0; from < columns; from += width) {
        const size_t bytes = (size_t)(fl_min(width, columns - from) * item);
        for (fl_index unit = 0; unit < fl_padded(H); unit += FL_UNITS)
            for (fl_index group = 0; group < groups; group++)
                for (fl_index j = unit; j < unit + FL_UNITS; j++, packed += width * item)
                    if (j < H)
                        memcpy(packed, matrix + ((group * H + j) * columns + from) * item, bytes);
    }
    return packed;
}

int fl_transpose(const fl_network *net, const fl_layer_weights *weights, fl_transposed *transposed)
{
    const fl_index records = net->L * net->D, width = FL_VECTORS * net->V, K = fl_gate_rows(net);
    fl_index elements = 0;

    for (fl_index index = 0; index < records; index++)
        elements += (fl_ceil_div(net->layers[index].I, width) + fl_ceil_div(net->P, width)) * K * width
                    + (net->has_projection ? fl_ceil_div(net->H, width) * fl_padded(net->P) * width : 0);
    transposed->bytes = (size_t)(elements * net->item);
    transposed->layers = calloc((size_t)records, sizeof *transposed->layers);
    transposed->memory = fl_allocate(transposed->bytes);
    if (!transposed->layers || !transposed->memory) {
        fl_free_transposed(transposed);
        return FL_NO_MEMORY;
    }
    memset(transposed->memory, 0, transposed->bytes);
    char *next = transposed->memory;
    for (fl_index index = 0; index < records; index++) {
        fl_transposed_layer *layer = &transposed->layers[index];

        layer->W = next;
        layer->R = next = pack_rows(next, weights[index].weight_ih, net->layers[index].I, width, net->item, net->gates, net->H);
        next = pack_rows(next, weights[index].weight_hh, net->P, width, net->item, net->gates, net->H);
        if (net->has_projection) {
            layer->projection = next;
            next = pack_rows(next, weights[index].weight_hr, net->H, width, net->item, 1, net->P);
        }
    }
    return FL_OK;
}

void fl_free_transposed(fl_transposed *transposed)
{
    free(transposed->layers);
    fl_free(transposed->memory);
    transposed->layers = NULL;
    transposed->memory = NULL;
}
