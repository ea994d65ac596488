/* The attribute of ops that add rows into a table by number; their kernel is in scatter_rows.h. */
#ifndef TP_SCATTER_H
#define TP_SCATTER_H
#include <stdint.h>
typedef struct tp_scatter_attr {
    int64_t rows; /* of the table */
} tp_scatter_attr;
#endif
