/* task: exercises whose answers a program can check. Item i of a task is a pure function of (task,
 * seed, split, i), so it is the same on every rank and after a resume; which prompts are held out
 * is decided by a hash of their text, so nothing held out is ever practised.
 *
 *   chain       7+3*4-2=      one digit and `operations` more, from left to right modulo 10
 *   parity      0110101:      is the number of ones odd? 1 or 0, of `operations` bits
 *   arithmetic  347+891=      sums and differences of two numbers of that many digits
 *   sort        5 2 9 1>      as many digits, in ascending order
 *   countdown   24: 3 7 4=    an expression in + - * / that makes the number, from that many
 *                             others, each at most once
 *
 * A demonstration ends with "#" and the answer; with a scratchpad the steps come before it (chain:
 * the value after each operation, one digit each). An answer is what follows the last "#". */
#ifndef TP_TASK_H
#define TP_TASK_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { TP_TASK_TEXT = 512 }; /* bytes of a generated prompt or demonstration with its NUL */
typedef struct tp_task_opts {
    const char *name;  /* of the list above, or the path of a .jsonl file of "prompt" and
                          "answer" */
    int64_t min, max;  /* size of an item, both ends; 0: the task's own */
    double scratchpad; /* part of the demonstrations that show their steps */
    uint64_t seed;
    bool answerless; /* lines of a file may lack an answer: nobody will ask whether one is right */
    const char *advice; /* what the sentence about a missing answer ends with; or NULL */
} tp_task_opts;
typedef struct tp_task tp_task;
/* TP_EARG: no such task, or sizes it cannot have. TP_EIO, TP_EFORMAT: the file. */
tp_status tp_task_new(tp_task **out, tp_ctx *c, const tp_task_opts *o);
void tp_task_free(tp_task *t);

/* Whether items come with a solution of the task's own, `demo`: those of a file do not. */
bool tp_task_has_solutions(const tp_task *t);
/* SHA-256 of a file's bytes as they were read, in hexadecimal; "built in". */
const char *tp_task_sha256(const tp_task *t);

/* How many different held-out items there are: of a file; INT64_MAX for those that are made. */
int64_t tp_task_held_out(const tp_task *t);

typedef struct tp_task_item {
    char *prompt, *answer, *demo; /* the task's own memory, until the next item; demo may be "" */
} tp_task_item;
/* held_out: an item of the part that training never sees. Items repeat when i passes the number of
 * different prompts there are. TP_EARG where the task has too few prompts for both parts. */
tp_status tp_task_get(tp_task *t, tp_ctx *c, bool held_out, uint64_t i, tp_task_item *out);
/* Whether the answer that a completion gives (n bytes) is right for this prompt. */
bool tp_task_right(const tp_task *t, const tp_task_item *item, const char *completion, size_t n);
/* Whether there is a "#" with something behind it. */
bool tp_task_has_answer(const char *completion, size_t n);
/* The names, in order, NULL-terminated, and a line about each. */
extern const char *const tp_task_names[];
const char *tp_task_about(const char *name);
bool tp_task_is_file(const char *name); /* of items, rather than a task of ours */
#ifdef __cplusplus
}
#endif
#endif
