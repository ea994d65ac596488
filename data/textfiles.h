/* The list of input files behind a text source: finding, sizing and sniffing them. */
#ifndef TP_TEXTFILES_H
#define TP_TEXTFILES_H
#include "core/core.h"

typedef struct tp_text_file {
    char *path;
    int64_t size;
    int spool; /* descriptor of the copy of standard input or a pipe; -1: open path */
} tp_text_file;

typedef struct tp_text_files {
    tp_text_file *file;
    int64_t n, cap;
    int64_t bytes, not_text;
    char *first_not_text;
    bool has_stdin;
    bool (*interrupted)(void); /* see tp_text_opts */
} tp_text_files;

/* Adds what one command-line argument stands for. */
tp_status tp_text_files_add(tp_text_files *l, tp_ctx *c, const char *path);
void tp_text_files_clear(tp_text_files *l);

/* What kind of file begins with these bytes, in words, if it cannot be read as text; else NULL. */
const char *tp_text_sniff(const uint8_t *head, size_t n);
#endif
