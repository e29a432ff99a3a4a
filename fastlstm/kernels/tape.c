/* The memory of a recorded call, and the order of rows that all of it follows. */
#include "schedule.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t length;
    fl_index row;
} ranked;

static int by_falling_length(const void *left, const void *right)
{
    const ranked *a = left, *b = right;
    return a->length != b->length ? (a->length < b->length) - (a->length > b->length) : (a->row > b->row) - (a->row < b->row);
}

int fl_order_rows(const int64_t *lengths, fl_index B, fl_index *order)
{
    if (!lengths) {
        for (fl_index b = 0; b < B; b++)
            order[b] = b;
        return FL_OK;
    }
    ranked *rows = malloc((size_t)fl_max(B, 1) * sizeof *rows);
    if (!rows)
        return FL_NO_MEMORY;
    for (fl_index b = 0; b < B; b++)
        rows[b] = (ranked){lengths[b], b};
    qsort(rows, (size_t)B, sizeof *rows, by_falling_length);
    for (fl_index b = 0; b < B; b++)
        order[b] = rows[b].row;
    free(rows);
    return FL_OK;
}

/* Rows of `bytes` at a pitch. */
static void copy_rows(char *to, fl_index pitch, const char *from, fl_index bytes, fl_index rows)
{
    for (fl_index row = 0; row < rows; row++)
        memcpy(to + row * pitch, from + row * bytes, (size_t)bytes);
}

int fl_make_tape(fl_tape *tape, const fl_network *net, fl_index T, fl_index B, const int64_t *lengths, const char *h_0,
                 const char *c_0)
{
    const fl_index item = net->item, units = fl_padded(net->H), records = net->L * net->D;
    const fl_index index_bytes = fl_round_up((T + 1 + B) * (fl_index)sizeof(fl_index), FL_ALIGNMENT);
    fl_index tokens = 0;

    for (fl_index b = 0; b < B; b++)
        tokens += lengths ? (fl_index)lengths[b] : T;
    *tape = (fl_tape){
        .T = T,
        .B = B,
        .tokens = tokens,
        .x_pitch = fl_pitch(net->I, item),
        .y_pitch = fl_pitch(net->D * net->P, item),
        .gates_pitch = fl_pitch(FL_VECTORS * units, item),
        .c_pitch = fl_pitch(units, item),
        .h_pitch = fl_pitch(net->P, item),
    };
    /* A product reads whole vectors of a row: a panel's width of room behind the last one, of the widest there is. */
    const fl_index room = FL_VECTORS * FL_UNITS * item;
    const fl_index parts[] = {
        tokens * tape->x_pitch,           net->L * tokens * tape->y_pitch,       records * tokens * tape->gates_pitch,
        records * tokens * tape->c_pitch, h_0 ? records * B * tape->h_pitch : 0, c_0 ? records * B * tape->c_pitch : 0};
    tape->bytes = index_bytes + room;
    for (int i = 0; i < 6; i++)
        tape->bytes += parts[i];
    tape->memory = fl_allocate((size_t)tape->bytes);
    if (!tape->memory)
        return FL_NO_MEMORY;
    char *next = (char *)tape->memory + index_bytes;
    tape->first = tape->memory;
    tape->order = tape->first + T + 1;
    tape->x = next;
    tape->y = tape->x + parts[0];
    tape->gates = tape->y + parts[1];
    tape->c = tape->gates + parts[2];
    tape->h_0 = h_0 ? tape->c + parts[3] : NULL;
    tape->c_0 = c_0 ? tape->c + parts[3] + parts[4] : NULL;
    if (h_0)
        copy_rows(tape->h_0, tape->h_pitch, h_0, net->P * item, records * B);
    if (c_0)
        copy_rows(tape->c_0, tape->c_pitch, c_0, net->H * item, records * B);
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

void fl_free_tape(fl_tape *tape)
{
    fl_free(tape->memory, (size_t)tape->bytes);
    tape->memory = NULL;
}
