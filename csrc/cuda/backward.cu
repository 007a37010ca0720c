// Backward: gradients for value (atomic additions, so sums may differ in the last bits from run to run), points and weights.
#include "sampling.cuh"

namespace mrt::cuda {
namespace {

template <typename V, typename R>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const Geometry g, const Inputs<V, R> in, const V* __restrict__ grad_output, const Gradients<R> out) {
  const int lane = threadIdx.x % kWarp;
  const int64_t item = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (item >= g.items) return;  // whole warps leave together
  const int64_t image = item / g.heads / g.queries, head = item % g.heads, step = g.heads * g.dim;
  const int64_t origin = image * g.cells * step + head * g.dim;
  const bool fused = in.references != nullptr;
  const Softmax<R> softmax = read_softmax(g, in.weights + item * g.samples, fused, lane);
  R mean = 0;  // of the weights' gradients, under the weights: what the softmax takes off
  for (int64_t first = 0; first < g.samples; first += kWarp) {
    const Point<R> mine = read_point(g, in.references, in.points, in.weights, item, first + lane, softmax);
    const int count = static_cast<int>(g.samples - first < kWarp ? g.samples - first : kWarp);
    R grad_weight = 0, grad_x = 0, grad_y = 0;  // of the point that this lane prepared
    for (int i = 0; i < count; ++i) {
      const Point<R> p = from_lane(mine, i);
      R weights[4], dots[4] = {0, 0, 0, 0};  // dots: output gradient times each corner's value, over the channels
      corner_weights(p, weights);
      for (int64_t channel = lane; channel < g.dim; channel += kWarp) {
        const R upstream = static_cast<R>(grad_output[item * g.dim + channel]);
        for (int c = 0; c < 4; ++c) {
          if (p.row[c] < 0) continue;
          const int64_t at = origin + p.row[c] * step + channel;
          dots[c] += upstream * static_cast<R>(in.value[at]);
          atomicAdd(out.value + at, weights[c] * upstream);
        }
      }
      const R dx = p.dx, dy = p.dy;
      const R along_weight = sum_over_warp((1 - dy) * ((1 - dx) * dots[0] + dx * dots[1]) + dy * ((1 - dx) * dots[2] + dx * dots[3]));
      const R along_x = sum_over_warp(p.weight * ((1 - dy) * (dots[1] - dots[0]) + dy * (dots[3] - dots[2])));
      const R along_y = sum_over_warp(p.weight * ((1 - dx) * (dots[2] - dots[0]) + dx * (dots[3] - dots[1])));
      if (lane == i) {
        grad_weight = along_weight;
        grad_x = along_x;
        grad_y = along_y;
      }
    }
    if (first + lane < g.samples) {
      const int64_t at = item * g.samples + first + lane;
      out.weights[at] = grad_weight;
      out.points[2 * at] = fused ? grad_x : grad_x * g.width[mine.level];
      out.points[2 * at + 1] = fused ? grad_y : grad_y * g.height[mine.level];
      mean += mine.weight * grad_weight;
    }
  }
  if (!fused) return;
  mean = sum_over_warp(mean);
  for (int64_t k = lane; k < g.samples; k += kWarp) {  // each lane finishes what it wrote itself
    const int64_t at = item * g.samples + k;
    out.weights[at] = softmax.weight(in.weights[at]) * (out.weights[at] - mean);
  }
}

// A reference point moves all heads' points of its query and level, by (W, H) cells per unit. One thread per (n, q, level).
template <typename R>
__global__ void __launch_bounds__(kThreads)
    reference_kernel(const Geometry g, int64_t total, const R* __restrict__ grad_offsets, R* __restrict__ grad_references) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= total) return;
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
cudaError_t launch_backward(const Geometry& geometry, const Inputs<V, R>& inputs, const V* grad_output, const Gradients<R>& gradients,
                            cudaStream_t stream) {
  if (geometry.items == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>(blocks_for(geometry.items * kWarp));
  backward_kernel<V, R><<<blocks, kThreads, 0, stream>>>(geometry, inputs, grad_output, gradients);
  return cudaGetLastError();
}

template <typename R>
cudaError_t launch_reference_gradient(const Geometry& geometry, int64_t batch, const R* grad_offsets, R* grad_references,
                                      cudaStream_t stream) {
  const int64_t total = batch * geometry.queries * geometry.levels;
  if (total == 0) return cudaSuccess;
  reference_kernel<R><<<static_cast<unsigned>(blocks_for(total)), kThreads, 0, stream>>>(geometry, total, grad_offsets, grad_references);
  return cudaGetLastError();
}

#define MRT_BACKWARD(V, R) \
  template cudaError_t launch_backward(const Geometry&, const Inputs<V, R>&, const V*, const Gradients<R>&, cudaStream_t);
MRT_BACKWARD(float, float)
MRT_BACKWARD(double, double)
MRT_BACKWARD(c10::BFloat16, float)
MRT_BACKWARD(c10::Half, float)
template cudaError_t launch_reference_gradient(const Geometry&, int64_t, const float*, float*, cudaStream_t);
template cudaError_t launch_reference_gradient(const Geometry&, int64_t, const double*, double*, cudaStream_t);

}  // namespace mrt::cuda
