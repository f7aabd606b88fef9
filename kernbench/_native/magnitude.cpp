// Floats that are infinite, NaN or too large: is there any, and did an operation make it? The counterparts, with equal
// results, are beyond() and makes() in kernbench/kernels/magnitude.py.

#include <algorithm>
#include <cstdint>

#include "export.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define KB_WIDER __attribute__((target("avx2")))
#define KB_INLINE inline __attribute__((always_inline))
#else
#define KB_INLINE inline
#endif

namespace {

// Without its sign bit a float of larger magnitude has the larger bits, and NaN the largest. Signed integers, because
// that is the comparison that vector units have.
template <class Bits>
constexpr Bits MAGNITUDE = Bits(~(Bits(1) << (sizeof(Bits) * 8 - 1)));
constexpr int32_t INFINITE = 0x7f800000;
constexpr int64_t BLOCK = 4096;  // elements between two looks at what was found
constexpr int MAX_RANK = 8;
constexpr int MAX_OPERANDS = 3;

enum Made : int32_t { MADE_NAN = 1, MADE_INF = 2 };

template <class Bits>
KB_INLINE bool beyond(const Bits* x, int64_t n, Bits most) {
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t stop = std::min(n, start + BLOCK);
        Bits found = 0;
        for (int64_t i = start; i < stop; ++i) found |= (x[i] & MAGNITUDE<Bits>) > most;
        if (found) return true;
    }
    return false;
}

// One row of results and the rows of OPERANDS operands.
template <int OPERANDS>
KB_INLINE int32_t made_in_row(const int32_t* x, const int32_t* const* operands, int64_t n) {
    const int32_t* a = operands[0];
    const int32_t* b = operands[1];
    const int32_t* c = operands[2];
    int32_t nan = 0, inf = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int32_t here = x[i] & MAGNITUDE<int32_t>;
        int32_t largest = 0;
        if (OPERANDS > 0) largest = std::max(largest, a[i] & MAGNITUDE<int32_t>);
        if (OPERANDS > 1) largest = std::max(largest, b[i] & MAGNITUDE<int32_t>);
        if (OPERANDS > 2) largest = std::max(largest, c[i] & MAGNITUDE<int32_t>);
        nan |= int32_t(here > INFINITE) & int32_t(largest <= INFINITE);
        inf |= int32_t(here == INFINITE) & int32_t(largest < INFINITE);
    }
    return (nan ? MADE_NAN : 0) | (inf ? MADE_INF : 0);
}

KB_INLINE int32_t made_in(const int32_t* x, const int32_t* const* operands, int count, int64_t n) {
    switch (count) {
        case 0: return made_in_row<0>(x, operands, n);
        case 1: return made_in_row<1>(x, operands, n);
        case 2: return made_in_row<2>(x, operands, n);
        default: return made_in_row<3>(x, operands, n);
    }
}

#ifdef KB_WIDER
KB_WIDER bool beyond_wider(const int32_t* x, int64_t n, int32_t most) { return beyond(x, n, most); }
KB_WIDER int32_t made_in_wider(const int32_t* x, const int32_t* const* operands, int count, int64_t n) {
    return made_in(x, operands, count, n);
}
const bool wider = __builtin_cpu_supports("avx2");
#endif

}  // namespace

// Whether any of n floats of 4 or 8 bytes has a magnitude whose bits are more than `most`.
KB_EXPORT int32_t kb_beyond(const void* x, int64_t n, int32_t bytes, int64_t most) {
    if (bytes == 8) return beyond(static_cast<const int64_t*>(x), n, most);
#ifdef KB_WIDER
    if (wider) return beyond_wider(static_cast<const int32_t*>(x), n, int32_t(most));
#endif
    return beyond(static_cast<const int32_t*>(x), n, int32_t(most));
}

// Whether results have a NaN where no operand has one (1), or an infinity where all operands are finite (2). All are
// float32. Element i of array k (0: the results, else operands[k - 1]) is sum over d of i[d] * strides[k * rank + d]
// elements from its start; along the last axis that is 1 for the results and 0 or 1 for operands. Returns -1 for what it
// does not know.
KB_EXPORT int32_t kb_made(int64_t rank, const int64_t* dims, int64_t count, const int32_t* const* arrays,
                          const int64_t* strides) {
    if (rank < 1 || rank > MAX_RANK || count < 1 || count > 1 + MAX_OPERANDS) return -1;
    const int64_t last = rank - 1;
    for (int64_t k = 0; k < count; ++k) {
        const int64_t step = strides[k * rank + last];
        if (step != 1 && (k == 0 || step != 0)) return -1;
    }
    for (int64_t d = 0; d < rank; ++d)
        if (dims[d] == 0) return 0;
    int32_t found = 0;
    int64_t i[MAX_RANK] = {};
    for (;;) {
        const int32_t* rows[MAX_OPERANDS] = {};
        int many = 0;
        int32_t largest = 0;  // of operands that are the same along the row
        const int32_t* x = nullptr;
        for (int64_t k = 0; k < count; ++k) {
            const int32_t* row = arrays[k];
            for (int64_t d = 0; d < last; ++d) row += i[d] * strides[k * rank + d];
            if (k == 0)
                x = row;
            else if (strides[k * rank + last])
                rows[many++] = row;
            else
                largest = std::max(largest, *row & MAGNITUDE<int32_t>);
        }
        if (largest <= INFINITE) {
            int32_t here;
#ifdef KB_WIDER
            if (wider)
                here = made_in_wider(x, rows, many, dims[last]);
            else
#endif
                here = made_in(x, rows, many, dims[last]);
            found |= largest < INFINITE ? here : here & MADE_NAN;
        }
        int64_t d = last - 1;
        for (; d >= 0 && ++i[d] >= dims[d]; --d) i[d] = 0;
        if (d < 0) return found;
    }
}
