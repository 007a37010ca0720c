// Which calls the fast kernels take, and how they cut the queries into tiles. Host code.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernels.h"

namespace mrt::cuda {

constexpr int kFastPoints = 4;
constexpr int kFastLevels = 5;    // at most
constexpr int kFastThreads = 256;  // a block's, at most
constexpr int kTileSide = 8;       // of a tile of queries; the gathering kernels use 8 x 2 to 8 x 8

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
  return (g.dim == 16 || g.dim == 32 || g.dim == 64) && g.points == kFastPoints && g.levels <= kFastLevels && g.batch <= 65535 &&
         g.cells * g.heads * g.dim < kMost && g.queries * g.heads < kMost / 2 && g.batch * g.queries < kMost && in.point_step < kMost &&
         in.weight_step < kMost;
}

// In an encoder each cell is a query, in the same order, and looks around itself. Only speed depends on that: were these other queries,
// the tiles would still cover each of them once.
inline bool is_encoder(const Geometry& g) { return g.queries == g.cells; }

// The tiled sums keep a cell and one of 64 queries in 32 bits.
inline bool fits_tiles(const Geometry& g) { return is_encoder(g) && g.cells < (int64_t{1} << 26); }

inline int64_t count_tiles(const Geometry& g, int height) {
  int64_t count = 0;
  for (int64_t level = 0; level < g.levels; ++level) {
    count += ((g.width[level] + kTileSide - 1) / kTileSide) * static_cast<int64_t>((g.height[level] + height - 1) / height);
  }
  return count;
}

}  // namespace mrt::cuda
