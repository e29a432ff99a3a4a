/* The order of rows that both passes follow: the active ones are always the first. */
#include "schedule.h"

#include <stdlib.h>

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
