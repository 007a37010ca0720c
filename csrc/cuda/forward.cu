// Forward: output[item, channel] = sum over points and corners of corner weight * value. This is its fast kernel; generic.cu has the other.
//
// What bounds it is the gathering of 4 * K corners per item through the L2 cache. Hence 16 bytes per lane and load, points prepared once
// per item rather than by every lane, no branch between one point's loads and the next's, and blocks of neighbouring queries.
#include "fast.cuh"

namespace mrt::cuda {
namespace {

// Four lanes at least: with fewer, each would prepare too many points.
template <typename V, int kDim>
constexpr int kForwardLanes = kDim * sizeof(V) / 16 < 4 ? 4 : kDim * sizeof(V) / 16;

// 4 blocks per multiprocessor leave 64 registers a thread, enough for the gathers of two points (8 loads) at a time without spilling any.
template <typename V, int kDim>
__global__ void __launch_bounds__(kFastThreads, 4)
    forward_kernel(const __grid_constant__ Geometry g, const Inputs<V, float> in, V* __restrict__ output, const bool tiled) {
  constexpr int kLanes = kForwardLanes<V, kDim>, kChannels = kDim / kLanes;
  const int lane = threadIdx.x % kLanes;
  const Item item = find_item(g, tiled, threadIdx.x / kLanes, blockDim.x / kLanes);
  const int64_t row = (item.image * g.queries + item.query) * g.heads + item.head;
  PointReader<V, kLanes> reader(g, in, item.image * static_cast<int>(g.queries) + item.query, item.head, lane);
  reader.softmax();
  const unsigned step = static_cast<unsigned>(g.heads) * kDim;
  const V* map = in.value + (item.image * g.cells * g.heads + item.head) * kDim + lane * kChannels;
  float sum[kChannels] = {};
#pragma unroll 1
  for (int round = 0; round < reader.rounds(); ++round) {
    const Sample sample = reader.sample(round);
    const Place place = item.exists ? reader.place(g, sample, round) : Place{0u, 0.f, 0.f};
    const float mine = reader.weight(sample);
    const float upper = place.packed & kUpper ? (1.f - place.dy) * mine : 0.f, lower = place.packed & kLower ? place.dy * mine : 0.f;
    const float left = place.packed & kLeft ? 1.f - place.dx : 0.f, right = place.packed & kRight ? place.dx : 0.f;
    const float corner_weights[4] = {left * upper, right * upper, left * lower, right * lower};  // zero outside
    const int level_end = min(static_cast<int>(g.levels), (round + 1) * reader.kRoundLevels);
#pragma unroll 1
    for (int level = round * reader.kRoundLevels; level < level_end; ++level) {
      const int width = g.width[level];
#pragma unroll 2
      for (int p = 0; p < kFastPoints; ++p) {
        const int source = level % reader.kRoundLevels * kFastPoints + p;
        const unsigned packed = __shfl_sync(kAll, place.packed, source, kLanes);
        const Corners corners = find_corners(packed, step, width);
        float part[kChannels] = {};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float value[kChannels];
          read(map + corners.at[c], value);
          const float weight = __shfl_sync(kAll, corner_weights[c], source, kLanes);
#pragma unroll
          for (int i = 0; i < kChannels; ++i) part[i] = c == 0 ? weight * value[i] : part[i] + weight * value[i];
        }
        // A point that is nowhere read cell 0 with weight 0; were that cell NaN, so would be the product. Chosen, not branched.
#pragma unroll
        for (int i = 0; i < kChannels; ++i) sum[i] = packed != 0u ? sum[i] + part[i] : sum[i];
      }
    }
  }
  if (item.exists) write(sum, output + row * kDim + lane * kChannels);
}

template <typename V>
cudaError_t launch_fast(const Geometry& g, const Inputs<V, float>& in, V* output, cudaStream_t stream) {
  const bool tiled = is_encoder(g);
  const int threads = tiled ? kFastThreads : kFastThreads / 2;  // a decoder has few items: small blocks spread them evenly
  return with_dim(g.dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    return launch(forward_kernel<V, kDim>, item_blocks(g, tiled, threads / kForwardLanes<V, kDim>), threads, stream, g, in, output, tiled);
  });
}

}  // namespace

template <typename V, typename R>
cudaError_t launch_forward(const Geometry& g, const Inputs<V, R>& in, V* output, cudaStream_t stream) {
  if (g.items == 0) return cudaSuccess;
  if constexpr (sizeof(R) == sizeof(float)) {
    if (fits_fast(g, in, {output})) return launch_fast(g, in, output, stream);
  }
  return launch_generic_forward(g, in, output, stream);
}

template cudaError_t launch_forward(const Geometry&, const Inputs<float, float>&, float*, cudaStream_t);
template cudaError_t launch_forward(const Geometry&, const Inputs<double, double>&, double*, cudaStream_t);
template cudaError_t launch_forward(const Geometry&, const Inputs<c10::BFloat16, float>&, c10::BFloat16*, cudaStream_t);
template cudaError_t launch_forward(const Geometry&, const Inputs<c10::Half, float>&, c10::Half*, cudaStream_t);

}  // namespace mrt::cuda
