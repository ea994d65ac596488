/* pipe: a program of the user's that answers lines with lines. */
#ifndef TP_PIPE_H
#define TP_PIPE_H
#include "core/core.h"

typedef struct tp_pipe tp_pipe;
/* Runs `sh -c command` with its input and output on pipes. */
tp_status tp_pipe_open(tp_pipe **out, tp_ctx *c, const char *command);
/* Writes n bytes of text and reads `lines` lines, within `timeout` seconds in all; neither side
 * blocks the other. *answer (heap, a NUL at its end) is the caller's to free. TP_EIO names what
 * went wrong: the program ended (with which code), was too slow, or closed its output. After a
 * failure the pipe is closed. */
tp_status tp_pipe_ask(tp_pipe *p, tp_ctx *c, const char *text, size_t n, int64_t lines,
                      double timeout, char **answer);
/* Closes its input, waits a second for it to end, then kills it and what it started. */
void tp_pipe_close(tp_pipe *p);
#endif
