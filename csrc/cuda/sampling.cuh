// What forward and backward share: how a warp turns one item's inputs into sampling points.
//
// One warp serves one item, a head of a query. Lane i prepares sampling point i of a chunk of 32 (location, weights, corner rows), then
// the chunk's points are handed round with shuffles while the lanes stand for channels, so that reads of value are coalesced.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "kernels.h"

namespace mrt::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr unsigned kAll = 0xffffffffu;

template <typename R>
__device__ __forceinline__ R sum_over_warp(R x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

template <typename R>
__device__ __forceinline__ R max_over_warp(R x) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const R other = __shfl_xor_sync(kAll, x, step);
    x = other > x ? other : x;
  }
  return x;
}

__device__ __forceinline__ float exponential(float x) { return __expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// Softmax of one item's logits as weight = exp(logit - largest) * scale; the plain op's weights need neither.
template <typename R>
struct Softmax {
  R largest, scale;
  bool fused;

  __device__ __forceinline__ R weight(R logit) const { return fused ? exponential(logit - largest) * scale : logit; }
};

template <typename R>
__device__ __forceinline__ Softmax<R> read_softmax(const Geometry& g, const R* logits, bool fused, int lane) {
  if (!fused) return {R(0), R(1), false};
  R largest = logits[0];
  for (int64_t k = lane; k < g.samples; k += kWarp) largest = logits[k] > largest ? logits[k] : largest;
  largest = max_over_warp(largest);
  R total = 0;
  for (int64_t k = lane; k < g.samples; k += kWarp) total += exponential(logits[k] - largest);
  return {largest, R(1) / sum_over_warp(total), true};
}

// A sampling point. Corners: upper left, upper right, lower left, lower right; row -1: outside the map.
template <typename R>
struct Point {
  R weight, dx, dy;
  int32_t row[4];
  int32_t level;
};

template <typename R>
__device__ __forceinline__ Point<R> read_point(const Geometry& g, const R* references, const R* points, const R* weights, int64_t item,
                                               int64_t k, const Softmax<R>& softmax) {
  Point<R> p{R(0), R(0), R(0), {-1, -1, -1, -1}, 0};
  if (k >= g.samples) return p;
  const int level = static_cast<int>(k / g.points);
  const int32_t width = g.width[level], height = g.height[level];
  const int64_t at = item * g.samples + k;
  R x = points[2 * at], y = points[2 * at + 1];
  if (references != nullptr) {
    const R* reference = references + (item / g.heads * g.levels + level) * 2;
    x += reference[0] * width - R(0.5);
    y += reference[1] * height - R(0.5);
  } else {
    x = x * width - R(0.5);
    y = y * height - R(0.5);
  }
  p.level = level;
  p.weight = softmax.weight(weights[at]);
  if (!(x > R(-1) && x < R(width) && y > R(-1) && y < R(height))) return p;  // NaN fails every comparison: the point adds nothing
  const int32_t x0 = static_cast<int32_t>(floor(x)), y0 = static_cast<int32_t>(floor(y));
  p.dx = x - x0;
  p.dy = y - y0;
  const bool left = x0 >= 0, right = x0 + 1 < width, upper = y0 >= 0, lower = y0 + 1 < height;
  const int32_t row = g.start[level] + y0 * width + x0;
  if (left && upper) p.row[0] = row;
  if (right && upper) p.row[1] = row + 1;
  if (left && lower) p.row[2] = row + width;
  if (right && lower) p.row[3] = row + width + 1;
  return p;
}

// The same point as lane `source` prepared it, in every lane.
template <typename R>
__device__ __forceinline__ Point<R> from_lane(const Point<R>& p, int source) {
  Point<R> q;
  q.weight = __shfl_sync(kAll, p.weight, source);
  q.dx = __shfl_sync(kAll, p.dx, source);
  q.dy = __shfl_sync(kAll, p.dy, source);
  for (int c = 0; c < 4; ++c) q.row[c] = __shfl_sync(kAll, p.row[c], source);
  q.level = 0;  // only the lane that prepared the point needs it
  return q;
}

template <typename R>
__device__ __forceinline__ void corner_weights(const Point<R>& p, R (&weights)[4]) {
  weights[0] = p.weight * (1 - p.dx) * (1 - p.dy);
  weights[1] = p.weight * p.dx * (1 - p.dy);
  weights[2] = p.weight * (1 - p.dx) * p.dy;
  weights[3] = p.weight * p.dx * p.dy;
}

inline int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

}  // namespace mrt::cuda
