/* The memory of a recorded call. */
#include "schedule.h"

#include <string.h>

/* Rows of `bytes` at a pitch. */
static void copy_rows(char *to, fl_index pitch, const char *from, fl_index bytes, fl_index rows)
{
    for (fl_index row = 0; row < rows; row++)
        memcpy(to + row * pitch, from + row * bytes, (size_t)bytes);
}

int fl_make_tape(fl_tape *tape, const fl_network *net, fl_index T, fl_index B, const int64_t *lengths, const char *h_0,
                 const char *c_0, fl_dropout dropout)
{
    const fl_index item = net->item, records = net->L * net->D;
    const fl_index index_bytes = fl_round_up((T + 1 + B) * (fl_index)sizeof(fl_index), FL_ALIGNMENT);
    fl_index tokens = 0;

    for (fl_index b = 0; b < B; b++)
        tokens += fl_length(lengths, b, T);
    *tape = (fl_tape){
        .T = T,
        .B = B,
        .tokens = tokens,
        .x_pitch = fl_pitch(net->I, item),
        .y_pitch =
            fl_pitch((net->D - 1) * net->P + fl_padded(net->P), item), /* gradients of a plain RNN read whole vectors of h */
        .gates_pitch = fl_pitch(fl_gate_rows(net), item),
        .c_pitch = net->C ? fl_pitch(fl_padded(net->H), item) : 0,
        .h_pitch = fl_pitch(net->P, item),
        .dropout = dropout,
    };
    enum { X, Y, GATES, C, H_0, C_0, INPUTS, PARTS };
    const fl_index parts[PARTS] = {
        [X] = tokens * tape->x_pitch,
        [Y] = net->L * tokens * tape->y_pitch,
        [GATES] = records * tokens * tape->gates_pitch,
        [C] = records * tokens * tape->c_pitch,
        [H_0] = h_0 ? records * B * tape->h_pitch : 0,
        [C_0] = c_0 ? records * B * tape->c_pitch : 0,
        [INPUTS] = dropout.p > 0 ? (net->L - 1) * tokens * tape->y_pitch : 0,
    };
    tape->bytes = index_bytes;
    for (int i = 0; i < PARTS; i++)
        tape->bytes += parts[i];
    tape->memory = fl_borrow((size_t)tape->bytes);
    if (!tape->memory)
        return FL_NO_MEMORY;
    char *at[PARTS] = {(char *)tape->memory + index_bytes};
    for (int i = 1; i < PARTS; i++)
        at[i] = at[i - 1] + parts[i - 1];
    tape->first = tape->memory;
    tape->order = tape->first + T + 1;
    tape->x = at[X];
    tape->y = at[Y];
    tape->gates = at[GATES];
    tape->c = at[C];
    tape->h_0 = h_0 ? at[H_0] : NULL;
    tape->c_0 = c_0 ? at[C_0] : NULL;
    tape->inputs = dropout.p > 0 ? at[INPUTS] : NULL;
    if (h_0)
        copy_rows(tape->h_0, tape->h_pitch, h_0, net->P * item, records * B);
    if (c_0)
        copy_rows(tape->c_0, tape->c_pitch, c_0, net->C * item, records * B);
    if (fl_order_rows(lengths, B, tape->order)) {
        fl_free_tape(tape);
        return FL_NO_MEMORY;
    }
    tape->first[0] = 0;
    for (fl_index t = 0, n = B; t < T; t++) {
        while (n > 0 && lengths && lengths[tape->order[n - 1]] <= t)
            n--;
        tape->first[t + 1] = tape->first[t] + n;
    }
    return FL_OK;
}

/* Rows of which so many bytes are used. */
static void clear_tails(char *at, fl_index rows, fl_index pitch, fl_index used)
{
    for (fl_index row = 0; at && row < rows; row++)
        memset(at + row * pitch + used, 0, (size_t)(pitch - used));
}

void fl_clear_padding(const fl_network *net, char *gates)
{
    const fl_index room = fl_padded(net->H) - net->H;

    for (fl_index gate = 0; room && gate < net->gates; gate++)
        memset(gates + fl_gate_element(net, net->H, gate) * net->item, 0, (size_t)(room * net->item));
}

void fl_clear_unused(fl_tape *tape, const fl_network *net)
{
    const fl_index item = net->item, B = tape->B, records = net->L * net->D, tokens = tape->tokens;
    char *index_end = (char *)(tape->order + B);

    memset(index_end, 0, (size_t)(tape->x - index_end));
    clear_tails(tape->x, tokens, tape->x_pitch, net->I * item);
    clear_tails(tape->y, net->L * tokens, tape->y_pitch, net->D * net->P * item);
    clear_tails(tape->inputs, (net->L - 1) * tokens, tape->y_pitch, net->D * net->P * item);
    clear_tails(tape->h_0, records * B, tape->h_pitch, net->P * item);
    clear_tails(tape->c_0, records * B, tape->c_pitch, net->C * item);
    if (net->C)
        clear_tails(tape->c, records * tokens, tape->c_pitch, net->C * item);
    if (net->gates == 1) { /* a plain RNN keeps none */
        memset(tape->gates, 0, (size_t)(records * tokens * tape->gates_pitch));
        return;
    }
    clear_tails(tape->gates, records * tokens, tape->gates_pitch, fl_gate_rows(net) * item);
    for (fl_index row = 0; row < records * tokens; row++)
        fl_clear_padding(net, tape->gates + row * tape->gates_pitch);
}

void fl_read_tape(const fl_tape *tape, const fl_network *net, fl_index record, int what, char *to)
{
    const fl_index item = net->item, n = what == FL_H ? net->P : net->H, layer = record / net->D, side = record % net->D;

    for (fl_index t = 0; t < tape->T; t++)
        for (fl_index token = tape->first[t]; token < tape->first[t + 1]; token++) {
            char *out = to + (t * tape->B + tape->order[token - tape->first[t]]) * n * item;
            if (what == FL_H)
                memcpy(out, tape->y + (layer * tape->tokens + token) * tape->y_pitch + side * n * item, (size_t)(n * item));
            else if (what == FL_C)
                memcpy(out, tape->c + (record * tape->tokens + token) * tape->c_pitch, (size_t)(n * item));
            else
                for (fl_index unit = 0; unit < n; unit += FL_UNITS)
                    memcpy(out + unit * item,
                           tape->gates + (record * tape->tokens + token) * tape->gates_pitch
                               + fl_gate_element(net, unit, what) * item,
                           (size_t)(fl_min(FL_UNITS, n - unit) * item));
        }
}

void fl_free_tape(fl_tape *tape)
{
    fl_give_back(tape->memory);
    tape->memory = NULL;
}
