// Narrow floats and tiles: casts between memory's types and float32, and strided loads and stores of many programs'
// tiles. Everything here has a numpy counterpart in kernbench/kernels/numerics.py with bit-equal results.

#include <cstdint>
#include <cstring>

#if defined(_WIN32)
#define KB_API extern "C" __declspec(dllexport)
#else
#define KB_API extern "C" __attribute__((visibility("default")))
#endif

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define KB_X86 1
#include <cpuid.h>
#include <immintrin.h>
#else
#define KB_X86 0
#endif

namespace {

// As kernbench.kernels.numerics numbers them; 8, 16, 32, 64 are plain copies of that many bits.
enum Kind : int32_t { F16 = 1, BF16 = 2, E4M3 = 3, E5M2 = 4, COPY8 = 8, COPY16 = 16, COPY32 = 32, COPY64 = 64 };

inline uint32_t bits_of(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}

inline float float_of(uint32_t u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

// A float of 1 sign, EXP exponent and MAN mantissa bits. INF: the top exponent means infinity and NaN, as in IEEE 754;
// otherwise (E4M3FN) only all ones is NaN and there is no infinity.
template <int EXP, int MAN, bool INF>
struct Small {
    static constexpr int bias = (1 << (EXP - 1)) - 1;
    static constexpr uint32_t top = (1u << (EXP + MAN)) - 1;  // all ones but the sign
    static constexpr uint32_t infinity = top & ~((1u << MAN) - 1);

    static uint32_t narrow(float x) {
        const uint32_t u = bits_of(x), sign = (u >> 31) << (EXP + MAN), magnitude = u & 0x7fffffffu;
        if (magnitude > 0x7f800000u) {
            const uint32_t payload = (magnitude >> (23 - MAN)) & ((1u << MAN) - 1);
            return sign | (INF ? infinity | (1u << (MAN - 1)) | payload : top);
        }
        if (magnitude >= uint32_t(128 - bias) << 23) {
            const uint32_t rounded = magnitude + ((1u << (22 - MAN)) - 1) + ((magnitude >> (23 - MAN)) & 1);
            const uint32_t result = (rounded >> (23 - MAN)) - (uint32_t(127 - bias) << MAN);
            if (result >= (INF ? infinity : top)) return sign | (INF ? infinity : top);
            return sign | result;
        }
        // Below the least normal number: adding a number whose last place is this type's rounds as it should.
        const uint32_t magic = uint32_t(127 - bias + 1 + 23 - MAN) << 23;
        return sign | (bits_of(float_of(magnitude) + float_of(magic)) - magic);
    }

    static float widen(uint32_t h) {
        const uint32_t sign = (h >> (EXP + MAN)) << 31, body = h & top;
        if (INF ? body >= infinity : body == top) {
            const uint32_t payload = INF ? (body & ((1u << MAN) - 1)) << (23 - MAN) : 0x400000u;
            return float_of(sign | 0x7f800000u | payload | (payload ? 0x400000u : 0));
        }
        if (body >> MAN) return float_of(sign | ((body << (23 - MAN)) + (uint32_t(127 - bias) << 23)));
        const float magnitude = float(body) * float_of(uint32_t(127 + 1 - bias - MAN) << 23);
        return float_of(sign | bits_of(magnitude));
    }
};

using Half = Small<5, 10, true>;

struct F16Codec {
    using Stored = uint16_t;
    static float widen(uint16_t h) { return Half::widen(h); }
    static uint16_t narrow(float x) { return uint16_t(Half::narrow(x)); }
};

struct BF16Codec {
    using Stored = uint16_t;
    static float widen(uint16_t h) { return float_of(uint32_t(h) << 16); }
    static uint16_t narrow(float x) {
        const uint32_t u = bits_of(x);
        const uint16_t rounded = uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
        const uint16_t nan = uint16_t(((u >> 16) & 0x8000u) | 0x7fc0u);
        return (u & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
    }
};

template <int EXP, int MAN, bool INF>
struct F8Codec {
    using Stored = uint8_t;
    struct Table {
        float value[256];
        Table() {
            for (uint32_t i = 0; i < 256; ++i) value[i] = Small<EXP, MAN, INF>::widen(i);
        }
    };
    static float widen(uint8_t h) {
        static const Table table;
        return table.value[h];
    }
    static uint8_t narrow(float x) { return uint8_t(Small<EXP, MAN, INF>::narrow(x)); }
};

template <class T>
struct CopyCodec {
    using Stored = T;
};

// -- contiguous runs ---------------------------------------------------------------------------------------------
template <class C>
inline void widen_run(const uint8_t* src, float* dst, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        typename C::Stored h;
        std::memcpy(&h, src + i * sizeof h, sizeof h);
        dst[i] = C::widen(h);
    }
}

template <class C>
inline void narrow_run(const float* src, uint8_t* dst, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const typename C::Stored h = C::narrow(src[i]);
        std::memcpy(dst + i * sizeof h, &h, sizeof h);
    }
}

template <class C>
inline void round_run(const float* src, float* dst, int64_t n) {
    for (int64_t i = 0; i < n; ++i) dst[i] = C::widen(C::narrow(src[i]));
}

#if KB_X86
bool cpu_has_f16c() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    return (c & bit_F16C) && __builtin_cpu_supports("avx2");
}
const bool has_f16c = cpu_has_f16c();
const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");

#define KB_AVX2 __attribute__((target("avx2,f16c")))
#define KB_AVX512 __attribute__((target("avx512f,avx512bw")))
constexpr __mmask16 ALL = 0xffff;

KB_AVX512 void widen_f16_512(const uint8_t* src, float* dst, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(dst + i, _mm512_maskz_cvtph_ps(ALL, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + 2 * i))));
    widen_run<F16Codec>(src + 2 * i, dst + i, n - i);
}

KB_AVX512 void narrow_f16_512(const float* src, uint8_t* dst, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + 2 * i), _mm512_maskz_cvtps_ph(ALL, _mm512_loadu_ps(src + i), 0));
    narrow_run<F16Codec>(src + i, dst + 2 * i, n - i);
}

KB_AVX512 void round_f16_512(const float* src, float* dst, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(dst + i, _mm512_maskz_cvtph_ps(ALL, _mm512_maskz_cvtps_ph(ALL, _mm512_loadu_ps(src + i), 0)));
    round_run<F16Codec>(src + i, dst + i, n - i);
}

KB_AVX2 void widen_f16_256(const uint8_t* src, float* dst, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + 2 * i))));
    widen_run<F16Codec>(src + 2 * i, dst + i, n - i);
}

KB_AVX2 void narrow_f16_256(const float* src, uint8_t* dst, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 2 * i), _mm256_cvtps_ph(_mm256_loadu_ps(src + i), 0));
    narrow_run<F16Codec>(src + i, dst + 2 * i, n - i);
}

KB_AVX2 void round_f16_256(const float* src, float* dst, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm256_cvtps_ph(_mm256_loadu_ps(src + i), 0)));
    round_run<F16Codec>(src + i, dst + i, n - i);
}

KB_AVX2 __m256i bf16_bits(__m256i u) {
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i sign = _mm256_and_si256(u, _mm256_set1_epi32(int(0x80000000u)));
    const __m256i nan = _mm256_or_si256(sign, _mm256_set1_epi32(0x7fc00000));
    const __m256i magnitude = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
    const __m256i is_nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
    return _mm256_and_si256(_mm256_blendv_epi8(rounded, nan, is_nan), _mm256_set1_epi32(int(0xffff0000u)));
}

KB_AVX2 void round_bf16_256(const float* src, float* dst, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i), bf16_bits(u));
    }
    round_run<BF16Codec>(src + i, dst + i, n - i);
}

KB_AVX2 void narrow_bf16_256(const float* src, uint8_t* dst, int64_t n) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256i a = bf16_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i)));
        const __m256i b = bf16_bits(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i + 8)));
        const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + 2 * i), _mm256_permute4x64_epi64(packed, 0xd8));
    }
    narrow_run<BF16Codec>(src + i, dst + 2 * i, n - i);
}

KB_AVX2 void widen_bf16_256(const uint8_t* src, float* dst, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + 2 * i));
        const __m256i u = _mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i), u);
    }
    widen_run<BF16Codec>(src + 2 * i, dst + i, n - i);
}
#endif

template <class C>
struct Run {
    static void widen(const uint8_t* src, float* dst, int64_t n) { widen_run<C>(src, dst, n); }
    static void narrow(const float* src, uint8_t* dst, int64_t n) { narrow_run<C>(src, dst, n); }
    static void round(const float* src, float* dst, int64_t n) { round_run<C>(src, dst, n); }
};

#if KB_X86
template <>
struct Run<F16Codec> {
    static void widen(const uint8_t* src, float* dst, int64_t n) {
        if (has_avx512) return widen_f16_512(src, dst, n);
        if (has_f16c) return widen_f16_256(src, dst, n);
        widen_run<F16Codec>(src, dst, n);
    }
    static void narrow(const float* src, uint8_t* dst, int64_t n) {
        if (has_avx512) return narrow_f16_512(src, dst, n);
        if (has_f16c) return narrow_f16_256(src, dst, n);
        narrow_run<F16Codec>(src, dst, n);
    }
    static void round(const float* src, float* dst, int64_t n) {
        if (has_avx512) return round_f16_512(src, dst, n);
        if (has_f16c) return round_f16_256(src, dst, n);
        round_run<F16Codec>(src, dst, n);
    }
};

template <>
struct Run<BF16Codec> {
    static void widen(const uint8_t* src, float* dst, int64_t n) {
        if (has_f16c) return widen_bf16_256(src, dst, n);
        widen_run<BF16Codec>(src, dst, n);
    }
    static void narrow(const float* src, uint8_t* dst, int64_t n) {
        if (has_f16c) return narrow_bf16_256(src, dst, n);
        narrow_run<BF16Codec>(src, dst, n);
    }
    static void round(const float* src, float* dst, int64_t n) {
        if (has_f16c) return round_bf16_256(src, dst, n);
        round_run<BF16Codec>(src, dst, n);
    }
};
#endif

// What a codec's values are in arithmetic, and how one or many are read and written.
template <class C>
struct Element {
    using Value = float;
    static void load(const uint8_t* at, Value* out) {
        typename C::Stored h;
        std::memcpy(&h, at, sizeof h);
        *out = C::widen(h);
    }
    static void store(Value x, uint8_t* at) {
        const typename C::Stored h = C::narrow(x);
        std::memcpy(at, &h, sizeof h);
    }
    static void load_run(const uint8_t* src, Value* dst, int64_t n) { Run<C>::widen(src, dst, n); }
    static void store_run(const Value* src, uint8_t* dst, int64_t n) { Run<C>::narrow(src, dst, n); }
};

template <class T>
struct Element<CopyCodec<T>> {
    using Value = T;
    static void load(const uint8_t* at, Value* out) { std::memcpy(out, at, sizeof(T)); }
    static void store(Value x, uint8_t* at) { std::memcpy(at, &x, sizeof(T)); }
    static void load_run(const uint8_t* src, Value* dst, int64_t n) { std::memcpy(dst, src, n * sizeof(T)); }
    static void store_run(const Value* src, uint8_t* dst, int64_t n) { std::memcpy(dst, src, n * sizeof(T)); }
};

constexpr int MAX_RANK = 8;

// Tiles of P programs. Element i of program p is at base[p] + sum over d of offset_d[p or 0][i[d]] bytes, for the i with
// lo[p][d] <= i[d] < hi[p][d] where the mask, if there is one, holds. Strides count elements; 0 repeats an axis.
struct Tiles {
    int64_t programs, rank;
    const int64_t *dims, *base;
    const int64_t* const* offsets;
    const int64_t* offset_rows;  // 1: each program has its own offsets along this axis
    const int64_t* contiguous;   // 1: the axis steps by one element
    const int64_t *lo, *hi;      // [programs][rank]
    const uint8_t* mask;
    const int64_t* mask_strides;   // [1 + rank]
    const int64_t* value_strides;  // [1 + rank]
};

template <class Visit>
void for_rows(const Tiles& t, const Visit& visit) {
    const int64_t last = t.rank - 1;
    for (int64_t p = 0; p < t.programs; ++p) {
        const int64_t *lo = t.lo + p * t.rank, *hi = t.hi + p * t.rank;
        const int64_t* offset[MAX_RANK];
        int64_t i[MAX_RANK] = {};
        bool empty = false;
        for (int64_t d = 0; d < t.rank; ++d) {
            offset[d] = t.offsets[d] + (t.offset_rows[d] ? p * t.dims[d] : 0);
            i[d] = lo[d];
            empty |= lo[d] >= hi[d];
        }
        if (empty) continue;
        for (;;) {
            int64_t at = t.base[p], value = p * t.value_strides[0], mask = t.mask ? p * t.mask_strides[0] : 0;
            for (int64_t d = 0; d < last; ++d) {
                at += offset[d][i[d]];
                value += i[d] * t.value_strides[1 + d];
                if (t.mask) mask += i[d] * t.mask_strides[1 + d];
            }
            visit(at, offset[last], lo[last], hi[last], value, mask);
            int64_t d = last - 1;
            for (; d >= 0 && ++i[d] >= hi[d]; --d) i[d] = lo[d];
            if (d < 0) break;
        }
    }
}

template <class C>
void load_tiles(const Tiles& t, const uint8_t* memory, void* values) {
    using E = Element<C>;
    auto* out = static_cast<typename E::Value*>(values);
    const int64_t last = t.rank - 1, step = t.value_strides[t.rank];
    const int64_t mask_step = t.mask ? t.mask_strides[t.rank] : 0;
    for_rows(t, [&](int64_t at, const int64_t* offset, int64_t lo, int64_t hi, int64_t value, int64_t mask) {
        if (!t.mask && t.contiguous[last] && step == 1) {
            E::load_run(memory + at + offset[lo], out + value + lo, hi - lo);
            return;
        }
        for (int64_t i = lo; i < hi; ++i)
            if (!t.mask || t.mask[mask + i * mask_step]) E::load(memory + at + offset[i], out + value + i * step);
    });
}

template <class C>
void store_tiles(const Tiles& t, uint8_t* memory, const void* values) {
    using E = Element<C>;
    auto* in = static_cast<const typename E::Value*>(values);
    const int64_t last = t.rank - 1, step = t.value_strides[t.rank];
    const int64_t mask_step = t.mask ? t.mask_strides[t.rank] : 0;
    for_rows(t, [&](int64_t at, const int64_t* offset, int64_t lo, int64_t hi, int64_t value, int64_t mask) {
        if (!t.mask && t.contiguous[last] && step == 1) {
            E::store_run(in + value + lo, memory + at + offset[lo], hi - lo);
            return;
        }
        for (int64_t i = lo; i < hi; ++i)
            if (!t.mask || t.mask[mask + i * mask_step]) E::store(in[value + i * step], memory + at + offset[i]);
    });
}

}  // namespace

// float32 <-> a narrow float. from or to is 0 for float32. Returns 0 when done, 1 for kinds it does not know.
KB_API int32_t kb_convert(int32_t from, int32_t to, const void* src, void* dst, int64_t n) {
    auto* bytes = static_cast<const uint8_t*>(src);
    if (to == 0) {
        auto* out = static_cast<float*>(dst);
        switch (from) {
            case F16: Run<F16Codec>::widen(bytes, out, n); return 0;
            case BF16: Run<BF16Codec>::widen(bytes, out, n); return 0;
            case E4M3: Run<F8Codec<4, 3, false>>::widen(bytes, out, n); return 0;
            case E5M2: Run<F8Codec<5, 2, true>>::widen(bytes, out, n); return 0;
            default: return 1;
        }
    }
    auto* in = static_cast<const float*>(src);
    auto* out = static_cast<uint8_t*>(dst);
    switch (to) {
        case F16: Run<F16Codec>::narrow(in, out, n); return 0;
        case BF16: Run<BF16Codec>::narrow(in, out, n); return 0;
        case E4M3: Run<F8Codec<4, 3, false>>::narrow(in, out, n); return 0;
        case E5M2: Run<F8Codec<5, 2, true>>::narrow(in, out, n); return 0;
        default: return 1;
    }
}

// Rounds float32 values to a narrow float's precision and range; src may be dst.
KB_API int32_t kb_round(int32_t kind, const float* src, float* dst, int64_t n) {
    switch (kind) {
        case F16: Run<F16Codec>::round(src, dst, n); return 0;
        case BF16: Run<BF16Codec>::round(src, dst, n); return 0;
        case E4M3: Run<F8Codec<4, 3, false>>::round(src, dst, n); return 0;
        case E5M2: Run<F8Codec<5, 2, true>>::round(src, dst, n); return 0;
        default: return 1;
    }
}

// Moves tiles between memory and values; see struct Tiles. store: 0 reads memory, 1 writes it.
KB_API int32_t kb_tiles(int32_t store, int32_t kind, uint8_t* memory, void* values, int64_t programs, int64_t rank,
                        const int64_t* dims, const int64_t* base, const int64_t* const* offsets,
                        const int64_t* offset_rows, const int64_t* contiguous, const int64_t* lo, const int64_t* hi,
                        const uint8_t* mask, const int64_t* mask_strides, const int64_t* value_strides) {
    if (rank < 1 || rank > MAX_RANK) return 1;
    const Tiles t{programs, rank, dims, base, offsets, offset_rows, contiguous, lo, hi, mask, mask_strides, value_strides};
#define KB_CASE(KIND, CODEC)                     \
    case KIND:                                   \
        if (store)                               \
            store_tiles<CODEC>(t, memory, values); \
        else                                     \
            load_tiles<CODEC>(t, memory, values);  \
        return 0;
    using F8E4 = F8Codec<4, 3, false>;
    using F8E5 = F8Codec<5, 2, true>;
    switch (kind) {
        KB_CASE(F16, F16Codec)
        KB_CASE(BF16, BF16Codec)
        KB_CASE(E4M3, F8E4)
        KB_CASE(E5M2, F8E5)
        KB_CASE(COPY8, CopyCodec<uint8_t>)
        KB_CASE(COPY16, CopyCodec<uint16_t>)
        KB_CASE(COPY32, CopyCodec<uint32_t>)
        KB_CASE(COPY64, CopyCodec<uint64_t>)
        default: return 1;
    }
#undef KB_CASE
}
