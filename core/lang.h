/* Where languages and linkers differ: lists in a call, checked formats, what may be absent. */
#ifndef TP_LANG_H
#define TP_LANG_H
#include <stddef.h>
#include <stdint.h>
#if defined(__GNUC__)
#define TP_PRINTF(a, b) __attribute__((format(printf, a, b)))
#else
#define TP_PRINTF(a, b)
#endif
/* What has the address NULL in a program that is linked without CUDA. A library that is built with
 * it asks for it in earnest: a weak name draws nothing out of an archive. */
#if defined(TAPIR_CUDA)
#define TP_MAYBE_LINKED
#else
#define TP_MAYBE_LINKED __attribute__((weak))
#endif
/* TP_LIST(type, a, b, …): two arguments of a call, the number of values and a pointer to them. They
 * live until the call's full expression ends, in C++, and until the block does, in C. */
#ifdef __cplusplus
#include <initializer_list>
#define TP_LIST(type, ...)                                                                         \
    (int)std::initializer_list<type>{__VA_ARGS__}.size(),                                          \
        std::initializer_list<type>{__VA_ARGS__}.begin()
#else
#define TP_LIST(type, ...)                                                                         \
    (int)(sizeof((type[]){__VA_ARGS__}) / sizeof(type)), (type[]) { __VA_ARGS__ }
#endif
#define TP_SHAPE(...) TP_LIST(int64_t, __VA_ARGS__) /* tp_tensor_new(c, TP_F32, TP_SHAPE(2, 3)) */
#endif
