// Which calls the fast kernels take, and how they cut the queries into tiles. Host code.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>

#include "kernels.h"

namespace mrt::cuda {

constexpr int kFastPoints = 4;
constexpr int kFastLevels = 5;    // at most
constexpr int kFastThreads = 256;  // a block's, at most
constexpr int kTileSide = 8;       // of a tile of queries; the gathering kernels use 8 x 2 to 8 x 8
constexpr int kUsualLevels = 4;    // have kernels of their own, whose loops over levels are unrolled

// Lanes read 16 bytes each (of points: two numbers) and count elements within an image, and cells together with 4 flags, in 32 bits.
template <typename V>
bool fits_fast(const Geometry& g, const Inputs<V, float>& in, std::initializer_list<const void*> others) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  // A slice of a larger tensor can begin anywhere.
  if (!aligned(in.value) || !aligned(in.points) || !aligned(in.references) || in.point_step % 2 != 0) return false;
  for (const void* pointer : others) {
    if (!aligned(pointer)) return false;
  }
  constexpr int64_t kMost = int64_t{1} << 31;
  return (g.dim == 16 || g.dim == 32 || g.dim == 64) && g.points == kFastPoints && g.levels <= kFastLevels && g.batch <= 65535 && g.heads <= 65535 &&
         g.cells * g.heads * g.dim < kMost && g.queries * g.heads < kMost / 2 && g.batch * g.queries < kMost && in.point_step < kMost &&
         in.weight_step < kMost;
}

// In an encoder each cell is a query, in the same order, and looks around itself. Only speed depends on that: were these other queries,
// the tiles would still cover each of them once.
inline bool is_encoder(const Geometry& g) { return g.queries == g.cells; }

// The tiled sums keep a cell and the place of one of 64 queries' gradients in 32 bits.
inline bool fits_tiles(const Geometry& g) { return is_encoder(g) && g.cells * g.dim < (int64_t{1} << 24); }

// What the fast kernels know of a call, in 32 bits, and the tiles of its queries: those of level l begin with first_tile[l] and have
// columns[l] to a row. A level that does not exist begins after all of them.
struct Layout {
  int32_t cells, queries, heads, levels, samples;
  int32_t height[kFastLevels], width[kFastLevels], start[kFastLevels];
  int32_t first_tile[kFastLevels], columns[kFastLevels];
  uint32_t reciprocal[kFastLevels];  // of columns, times 2^32
  int64_t tiles;
};

inline Layout layout(const Geometry& g, int tile_height) {
  Layout result{};
  result.cells = static_cast<int32_t>(g.cells), result.queries = static_cast<int32_t>(g.queries);
  result.heads = static_cast<int32_t>(g.heads), result.levels = static_cast<int32_t>(g.levels);
  result.samples = static_cast<int32_t>(g.samples);
  for (int level = 0; level < kFastLevels; ++level) {
    const bool exists = level < g.levels;
    result.first_tile[level] = exists ? static_cast<int32_t>(result.tiles) : std::numeric_limits<int32_t>::max();
    if (!exists) continue;
    result.height[level] = g.height[level], result.width[level] = g.width[level], result.start[level] = g.start[level];
    result.columns[level] = (g.width[level] - 1) / kTileSide + 1;
    result.reciprocal[level] = 0xffffffffu / static_cast<uint32_t>(result.columns[level]);
    result.tiles += result.columns[level] * static_cast<int64_t>((g.height[level] - 1) / tile_height + 1);
  }
  return result;
}

}  // namespace mrt::cuda
