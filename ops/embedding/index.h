/* Checking indices before they become addresses; for every op that reads an index tensor. */
#ifndef TP_INDEX_H
#define TP_INDEX_H
#include "ops/op.h"
/* Refuses unless every value of the dense i32 tensor in[i] lies in [0,limit). Names the first that
 * does not: its position in row-major order and its value. */
tp_status tp_check_index(const tp_call *k, int i, const char *arg, int64_t limit);
#endif
