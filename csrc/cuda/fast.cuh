// What the fast forward and backward share: which item a thread serves, and the item's sampling points.
//
// An item (a head of a query) has kLanes neighbouring lanes, each holding some channels. Its points are prepared once, kLanes of them in a
// round, one by each lane, and handed round by shuffle when their turn comes.
#pragma once

#include "fast.h"
#include "launch.h"
#include "vectors.cuh"

namespace mrt::cuda {

struct Item {
  int image, query, head;
  bool exists;  // else one of the same tile that does, for lanes that must go along
};

struct Tile {  // of queries that are cells of a level
  int level, x, y;
};

__device__ __forceinline__ Tile find_tile(const Layout& g, int index, int height) {
  int level = 0;
#pragma unroll
  for (int i = 1; i < kFastLevels; ++i) level += index >= g.first_tile[i] ? 1 : 0;
  const unsigned columns = static_cast<unsigned>(g.columns[level]), own = static_cast<unsigned>(index - g.first_tile[level]);
  unsigned row = __umulhi(own, g.reciprocal[level]), column = own - row * columns;  // row may be one too few
  if (column >= columns) ++row, column -= columns;
  return {level, static_cast<int>(column) * kTileSide, static_cast<int>(row) * height};
}

// Grids: x counts tiles or (decoder) queries and heads; y counts images; z, with tiles, heads.
// In an encoder a block is one head of a tile of queries, for these read the same cells, which then come from the L1 cache.
__device__ __forceinline__ Item find_item(const Layout& g, bool tiled, int index, int count) {
  const int block = static_cast<int>(blockIdx.x), image = static_cast<int>(blockIdx.y);
  if (tiled) {
    const Tile tile = find_tile(g, block, count / kTileSide);
    const int x = tile.x + index % kTileSide, y = tile.y + index / kTileSide, width = g.width[tile.level];
    const bool exists = x < width && y < g.height[tile.level];
    return {image, g.start[tile.level] + (exists ? y * width + x : tile.y * width + tile.x), static_cast<int>(blockIdx.z), exists};
  }
  const unsigned last = static_cast<unsigned>(g.queries * g.heads - 1), wanted = static_cast<unsigned>(block * count + index);
  const unsigned row = wanted < last ? wanted : last, heads = static_cast<unsigned>(g.heads);
  return {image, static_cast<int>(row / heads), static_cast<int>(row % heads), wanted <= last};
}

inline dim3 item_blocks(const Geometry& g, const Layout& layout, bool tiled, int items) {
  if (tiled) return dim3(static_cast<unsigned>(layout.tiles), static_cast<unsigned>(g.batch), static_cast<unsigned>(g.heads));
  return dim3(static_cast<unsigned>((g.queries * g.heads + items - 1) / items), static_cast<unsigned>(g.batch));
}

// Where a point lies: the cell of its upper left corner, which may be outside, and how far it is from there.
struct Place {
  int x, y;
  float dx, dy;
  bool somewhere;  // else no corner is in the map, and the rest is 0
};

__device__ __forceinline__ Place find_place(float x, float y, int width, int height) {
  // NaN fails every comparison; so does a point a cell or more outside, where no corner is in the map.
  if (!(x > -1.f && x < static_cast<float>(width) && y > -1.f && y < static_cast<float>(height))) return {0, 0, 0.f, 0.f, false};
  const float left = floorf(x), upper = floorf(y);
  return {static_cast<int>(left), static_cast<int>(upper), x - left, y - upper, true};
}

// Which columns and rows of a point's corners are in the map.
struct Inside {
  bool left, right, upper, lower;
};

__device__ __forceinline__ Inside find_inside(const Place& p, int width, int height) {
  return {p.somewhere && p.x >= 0, p.somewhere && p.x + 1 < width, p.somewhere && p.y >= 0, p.somewhere && p.y + 1 < height};
}

// What one point is computed from, as read.
struct Sample {
  float2 point, centre;  // centre: the reference point
};

// One lane's share of an item's points. Round r is points r * kLanes to (r + 1) * kLanes - 1, one per lane.
// kLevels: how many levels there are, or 0: as many as the call says.
template <typename V, int kLanes, int kLevels>
class PointReader {
 public:
  static constexpr int kMostLevels = kLevels != 0 ? kLevels : kFastLevels;
  static constexpr int kMostRounds = (kFastPoints * kMostLevels + kLanes - 1) / kLanes;
  static constexpr int kRoundLevels = kLanes / kFastPoints;
  static_assert(kLanes % kFastPoints == 0);

  // A head of query `row` of (N, Q). The two numbers from which it computes where everything is wait in shared memory, where no other
  // thread reads them: with them, or what follows from them, in registers through a loop, the kernels spill.
  __device__ __forceinline__ PointReader(const Layout& g, const Inputs<V, float>& in, int row, int head, int lane, bool exists, int2* own)
      : g_(g), in_(in), own_(own + threadIdx.x) {
    *own_ = {row, (head * samples(g) + lane) | (exists ? 0 : kGoesAlong)};
  }
  __device__ __forceinline__ int row() const { return own_->x; }
  __device__ __forceinline__ bool exists() const { return (own_->y & kGoesAlong) == 0; }  // else the lane only goes along

  __device__ __forceinline__ bool fused() const { return in_.references != nullptr; }
  __device__ __forceinline__ int levels() const { return kLevels != 0 ? kLevels : g_.levels; }
  __device__ __forceinline__ int rounds() const { return kLevels != 0 ? kMostRounds : (samples(g_) + kLanes - 1) / kLanes; }
  __device__ __forceinline__ int index(int round) const { return round * kLanes + static_cast<int>(threadIdx.x) % kLanes; }
  __device__ __forceinline__ int64_t offset(int round) const { return at(g_.heads * samples(g_), round); }  // in (N, Q, M, K)
  __device__ __forceinline__ bool has(int round) const {
    return (kLevels != 0 && kLevels * kFastPoints % kLanes == 0) || index(round) < samples(g_);
  }
  __device__ __forceinline__ int level(int round) const { return index(round) / kFastPoints; }

  __device__ __forceinline__ Sample sample(int round) const {
    Sample s{{0.f, 0.f}, {0.f, 0.f}};
    if (!has(round)) return s;
    s.point = read_pair(in_.points, in_.storage, at(static_cast<int>(in_.point_step >> 1), round));
    if (fused()) {
      s.centre = __ldg(reinterpret_cast<const float2*>(in_.references) + static_cast<int64_t>(row()) * levels() + level(round));
    }
    return s;
  }

  // The weights of the lane's points, by round, into shared memory, where no other thread reads them: there are too many for registers.
  __device__ __forceinline__ void read_weights(float (*weights)[kFastThreads]) const {
    float x[kMostRounds];
#pragma unroll
    for (int round = 0; round < kMostRounds; ++round) x[round] = has(round) ? logit(round) : fused() ? -INFINITY : 0.f;
    if (fused()) {  // the softmax, over the item's lanes
      float largest = x[0], total = 0.f;
#pragma unroll
      for (int round = 1; round < kMostRounds; ++round) largest = fmaxf(largest, x[round]);
      largest = max_over_lanes<kLanes>(largest);
#pragma unroll
      for (int round = 0; round < kMostRounds; ++round) {
        x[round] = exponential(x[round] - largest);
        total += x[round];
      }
      const float scale = __fdividef(1.f, sum_over_lanes<kLanes>(total));
#pragma unroll
      for (int round = 0; round < kMostRounds; ++round) x[round] *= scale;
    }
#pragma unroll
    for (int round = 0; round < kMostRounds; ++round) weights[round][threadIdx.x] = x[round];
  }

  // In cells of the level, 0 = the centre of the first cell.
  __device__ __forceinline__ Place place(const Sample& s, int round) const {
    if (!exists() || !has(round)) return {0, 0, 0.f, 0.f, false};
    const int level = this->level(round), width = g_.width[level], height = g_.height[level];
    const float w = static_cast<float>(width), h = static_cast<float>(height);
    const float x = fused() ? s.centre.x * w - 0.5f + s.point.x : s.point.x * w - 0.5f;
    const float y = fused() ? s.centre.y * h - 0.5f + s.point.y : s.point.y * h - 0.5f;
    return find_place(x, y, width, height);
  }

 private:
  static constexpr int kGoesAlong = 1 << 30;
  static __device__ __forceinline__ int samples(const Layout& g) { return kLevels != 0 ? kLevels * kFastPoints : g.samples; }
  // Where the lane's point of this round is, if queries are `step` points apart. fits_fast() lets no wider steps through than 32 bits hold.
  __device__ __forceinline__ int64_t at(int step, int round) const {
    return static_cast<int64_t>(row()) * step + (own_->y & ~kGoesAlong) + round * kLanes;
  }
  __device__ __forceinline__ float logit(int round) const {
    return read_number(in_.weights, in_.storage, at(static_cast<int>(in_.weight_step), round));
  }

  const Layout& g_;
  const Inputs<V, float>& in_;
  int2* const own_;  // the row, and the lane's first point among the query's, with kGoesAlong
};

// Offsets of a point's corners (upper left, upper right, lower left, lower right) within an image, if neighbouring cells are `step` apart.
// Of a corner outside it is that of its neighbour inside: it can be read, and a NaN there is one that the point touches anyway.
__device__ __forceinline__ uint4 find_corners(const Place& p, const Inside& inside, unsigned step, int start, int width) {
  const int x = p.x < 0 ? 0 : p.x, y = p.y < 0 ? 0 : p.y;
  const unsigned first = static_cast<unsigned>(start + y * width + x) * step;
  const unsigned right = inside.left && inside.right ? step : 0u;
  const unsigned down = inside.upper && inside.lower ? step * static_cast<unsigned>(width) : 0u;
  return {first, first + right, first + down, first + down + right};
}
constexpr unsigned kOff = 1u << 31;  // set in an offset: what it leads to counts for nothing. fits_fast() leaves this bit free.

// Calls body with the number of channels as a constant. fits_fast() lets no other through.
template <typename Body>
cudaError_t with_dim(int64_t dim, const Body& body) {
  switch (dim) {
    case 16: return body(Number<16>{});
    case 32: return body(Number<32>{});
    default: return body(Number<64>{});
  }
}

// The same with the number of levels as a constant, too, or 0.
template <typename Body>
cudaError_t with_dim_and_levels(const Geometry& g, const Body& body) {
  return with_dim(g.dim, [&](auto dim) { return g.levels == kUsualLevels ? body(dim, Number<kUsualLevels>{}) : body(dim, Number<0>{}); });
}

}  // namespace mrt::cuda
