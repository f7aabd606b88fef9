// Bytes that each of many accesses puts on each HBM channel. The meaning is kernbench/memory/channels.py's.
#include <algorithm>
#include <cstdint>

#include "export.h"

namespace {

// One level of spreading; parts 0 where there is none.
struct Axis {
  int64_t parts, copy, period, segment;

  bool shards() const { return parts > 0 && copy < 0; }
  int64_t part(int64_t offset) const {
    return copy >= 0 ? copy : std::min(offset % period / segment, parts - 1);
  }
  // Bytes from `offset` to the next place where part() may change.
  int64_t room(int64_t offset) const {
    const int64_t within = offset % period;
    return std::min(segment - within % segment, period - within);
  }
};

struct Map {
  int64_t cubes, channels, granule, modulo, base;
  Axis cube, pe;

  int64_t fold(int64_t granules, int64_t count) const {
    if (modulo || count == 1) return granules % count;
    int64_t place = 0;
    if ((count & (count - 1)) == 0) {
      int bits = 0;
      while ((int64_t{1} << bits) < count) ++bits;
      for (; granules; granules >>= bits) place ^= granules & (count - 1);
      return place;
    }
    for (; granules; granules /= count) place = (place + granules % count) % count;
    return place;
  }

  int64_t locate(int64_t address) const {
    int64_t granules = address / granule;
    if (cube.parts == 0 && pe.parts == 0) return fold(granules, cubes * channels);
    const int64_t offset = address - base;
    int64_t at;
    if (cube.parts == 0) {
      at = fold(granules, cubes);
      granules /= cubes;
    } else {
      at = cube.part(offset);
    }
    if (pe.parts == 0) return at * channels + fold(granules, channels);
    const int64_t share = pe.part(offset);
    const int64_t first = share * channels / pe.parts;
    const int64_t count = std::max<int64_t>((share + 1) * channels / pe.parts - first, 1);
    return at * channels + first + fold(granules, count);
  }

  void add(int64_t address, int64_t nbytes, int64_t* out) const {
    const int64_t end = address + nbytes;
    // Every aligned block of as many granules as channels touches each channel once.
    const bool even = cube.parts == 0 && pe.parts == 0;
    const int64_t block = cubes * channels * granule;
    while (address < end) {
      if (even && address % block == 0 && end - address >= block) {
        const int64_t blocks = (end - address) / block;
        for (int64_t c = 0; c < cubes * channels; ++c) out[c] += blocks * granule;
        address += blocks * block;
        continue;
      }
      int64_t piece = std::min(granule - address % granule, end - address);
      if (cube.shards()) piece = std::min(piece, cube.room(address - base));
      if (pe.shards()) piece = std::min(piece, pe.room(address - base));
      out[locate(address)] += piece;
      address += piece;
    }
  }
};

}  // namespace

// runs: ptr[accesses + 1], address[], nbytes[]; map: the 13 numbers of struct Map; out: zeros [accesses, cubes * channels].
KB_EXPORT void kb_bytes_on_channels(int64_t accesses, const int64_t* ptr, const int64_t* address, const int64_t* nbytes,
                                    const int64_t* map, int64_t* out) {
  const Map m{map[0], map[1], map[2], map[3], map[4], {map[5], map[6], map[7], map[8]}, {map[9], map[10], map[11], map[12]}};
  for (int64_t k = 0; k < accesses; ++k)
    for (int64_t r = ptr[k]; r < ptr[k + 1]; ++r) m.add(address[r], nbytes[r], out + k * m.cubes * m.channels);
}
