// Which blocks of two buffers differ. The meaning is kernbench/weight_sync/blockdiff.py's.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "export.h"

namespace {

// Bytes that are compared at once before blocks are told apart: small enough that a second look hits the first cache.
constexpr int64_t kStride = 16 * 1024;

}  // namespace

// Writes runs of differing blocks to out[2 * capacity] as (first byte, bytes), beginning at byte *from (a multiple of
// `block`), and returns how many. *from ends at `size`, or earlier where `out` was full: call again.
KB_EXPORT int64_t kb_diff_blocks(const uint8_t* old_bytes, const uint8_t* new_bytes, int64_t size, int64_t block,
                                 int64_t* from, int64_t* out, int64_t capacity) {
  const int64_t stride = std::max<int64_t>(kStride / block, 1) * block;
  int64_t runs = 0, at = *from, end = -1;  // end: where the last run stops
  while (at < size) {
    const int64_t stop = std::min(at + stride, size);
    if (std::memcmp(old_bytes + at, new_bytes + at, stop - at) == 0) {
      at = stop;
      continue;
    }
    for (; at < stop; at = std::min(at + block, stop)) {
      const int64_t length = std::min(block, stop - at);
      if (std::memcmp(old_bytes + at, new_bytes + at, length) == 0) continue;
      if (at == end) {
        out[2 * runs - 1] += length;
      } else {
        if (runs == capacity) {
          *from = at;
          return runs;
        }
        out[2 * runs] = at;
        out[2 * runs + 1] = length;
        ++runs;
      }
      end = at + length;
    }
  }
  *from = size;
  return runs;
}
