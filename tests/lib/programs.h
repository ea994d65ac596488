/* The program itself, started by tests that kill it and look at what it leaves. */
#ifndef PROGRAMS_H
#define PROGRAMS_H
#include <stddef.h>
#include <sys/types.h>

enum { HASH_TEXT = 128 };

/* A command for the shell, as printf has it; its exit status, -1 if it was ended by a signal. */
int shell(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* Starts argv[0], which ends with NULL, without a word from it; waits for its end: its exit status,
 * or 128 and the signal. */
pid_t start_program(const char *const argv[]);
int finish_program(pid_t pid);
/* What `tapir hash RUN` says; tapir: the program. */
void hash_of_run(char out[HASH_TEXT], const char *tapir, const char *run);
/* Waits until n times something was created or written in a folder; 0, or -1 after a minute. */
typedef struct watched {
    int fd;
} watched;
watched watch_folder(const char *folder); /* made if it is not there */
int wait_for_writes(watched w, int n);
/* Some text: words of a small vocabulary in a random order. */
int write_words(const char *path);
#endif
