/* The inside of a communicator, for the files of dist/ and its tests. */
#ifndef TP_DIST_COMM_H
#define TP_DIST_COMM_H
#include "dist/dist.h"

struct tp_comm {
    const char *name;
    int rank, size, local_size;
    int64_t started; /* tickets given */
};

/* ---- shard.c -------------------------------------------------------------------------------- */
int tp_bit_reverse(int i, int size); /* of a number below size, a power of two */
/* Where range i of the split begins; i = size: where the last one ends. */
int64_t tp_cut_at(const tp_cut *s, int size, int i);
const char *tp_cut_fault(const tp_cut *s, int size); /* what is wrong with it; NULL: nothing */
#endif
