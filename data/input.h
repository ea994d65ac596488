/* input: reading what may keep one waiting, a terminal or a pipe, so that a signal ends the wait.
 * interrupted() says that somebody asked to stop; it may be NULL. */
#ifndef TP_INPUT_H
#define TP_INPUT_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Until fd has bytes or has ended. TP_EINTERRUPT once interrupted() is true; `name` stands in
 * messages. */
tp_status tp_input_wait(tp_ctx *c, int fd, const char *name, bool (*interrupted)(void));

/* Lines of a file descriptor. Start with the first three and zeros. */
typedef struct tp_input {
    int fd;
    const char *name; /* for messages */
    bool (*interrupted)(void);
    char *data; /* [from, to) is read and not yet handed out */
    size_t from, to, cap;
    bool ended;
} tp_input;
/* The next line, without its end, valid until the next call; NULL after the last. */
tp_status tp_input_line(tp_input *in, tp_ctx *c, char **line);
/* All that is left: *n bytes with a NUL behind them, valid until the next call. */
tp_status tp_input_rest(tp_input *in, tp_ctx *c, char **text, size_t *n);
void tp_input_clear(tp_input *in);

#ifdef __cplusplus
}
#endif
#endif
