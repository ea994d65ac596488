/* What the files of the emulated runtime share: streams, and what is asked of them. */
#ifndef TP_EMU_STREAMS_H
#define TP_EMU_STREAMS_H
#include "internal.h"

enum node_kind { NODE_LAUNCH, NODE_COPY, NODE_FILL, NODE_RECORD, NODE_WAIT };
struct node {
    node *next;
    node_kind kind;
    cudaEvent_t event; /* RECORD, WAIT */
    long long ticket;  /* which recording of the event */
    const char *name;
    dim3 grid, block;
    size_t smem_bytes, shared_limit;
    void (*call)(const void *);
    void *closure;
    void *dst;
    const void *src;
    size_t bytes, dpitch, spitch, height;
    int value;
};
struct CUgraph_st {
    node *first, *last;
    size_t n;
};
struct CUgraphExec_st {
    CUgraph_st graph;
};
struct CUstream_st {
    CUstream_st *next; /* of all */
    CUgraph_st *capturing;
    bool invalid;
    CUgraph_st later; /* asked for and not done */
};
struct CUevent_st {
    CUevent_st *next;
    double at; /* seconds */
    bool recorded, timed;
    CUstream_st *on;       /* where it was last recorded */
    long long asked, done; /* recordings */
    int queries;           /* since it was last recorded */
};

CUstream_st *emu_stream_of(cudaStream_t s);
/* Does it, or leaves it for later, or records it in the graph that the stream captures.
 * closure_bytes: of d->closure, which is copied. */
cudaError_t emu_submit(cudaStream_t stream, const node *d, size_t closure_bytes);
#endif
