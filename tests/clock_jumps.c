/* Preloaded by tests/hostile.sh: the time of day leaps forwards and backwards by hours with every
 * look at it, as under a bad time server or an impatient administrator. The monotonic clock, which
 * POSIX forbids to go back, loses an hour now and then, as after a pause of a virtual machine. */
#define _GNU_SOURCE /* RTLD_NEXT */
#include <dlfcn.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

enum { HOUR = 3600, MONOTONIC_EVERY = 2000 };

typedef int (*gettime_fn)(clockid_t, struct timespec *);

int clock_gettime(clockid_t which, struct timespec *t) {
    static atomic_uint looks, steady;
    gettime_fn real;
    void *found = dlsym(RTLD_NEXT, "clock_gettime");
    memcpy(&real, &found, sizeof real); /* ISO C converts no object pointer into a function's */
    int bad = real(which, t);
    if (which == CLOCK_REALTIME)
        t->tv_sec += (atomic_fetch_add(&looks, 1) % 2 ? 5 : -7) * HOUR;
    else if (which == CLOCK_MONOTONIC)
        t->tv_sec += atomic_fetch_add(&steady, 1) / MONOTONIC_EVERY * HOUR;
    return bad;
}

time_t time(time_t *out) {
    struct timespec t = {0};
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec t = {0};
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    *out = (struct timeval){t.tv_sec, t.tv_nsec / 1000};
    return 0;
}
