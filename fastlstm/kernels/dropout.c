/* Dropout between layers: what is dropped depends on the seed and on where a number stands, so that both passes draw the same. */
#include "fastlstm.h"

/* Well mixed bits of x [S. Vigna's splitmix64, after D. Stafford's variant 13 of MurmurHash3's finalizer]. */
static uint64_t mixed(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

void fl_drop(const fl_dropout *dropout, fl_index layer, fl_index t, fl_index row, fl_index column, fl_index n, fl_index item,
             void *values)
{
    const uint64_t golden = UINT64_C(0x9e3779b97f4a7c15), bound = (uint64_t)(dropout->p * 0x1p32);
    const double scale = dropout->p < 1 ? 1 / (1 - dropout->p) : 0;
    uint64_t key = mixed(dropout->seed + golden);

    key = mixed(key ^ ((uint64_t)layer + golden));
    key = mixed(key ^ ((uint64_t)t + golden));
    key = mixed(key ^ ((uint64_t)row + golden)) + (uint64_t)column * golden;
    for (fl_index j = 0; j < n; j++, key += golden) {
        const double factor = mixed(key) >> 32 < bound ? 0 : scale;
        if (item == 4)
            ((float *)values)[j] *= (float)factor;
        else
            ((double *)values)[j] *= factor;
    }
}
