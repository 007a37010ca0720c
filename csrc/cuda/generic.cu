// The generic kernels, for every D, L, P, size and dtype: one warp serves one item (a head of a query).
//
// Lane i prepares sampling point i of a chunk of 32, then the chunk's points are handed round by shuffle while the lanes stand for
// channels, so that reads of value are coalesced. All offsets are 64-bit. Loops of few steps, or bound by atomics, are not unrolled:
// it would only cost compile time. Also here, because they are generic too: the deterministic backward and the gradient of the reference
// points.
#include "launch.h"
#include "sums.cuh"

namespace mrt::cuda {
namespace {

constexpr int kThreads = 256;

// Softmax of one item's logits as weight = exp(logit - largest) * scale; the plain op's weights need neither.
template <typename R>
struct Softmax {
  R largest, scale;
  bool fused;

  __device__ __forceinline__ R weight(R logit) const { return fused ? exponential(logit - largest) * scale : logit; }
};

// Numbers of points and weights.
template <typename R>
__device__ __forceinline__ R number(const void* array, Storage storage, int64_t at) {
  if constexpr (sizeof(R) == sizeof(float)) return read_number(array, storage, at);
  return static_cast<const R*>(array)[at];
}

// Weight (or logit) k of an item, and coordinate i of its points.
template <typename V, typename R>
__device__ __forceinline__ R weight_of(const Geometry& g, const Inputs<V, R>& in, int64_t item, int64_t k) {
  return number<R>(in.weights, in.storage, item / g.heads * in.weight_step + item % g.heads * g.samples + k);
}

template <typename V, typename R>
__device__ __forceinline__ R coordinate_of(const Geometry& g, const Inputs<V, R>& in, int64_t item, int64_t i) {
  return number<R>(in.points, in.storage, item / g.heads * in.point_step + item % g.heads * g.samples * 2 + i);
}

template <typename V, typename R>
__device__ __forceinline__ Softmax<R> read_softmax(const Geometry& g, const Inputs<V, R>& in, int64_t item, int lane) {
  if (in.references == nullptr) return {R(0), R(1), false};
  R largest = weight_of(g, in, item, 0);
#pragma unroll 1
  for (int64_t k = lane; k < g.samples; k += kWarp) {
    const R logit = weight_of(g, in, item, k);
    largest = logit > largest ? logit : largest;
  }
  largest = max_over_lanes(largest);
  R total = 0;
#pragma unroll 1
  for (int64_t k = lane; k < g.samples; k += kWarp) total += exponential(weight_of(g, in, item, k) - largest);
  return {largest, R(1) / sum_over_lanes(total), true};
}

// A sampling point. Corners: upper left, upper right, lower left, lower right; row -1: outside the map.
template <typename R>
struct Point {
  R weight, dx, dy;
  int32_t row[4];
};

template <typename V, typename R>
__device__ __forceinline__ Point<R> read_point(const Geometry& g, const Inputs<V, R>& in, int64_t item, int64_t k,
                                               const Softmax<R>& softmax) {
  Point<R> p{R(0), R(0), R(0), {-1, -1, -1, -1}};
  if (k >= g.samples) return p;
  const int64_t level = k / g.points;
  const int32_t width = g.width[level], height = g.height[level];
  R x = coordinate_of(g, in, item, 2 * k), y = coordinate_of(g, in, item, 2 * k + 1);
  if (in.references != nullptr) {
    const R* reference = in.references + (item / g.heads * g.levels + level) * 2;
    x += reference[0] * width - R(0.5);
    y += reference[1] * height - R(0.5);
  } else {
    x = x * width - R(0.5);
    y = y * height - R(0.5);
  }
  p.weight = softmax.weight(weight_of(g, in, item, k));
  if (!(x > R(-1) && x < R(width) && y > R(-1) && y < R(height))) return p;  // NaN fails every comparison: the point adds nothing
  const R left = floor(x), upper = floor(y);
  const int32_t x0 = static_cast<int32_t>(left), y0 = static_cast<int32_t>(upper), row = g.start[level] + y0 * width + x0;
  p.dx = x - left;
  p.dy = y - upper;
  if (x0 >= 0 && y0 >= 0) p.row[0] = row;
  if (x0 + 1 < width && y0 >= 0) p.row[1] = row + 1;
  if (x0 >= 0 && y0 + 1 < height) p.row[2] = row + width;
  if (x0 + 1 < width && y0 + 1 < height) p.row[3] = row + width + 1;
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
  return q;
}

template <typename R>
__device__ __forceinline__ void corner_weights(const Point<R>& p, R (&weights)[4]) {
  weights[0] = p.weight * (1 - p.dx) * (1 - p.dy);
  weights[1] = p.weight * p.dx * (1 - p.dy);
  weights[2] = p.weight * (1 - p.dx) * p.dy;
  weights[3] = p.weight * p.dx * p.dy;
}

template <typename V, typename R>
__global__ void __launch_bounds__(kThreads)
    generic_forward_kernel(const __grid_constant__ Geometry g, const Inputs<V, R> in, V* __restrict__ output) {
  const int lane = threadIdx.x % kWarp;
  const int64_t item = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (item >= g.items) return;  // whole warps leave together
  const int64_t image = item / g.heads / g.queries, head = item % g.heads, step = g.heads * g.dim;
  const V* map = in.value + image * g.cells * step + head * g.dim;
  const Softmax<R> softmax = read_softmax(g, in, item, lane);
  for (int64_t first_channel = 0; first_channel < g.dim; first_channel += kWarp) {
    const int64_t channel = first_channel + lane;
    const bool active = channel < g.dim;
    R sum = 0;
    for (int64_t first = 0; first < g.samples; first += kWarp) {
      const Point<R> mine = read_point(g, in, item, first + lane, softmax);
      const int count = static_cast<int>(g.samples - first < kWarp ? g.samples - first : kWarp);
      for (int i = 0; i < count; ++i) {
        const Point<R> p = from_lane(mine, i);
        R weights[4];
        corner_weights(p, weights);
        for (int c = 0; c < 4; ++c) {
          if (p.row[c] >= 0 && active) sum += weights[c] * static_cast<R>(map[p.row[c] * step + channel]);
        }
      }
    }
    if (active) output[item * g.dim + channel] = static_cast<V>(sum);
  }
}

template <typename V, typename R, typename Sum>
__global__ void __launch_bounds__(kThreads)
    generic_backward_kernel(const __grid_constant__ Geometry g, const Inputs<V, R> in, const V* __restrict__ grad_output,
                            const Gradients out, const Sum grad_value) {
  const int lane = threadIdx.x % kWarp;
  const int64_t item = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (item >= g.items) return;  // whole warps leave together
  const int64_t image = item / g.heads / g.queries, head = item % g.heads, step = g.heads * g.dim;
  const int64_t origin = image * g.cells * step + head * g.dim;
  const auto sums = grad_value.slice(g, image * g.heads + head, origin);
  const bool fused = in.references != nullptr;
  const Softmax<R> softmax = read_softmax(g, in, item, lane);
  R *const grad_weights = static_cast<R*>(out.weights), *const grad_points = static_cast<R*>(out.points);  // never of 16 bits
  R mean = 0;  // of the weights' gradients, under the weights: what the softmax takes off
  for (int64_t first = 0; first < g.samples; first += kWarp) {
    const Point<R> mine = read_point(g, in, item, first + lane, softmax);
    const int count = static_cast<int>(g.samples - first < kWarp ? g.samples - first : kWarp);
    R grad_weight = 0, grad_x = 0, grad_y = 0;  // of the point that this lane prepared
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const Point<R> p = from_lane(mine, i);
      R weights[4], dots[4] = {0, 0, 0, 0};  // dots: output gradient times each corner's value, over the channels
      corner_weights(p, weights);
#pragma unroll 1
      for (int64_t channel = lane; channel < g.dim; channel += kWarp) {
        const R upstream = static_cast<R>(grad_output[item * g.dim + channel]);
        for (int c = 0; c < 4; ++c) {
          if (p.row[c] < 0) continue;
          const int64_t at = p.row[c] * step + channel;
          dots[c] += upstream * static_cast<R>(in.value[origin + at]);
          sums.add(at, weights[c] * upstream);
        }
      }
      const R dx = p.dx, dy = p.dy;
      const R along_weight = sum_over_lanes((1 - dy) * ((1 - dx) * dots[0] + dx * dots[1]) + dy * ((1 - dx) * dots[2] + dx * dots[3]));
      const R along_x = sum_over_lanes((1 - dy) * (dots[1] - dots[0]) + dy * (dots[3] - dots[2]));
      const R along_y = sum_over_lanes((1 - dx) * (dots[2] - dots[0]) + dx * (dots[3] - dots[1]));
      const bool nowhere = p.row[0] < 0 && p.row[1] < 0 && p.row[2] < 0 && p.row[3] < 0;  // zero gradient, though the weight be NaN
      if (lane == i) {
        grad_weight = along_weight;
        grad_x = nowhere ? R(0) : p.weight * along_x;
        grad_y = nowhere ? R(0) : p.weight * along_y;
      }
    }
    if (first + lane < g.samples) {
      const int64_t at = item * g.samples + first + lane, level = (first + lane) / g.points;
      grad_weights[at] = grad_weight;
      grad_points[2 * at] = fused ? grad_x : grad_x * g.width[level];
      grad_points[2 * at + 1] = fused ? grad_y : grad_y * g.height[level];
      mean += mine.weight * grad_weight;
    }
  }
  if (!fused) return;
  mean = sum_over_lanes(mean);
#pragma unroll 1
  for (int64_t k = lane; k < g.samples; k += kWarp) {  // each lane finishes what it wrote itself
    const int64_t at = item * g.samples + k;
    grad_weights[at] = softmax.weight(weight_of(g, in, item, k)) * (grad_weights[at] - mean);
  }
}

// The deterministic backward has three steps on one stream: how large can a slice's sums become (bound_kernel); the sums, as integers
// (generic_backward_kernel with the FixedSum of sums.cuh; a fast kernel would wait for the same 64-bit atomics); back to value's dtype.

// bounds[slice] = the largest |grad_output| of an item times the sum of its |weights| (1 after a softmax), as a double's bits: these order
// as the numbers do. Numbers that are not finite do not count: where they contribute (a point outside does not), the sums will show it.
// One warp per item.
__device__ __forceinline__ double finite_size(double x) { return fabs(x) < INFINITY ? fabs(x) : 0.; }

template <typename V, typename R>
__global__ void __launch_bounds__(kThreads)
    bound_kernel(const __grid_constant__ Geometry g, const Inputs<V, R> in, const V* __restrict__ grad_output, unsigned long long* bounds) {
  const int lane = threadIdx.x % kWarp;
  const int64_t item = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (item >= g.items) return;  // whole warps leave together
  unsigned long long largest = 0;
  for (int64_t channel = lane; channel < g.dim; channel += kWarp) {
    const double x = finite_size(static_cast<double>(grad_output[item * g.dim + channel]));
    unsigned long long bits;
    std::memcpy(&bits, &x, sizeof(bits));
    largest = bits > largest ? bits : largest;
  }
  largest = max_over_lanes(largest);
  if (in.references == nullptr) {
    double total = 0;
    for (int64_t k = lane; k < g.samples; k += kWarp) total += finite_size(static_cast<double>(weight_of(g, in, item, k)));
    double bound;
    std::memcpy(&bound, &largest, sizeof(bound));
    bound = fabs(bound * sum_over_lanes(total));
    std::memcpy(&largest, &bound, sizeof(largest));
  }
  if (lane == 0) atomicMax(bounds + item / g.heads / g.queries * g.heads + item % g.heads, largest);
}

template <typename V, typename R>
__global__ void __launch_bounds__(kThreads)
    convert_kernel(const __grid_constant__ Geometry g, const FixedSum<R> sums, V* __restrict__ grad_value) {
  const int64_t step = g.heads * g.dim, total = g.batch * g.cells * step, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < total; at += stride) {
    const Scale scale = Scale::of(sums.bounds[at / step / g.cells * g.heads + at % step / g.dim], g.queries, kScaleLimit<R>);
    const double sum = static_cast<double>(static_cast<long long>(sums.sums[at])) * Scale::power(-scale.exponent);
    grad_value[at] = static_cast<V>(static_cast<R>(scale.finite ? sum : static_cast<double>(NAN)));
  }
}

// A reference point moves all heads' points of its query and level, by (W, H) cells per unit. One thread per (n, q, level), always in the
// same order. A kernel of its own: heads are spread over blocks, and joining them there would take atomic additions.
template <typename R>
__global__ void __launch_bounds__(kThreads)
    reference_kernel(const __grid_constant__ Geometry g, const R* __restrict__ grad_offsets, R* __restrict__ grad_references) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= g.batch * g.queries * g.levels) return;
  const int64_t row = index / g.levels, level = index % g.levels;
  R x = 0, y = 0;
  for (int64_t head = 0; head < g.heads; ++head) {
    const R* grads = grad_offsets + ((row * g.heads + head) * g.samples + level * g.points) * 2;
    for (int64_t p = 0; p < g.points; ++p) {
      x += grads[2 * p];
      y += grads[2 * p + 1];
    }
  }
  grad_references[2 * index] = x * g.width[level];
  grad_references[2 * index + 1] = y * g.height[level];
}

}  // namespace

template <typename V, typename R>
cudaError_t launch_generic_forward(const Geometry& g, const Inputs<V, R>& in, V* output, cudaStream_t stream) {
  return launch(generic_forward_kernel<V, R>, blocks_for(g.items * kWarp, kThreads), kThreads, stream, g, in, output);
}

template <typename V, typename R, typename Sum>
cudaError_t launch_generic_backward(const Geometry& g, const Inputs<V, R>& in, const V* grad_output, const Gradients& out,
                                    const Sum& grad_value, cudaStream_t stream) {
  if (out.storage != Storage::kWide) return cudaErrorInvalidValue;  // see writes_16_bits()
  return launch(generic_backward_kernel<V, R, Sum>, blocks_for(g.items * kWarp, kThreads), kThreads, stream, g, in, grad_output, out,
                grad_value);
}

template <typename V, typename R>
cudaError_t launch_deterministic_backward(const Geometry& g, const Inputs<V, R>& in, const V* grad_output, const Gradients& out,
                                          V* grad_value, unsigned long long* sums, unsigned long long* bounds, cudaStream_t stream) {
  const FixedSum<R> sum{sums, bounds};
  if (g.items > 0) {
    cudaError_t error = launch(bound_kernel<V, R>, blocks_for(g.items * kWarp, kThreads), kThreads, stream, g, in, grad_output, bounds);
    if (error == cudaSuccess) error = launch_generic_backward(g, in, grad_output, out, sum, stream);
    if (error != cudaSuccess) return error;
  }
  const int64_t total = g.batch * g.cells * g.heads * g.dim, blocks = (total + kThreads - 1) / kThreads;
  if (total == 0) return cudaSuccess;
  return launch(convert_kernel<V, R>, dim3(static_cast<unsigned>(blocks < 65536 ? blocks : 65536)), kThreads, stream, g, sum, grad_value);
}

template <typename R>
cudaError_t launch_reference_gradient(const Geometry& g, const R* grad_offsets, R* grad_references, cudaStream_t stream) {
  const int64_t total = g.batch * g.queries * g.levels;
  if (total == 0) return cudaSuccess;
  return launch(reference_kernel<R>, blocks_for(total, kThreads), kThreads, stream, g, grad_offsets, grad_references);
}

#define MRT_GENERIC(V, R)                                                                                                         \
  template cudaError_t launch_generic_forward(const Geometry&, const Inputs<V, R>&, V*, cudaStream_t);                            \
  template cudaError_t launch_generic_backward(const Geometry&, const Inputs<V, R>&, const V*, const Gradients&,               \
                                               const FloatSum<R>&, cudaStream_t);                                                 \
  template cudaError_t launch_deterministic_backward(const Geometry&, const Inputs<V, R>&, const V*, const Gradients&, V*,     \
                                                     unsigned long long*, unsigned long long*, cudaStream_t);
MRT_GENERIC(float, float)
MRT_GENERIC(double, double)
MRT_GENERIC(c10::BFloat16, float)
MRT_GENERIC(c10::Half, float)
#undef MRT_GENERIC
template cudaError_t launch_reference_gradient(const Geometry&, const float*, float*, cudaStream_t);
template cudaError_t launch_reference_gradient(const Geometry&, const double*, double*, cudaStream_t);

}  // namespace mrt::cuda
