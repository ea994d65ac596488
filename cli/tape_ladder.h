/* The shape of a tape's picture: which call stands in which row, which row reads from which, and
 * through which lane. */
#ifndef TP_TAPE_LADDER_H
#define TP_TAPE_LADDER_H
#include "cli/tape.h"

typedef struct ladder_row {
    int from, to; /* calls of the forward pass */
    int blocks;   /* folded blocks that look alike; 0: one call */
    int like;     /* the call where the block begins that they look like */
    double y, h;  /* of its boxes */
    bool opens;   /* a block begins here */
    int lines[2]; /* of text in its boxes, forward and backward */
} ladder_row;

typedef struct ladder_bus { /* from a row's box along a lane to every row that reads it */
    int from, to;           /* to: the furthest */
    int lane;
} ladder_bus;

typedef struct ladder {
    const tape_log *l;
    int n, calls; /* rows; calls of the forward pass */
    ladder_row *row;
    int *of;            /* the row of each call, of both passes */
    bool *edge[2];      /* [pass][from*n+to] */
    ladder_bus *bus[2]; /* by row; lane -1: none */
    int lanes[2];
} ladder;

/* Lives in the step arena of l->c; lines, y and h are the drawer's. False: the ctx has failed. */
bool ladder_make(ladder *d, const tape_log *l);
#endif
