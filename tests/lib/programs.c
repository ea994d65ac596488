#include "programs.h"
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/wait.h>
#include <unistd.h>

int shell(const char *fmt, ...) {
    char cmd[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(cmd, sizeof cmd, fmt, ap);
    va_end(ap);
    int st = system(cmd);
    return WIFEXITED(st) ? WEXITSTATUS(st) : -1;
}

pid_t start_program(const char *const argv[]) {
    pid_t pid = fork();
    if (pid) return pid;
    int null = open("/dev/null", O_RDWR);
    dup2(null, 1);
    dup2(null, 2);
    execv(argv[0], (char *const *)argv);
    _exit(127);
}

int finish_program(pid_t pid) {
    int st;
    while (waitpid(pid, &st, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
}

void hash_of_run(char out[HASH_TEXT], const char *tapir, const char *run) {
    char cmd[512];
    snprintf(cmd, sizeof cmd, "%s hash %s", tapir, run);
    FILE *f = popen(cmd, "r");
    assert_non_null(f);
    assert_non_null(fgets(out, HASH_TEXT, f));
    assert_int_equal(pclose(f), 0);
    out[strcspn(out, " ")] = 0;
    assert_int_equal(strlen(out), 64);
}

watched watch_folder(const char *folder) {
    assert_int_equal(shell("mkdir -p %s", folder), 0);
    watched w = {inotify_init1(IN_CLOEXEC)};
    assert_true(w.fd >= 0 && inotify_add_watch(w.fd, folder, IN_CREATE | IN_MODIFY) >= 0);
    return w;
}

int wait_for_writes(watched w, int n) {
    struct pollfd p = {.fd = w.fd, .events = POLLIN};
    int bad = 0;
    for (int i = 0; i < n && !bad; i++) {
        char events[4096];
        bad = poll(&p, 1, 60000) != 1 || read(w.fd, events, sizeof events) <= 0;
    }
    close(w.fd);
    return bad ? -1 : 0;
}

int write_words(const char *path) {
    FILE *f = fopen(path, "w");
    if (!f) return -1;
    uint32_t x = 1;
    for (int i = 0; i < 20000; i++) {
        x = x * 1664525u + 1013904223u;
        fprintf(f, "%c%c%c%s", 'a' + (x >> 28), 'a' + (x >> 24) % 7, 'a' + (x >> 20) % 5,
                i % 11 ? " " : "\n");
    }
    return fclose(f);
}
