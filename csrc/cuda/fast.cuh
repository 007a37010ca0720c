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

__device__ __forceinline__ Tile find_tile(const Geometry& g, int index, int height) {
  for (int level = 0;; ++level) {
    const int columns = (g.width[level] + kTileSide - 1) / kTileSide;
    const int count = columns * ((g.height[level] + height - 1) / height);
    if (index < count || level + 1 == g.levels) return {level, index % columns * kTileSide, index / columns * height};
    index -= count;
  }
}

// Grids: x counts tiles and heads, or (decoder) queries and heads; y counts images.
// In an encoder a block is one head of a tile of queries, for these read the same cells, which then come from the L1 cache.
__device__ __forceinline__ Item find_item(const Geometry& g, bool tiled, int index, int count) {
  const int heads = static_cast<int>(g.heads), block = static_cast<int>(blockIdx.x), image = static_cast<int>(blockIdx.y);
  if (tiled) {
    const Tile tile = find_tile(g, block / heads, count / kTileSide);
    const int x = tile.x + index % kTileSide, y = tile.y + index / kTileSide, width = g.width[tile.level];
    const bool exists = x < width && y < g.height[tile.level];
    return {image, g.start[tile.level] + (exists ? y * width + x : tile.y * width + tile.x), block % heads, exists};
  }
  const int last = static_cast<int>(g.queries) * heads - 1, wanted = block * count + index;
  const int row = wanted < last ? wanted : last;
  return {image, row / heads, row % heads, wanted <= last};
}

inline dim3 item_blocks(const Geometry& g, bool tiled, int items) {
  const int64_t blocks = tiled ? count_tiles(g, items / kTileSide) * g.heads : (g.queries * g.heads + items - 1) / items;
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(g.batch));
}

// Where a point lies. `packed` holds the cell of its first corner that is inside the map, and which corners are; 0: the point is nowhere.
constexpr unsigned kLeft = 1u << 28, kRight = 1u << 29, kUpper = 1u << 30, kLower = 1u << 31, kCell = kLeft - 1;
constexpr unsigned kBothColumns = kLeft | kRight, kBothRows = kUpper | kLower;

struct Place {
  unsigned packed;
  float dx, dy;  // from the upper left corner, which may be outside
};

__device__ __forceinline__ Place find_place(float x, float y, int width, int height, int start) {
  // NaN fails every comparison; so does a point a cell or more outside, where no corner is in the map.
  if (!(x > -1.f && x < static_cast<float>(width) && y > -1.f && y < static_cast<float>(height))) return {0u, 0.f, 0.f};
  const float left = floorf(x), upper = floorf(y);
  const int x0 = static_cast<int>(left), y0 = static_cast<int>(upper);
  unsigned packed = static_cast<unsigned>(start + (y0 < 0 ? 0 : y0) * width + (x0 < 0 ? 0 : x0));
  packed |= (x0 >= 0 ? kLeft : 0u) | (x0 + 1 < width ? kRight : 0u) | (y0 >= 0 ? kUpper : 0u) | (y0 + 1 < height ? kLower : 0u);
  return {packed, x - left, y - upper};
}

// What one point is computed from, as read.
struct Sample {
  float2 point, centre;  // centre: the reference point
  float weight;          // a logit, if fused
};

// The same number, unknown to the compiler: what follows from it is computed again rather than kept in registers through a loop.
__device__ __forceinline__ int anew(int x) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// One lane's share of an item's points. Round r is points r * kLanes to (r + 1) * kLanes - 1, one per lane.
template <typename V, int kLanes>
class PointReader {
 public:
  static constexpr int kMostRounds = (kFastPoints * kFastLevels + kLanes - 1) / kLanes;
  static constexpr int kRoundLevels = kLanes / kFastPoints;
  static_assert(kLanes % kFastPoints == 0);

  // A head of query `row` of (N, Q). It keeps two numbers, and computes from them where everything is: fewer registers.
  __device__ __forceinline__ PointReader(const Geometry& g, const Inputs<V, float>& in, int row, int head, int lane)
      : samples_(static_cast<int>(g.samples)), lane_(lane), row_(row), first_(head * samples_ + lane), g_(g), in_(in) {}

  __device__ __forceinline__ bool fused() const { return in_.references != nullptr; }
  __device__ __forceinline__ int rounds() const { return (samples_ + kLanes - 1) / kLanes; }
  __device__ __forceinline__ int index(int round) const { return round * kLanes + lane_; }
  __device__ __forceinline__ int64_t offset(int round) const { return at(g_.heads * g_.samples, round); }  // in (N, Q, M, K)
  __device__ __forceinline__ bool has(int round) const { return index(round) < samples_; }
  __device__ __forceinline__ int level(int round) const { return index(round) / kFastPoints; }

  __device__ __forceinline__ Sample sample(int round) const {
    Sample s{{0.f, 0.f}, {0.f, 0.f}, 0.f};
    if (!has(round)) return s;
    s.point = read_pair(in_.points, in_.storage, at(in_.point_step >> 1, round));
    s.weight = logit(round);
    if (fused()) {
      s.centre = __ldg(reinterpret_cast<const float2*>(in_.references) + static_cast<int64_t>(anew(row_)) * static_cast<int>(g_.levels) + level(round));
    }
    return s;
  }

  // Before the first weight(): the logits' maximum and the sum of their exponentials, over the item's lanes.
  __device__ __forceinline__ void softmax() {
    if (!fused()) return;
    float logits[kMostRounds], total = 0.f;
#pragma unroll
    for (int round = 0; round < kMostRounds; ++round) logits[round] = has(round) ? logit(round) : -INFINITY;
    largest_ = logits[0];
#pragma unroll
    for (int round = 1; round < kMostRounds; ++round) largest_ = fmaxf(largest_, logits[round]);
    largest_ = max_over_lanes<kLanes>(largest_);
#pragma unroll
    for (int round = 0; round < kMostRounds; ++round) total += exponential(logits[round] - largest_);
    scale_ = 1.f / sum_over_lanes<kLanes>(total);
  }
  __device__ __forceinline__ float weight(const Sample& s) const { return fused() ? exponential(s.weight - largest_) * scale_ : s.weight; }

  // In cells of the level, 0 = the centre of the first cell.
  __device__ __forceinline__ Place place(const Geometry& g, const Sample& s, int round) const {
    if (!has(round)) return {0u, 0.f, 0.f};
    const int level = this->level(round), width = g.width[level], height = g.height[level];
    const float w = static_cast<float>(width), h = static_cast<float>(height);
    const float x = fused() ? s.centre.x * w - 0.5f + s.point.x : s.point.x * w - 0.5f;
    const float y = fused() ? s.centre.y * h - 0.5f + s.point.y : s.point.y * h - 0.5f;
    return find_place(x, y, width, height, g.start[level]);
  }

 private:
  // Where the lane's point of this round is, if queries are `step` points apart. fits_fast() lets no wider steps through than 32 bits hold.
  __device__ __forceinline__ int64_t at(int64_t step, int round) const {
    return static_cast<int64_t>(anew(row_)) * static_cast<int>(step) + first_ + round * kLanes;
  }
  __device__ __forceinline__ float logit(int round) const { return read_number(in_.weights, in_.storage, at(in_.weight_step, round)); }

  const int samples_, lane_, row_, first_;  // first_: the lane's first point, among the query's
  const Geometry& g_;
  const Inputs<V, float>& in_;
  float largest_ = 0.f, scale_ = 1.f;
};

// Offsets of a point's corners (upper left, upper right, lower left, lower right) in elements, within an image. Of a corner outside it is
// that of its neighbour inside: it can be read, and a NaN there is one that the point touches anyway.
struct Corners {
  unsigned at[4];
};

__device__ __forceinline__ Corners find_corners(unsigned packed, unsigned step, int width) {
  const unsigned first = (packed & kCell) * step;
  const unsigned right = (packed & kBothColumns) == kBothColumns ? step : 0u;
  const unsigned down = (packed & kBothRows) == kBothRows ? step * static_cast<unsigned>(width) : 0u;
  return {{first, first + right, first + down, first + down + right}};
}

// Calls body with the number of channels as a constant. fits_fast() lets no other through.
template <typename Body>
cudaError_t with_dim(int64_t dim, const Body& body) {
  switch (dim) {
    case 16: return body(Number<16>{});
    case 32: return body(Number<32>{});
    default: return body(Number<64>{});
  }
}

}  // namespace mrt::cuda
