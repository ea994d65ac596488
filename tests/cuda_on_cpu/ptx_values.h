/* The arithmetic of PTX on values in slots of 64 bits: those of narrower types stand in the low
 * ones.
 */
#ifndef TP_EMU_PTX_VALUES_H
#define TP_EMU_PTX_VALUES_H
#include "ptx.h"

static inline int bits_of(ptx_type t) {
    if (t <= PTX_S8) return 8;
    if (t <= PTX_BF16) return 16;
    return t <= PTX_BF16X2 ? 32 : 64;
}
static inline bool is_signed(ptx_type t) {
    return t == PTX_S8 || t == PTX_S16 || t == PTX_S32 || t == PTX_S64;
}
static inline uint64_t cut(uint64_t x, int bits) {
    return bits == 64 ? x : x & (((uint64_t)1 << bits) - 1);
}
static inline int64_t extended(uint64_t x, int bits) {
    return (int64_t)(x << (64 - bits)) >> (64 - bits);
}
static inline float f32(uint64_t x) { return __uint_as_float((unsigned)x); }
static inline double f64(uint64_t x) { return __longlong_as_double((long long)x); }
static inline uint64_t of(float x) { return __float_as_uint(x); }
static inline uint64_t of(double x) { return (uint64_t)__double_as_longlong(x); }

/* NaN loses, and -0 is less than 0 (PTX ISA, "min", "max"). */
template <typename T> static T least(T a, T b) {
    if (a != a || b != b) return a != a ? b : a;
    return a < b || (a == b && __builtin_signbit(a)) ? a : b;
}
template <typename T> static bool compares(int how, T a, T b) {
    bool nan = a != a || b != b;
    if (how >= PTX_EQU && how <= PTX_GEU) {
        if (nan) return true;
        how -= PTX_EQU;
    }
    switch (how) {
    case PTX_EQ:
        return a == b;
    case PTX_NE:
        return !nan && a != b;
    case PTX_LT:
        return a < b;
    case PTX_LE:
        return a <= b;
    case PTX_GT:
        return a > b;
    case PTX_GE:
        return a >= b;
    default:
        return nan == (how == PTX_NAN);
    }
}

/* The hardware's estimate is off by one in the last place at most: here it is, at random by the
 * argument's bits. */
static inline float about_reciprocal(float x) {
    if (fabsf(x) < 0x1p-126f) x = copysignf(0, x);
    unsigned u = __float_as_uint(1 / x), dice = (__float_as_uint(x) * 2654435761u) >> 30;
    bool ordinary = (u & 0x7f800000) != 0 && (u & 0x7f800000) != 0x7f800000;
    if (!(u & 0x7f800000)) u &= 0x80000000u;
    return __uint_as_float(ordinary && (u & 0x7fffff) > 1 ? u + (dice == 1) - (dice == 2) : u);
}
static inline float power_of_two(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0 : y;
}

/* Of whole numbers: op a b. */
static inline uint64_t whole(ptx_op op, ptx_type t, uint64_t x, uint64_t y, uint64_t z) {
    int bits = bits_of(t);
    uint64_t a = cut(x, bits), b = cut(y, bits);
    int64_t sa = extended(x, bits), sb = extended(y, bits);
    bool sign = is_signed(t);
    switch (op) {
    case PTX_ADD:
        return cut(a + b, bits);
    case PTX_SUB:
        return cut(a - b, bits);
    case PTX_MUL_LO:
        return cut(a * b, bits);
    case PTX_MUL_HI:
        return sign ? cut((uint64_t)(sa * sb >> bits), bits) : a * b >> bits;
    case PTX_MUL_WIDE:
        return sign ? cut((uint64_t)(sa * sb), 2 * bits) : a * b;
    case PTX_MAD_LO:
        return cut(a * b + z, bits);
    case PTX_DIV:
    case PTX_REM:
        if (!b) return cut(~(uint64_t)0, bits);
        if (sign && sb == -1) return op == PTX_DIV ? cut(0 - a, bits) : 0;
        if (op == PTX_DIV) return sign ? cut((uint64_t)(sa / sb), bits) : a / b;
        return sign ? cut((uint64_t)(sa % sb), bits) : a % b;
    case PTX_MIN:
        return (sign ? sa < sb : a < b) ? a : b;
    case PTX_MAX:
        return (sign ? sa < sb : a < b) ? b : a;
    case PTX_NEG:
        return cut(0 - a, bits);
    case PTX_ABS:
        return sa < 0 ? cut(0 - a, bits) : a;
    case PTX_AND:
        return a & b;
    case PTX_OR:
        return a | b;
    case PTX_XOR:
        return a ^ b;
    case PTX_NOT:
        return t == PTX_PRED ? !x : cut(~a, bits);
    case PTX_SHL:
        return (uint32_t)y >= (unsigned)bits ? 0 : cut(a << (uint32_t)y, bits);
    case PTX_SHR: {
        unsigned by = (uint32_t)y < (unsigned)bits ? (uint32_t)y : (unsigned)bits;
        if (sign) return cut((uint64_t)(sa >> (by < 63 ? by : 63)), bits);
        return by == 64 ? 0 : a >> by;
    }
    default:
        return 0;
    }
}
template <typename T> static uint64_t fraction(ptx_op op, T a, T b, T c) {
    switch (op) {
    case PTX_ADD:
        return of(a + b);
    case PTX_SUB:
        return of(a - b);
    case PTX_MUL:
        return of(a * b);
    case PTX_FMA:
        return of(sizeof(T) == 4 ? (T)fmaf((float)a, (float)b, (float)c)
                                 : (T)fma((double)a, (double)b, (double)c));
    case PTX_DIV:
        return of(a / b);
    case PTX_MIN:
        return of(least(a, b));
    case PTX_MAX:
        return of(-least(-a, -b));
    case PTX_NEG:
        return of(-a);
    case PTX_ABS:
        return of(a < 0 || __builtin_signbit(a) ? -a : a);
    case PTX_SQRT:
        return of(sizeof(T) == 4 ? (T)sqrtf((float)a) : (T)sqrt((double)a));
    case PTX_RCP:
        return of(1 / a);
    default:
        return 0;
    }
}

static inline uint64_t converted(const ptx_ins *in, uint64_t x, uint64_t y) {
    int to = bits_of(in->type), from = bits_of(in->from);
    if (in->type == PTX_BF16X2)
        return __float2bfloat16_rn(f32(y)).bits | (uint64_t)__float2bfloat16_rn(f32(x)).bits << 16;
    if (in->type == PTX_BF16) return __float2bfloat16_rn(f32(x)).bits;
    if (in->type == PTX_F32) {
        if (in->from == PTX_BF16) return cut(x, 16) << 16;
        if (in->from == PTX_F64) return of((float)f64(x));
        return of(is_signed(in->from) ? (float)extended(x, from) : (float)cut(x, from));
    }
    if (in->type == PTX_F64) {
        if (in->from == PTX_F32) return of((double)f32(x));
        return of(is_signed(in->from) ? (double)extended(x, from) : (double)cut(x, from));
    }
    if (in->from == PTX_F64 ||
        in->from == PTX_F32) { /* towards zero, what is too large to the last */
        double d = in->from == PTX_F64 ? f64(x) : (double)f32(x);
        if (d != d) return in->from == PTX_F64 || to == 64 ? (uint64_t)1 << (to - 1) : 0;
        if (is_signed(in->type)) {
            double most = ldexp(1, to - 1);
            return cut(d >= most   ? ((uint64_t)1 << (to - 1)) - 1
                       : d < -most ? (uint64_t)1 << (to - 1)
                                   : (uint64_t)(int64_t)d,
                       to);
        }
        return d <= 0 ? 0 : d >= ldexp(1, to) ? cut(~(uint64_t)0, to) : (uint64_t)d;
    }
    uint64_t v = cut(is_signed(in->from) ? (uint64_t)extended(x, from) : cut(x, from), to);
    return is_signed(in->type) ? (uint64_t)extended(v, to) : v;
}
#endif
