/* Checking indices before they become addresses, and rows by index; for the ops that read one. */
#ifndef TP_INDEX_H
#define TP_INDEX_H
#include "ops/op.h"
/* Refuses unless every value of the dense i32 tensor in[i] lies in [0,limit). Names the first that
 * does not: its position in row-major order and its value. */
tp_status tp_check_index(const tp_call *k, int i, const char *arg, int64_t limit);
/* out[0] row p = table row in[i][p], of any one type, after tp_check_index. All are dense, but the
 * table's rows may lie apart. */
tp_status tp_index_rows(const tp_call *k, int i, const char *arg, const tp_tensor *table);
#endif
