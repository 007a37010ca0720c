// Forward: output[item, channel] = sum over points and corners of corner weight * value.
#include "sampling.cuh"

namespace mrt::cuda {
namespace {

template <typename V, typename R>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Geometry g, const Inputs<V, R> in, V* __restrict__ output) {
  const int lane = threadIdx.x % kWarp;
  const int64_t item = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (item >= g.items) return;  // whole warps leave together
  const int64_t image = item / g.heads / g.queries, head = item % g.heads, step = g.heads * g.dim;
  const V* map = in.value + image * g.cells * step + head * g.dim;
  const Softmax<R> softmax = read_softmax(g, in.weights + item * g.samples, in.references != nullptr, lane);
  for (int64_t first_channel = 0; first_channel < g.dim; first_channel += kWarp) {
    const int64_t channel = first_channel + lane;
    const bool active = channel < g.dim;
    R sum = 0;
    for (int64_t first = 0; first < g.samples; first += kWarp) {
      const Point<R> mine = read_point(g, in.references, in.points, in.weights, item, first + lane, softmax);
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

}  // namespace

template <typename V, typename R>
cudaError_t launch_forward(const Geometry& geometry, const Inputs<V, R>& inputs, V* output, cudaStream_t stream) {
  if (geometry.items == 0) return cudaSuccess;
  forward_kernel<V, R><<<static_cast<unsigned>(blocks_for(geometry.items * kWarp)), kThreads, 0, stream>>>(geometry, inputs, output);
  return cudaGetLastError();
}

template cudaError_t launch_forward(const Geometry&, const Inputs<float, float>&, float*, cudaStream_t);
template cudaError_t launch_forward(const Geometry&, const Inputs<double, double>&, double*, cudaStream_t);
template cudaError_t launch_forward(const Geometry&, const Inputs<c10::BFloat16, float>&, c10::BFloat16*, cudaStream_t);
template cudaError_t launch_forward(const Geometry&, const Inputs<c10::Half, float>&, c10::Half*, cudaStream_t);

}  // namespace mrt::cuda
