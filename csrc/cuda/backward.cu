// Backward: the fast kernel for the gradients of points and weights, and who adds up value's gradient:
//   encoder        tiles.cu: contributions to the same cell meet in shared memory before they meet in global memory
//   decoder        this kernel, corner by corner: its few queries seldom meet
// What the fast kernels do not take, and the deterministic backward, is generic.cu's.
#include "fast.cuh"
#include "sums.cuh"

namespace mrt::cuda {
namespace {

// What one point's gradients are made of, as long as it is a sum over some channels only: d output / d weight, and / d x and / d y before
// they are multiplied with the weight.
struct Slopes {
  float weight, x, y;
};

__device__ __forceinline__ Slopes choose(bool first, const Slopes& a, const Slopes& b) {
  // Number by number: choosing between the structs themselves would put both into memory.
  return {first ? a.weight : b.weight, first ? a.x : b.x, first ? a.y : b.y};
}

// What this lane keeps plus what the lane `step` away sends.
__device__ __forceinline__ Slopes exchange(const Slopes& keep, const Slopes& send, int step) {
  return {keep.weight + __shfl_xor_sync(kAll, send.weight, step), keep.x + __shfl_xor_sync(kAll, send.x, step),
          keep.y + __shfl_xor_sync(kAll, send.y, step)};
}

// 16 bytes per lane to read value; but 4 channels per lane to add to its gradient, because a vector addition is 4 floats and the vectors of
// neighbouring lanes should be neighbours.
template <typename V, int kDim, typename Sum>
constexpr int kBackwardLanes = Sum::kAdds || kDim * sizeof(V) / 16 < 4 ? kDim / 4 : kDim * sizeof(V) / 16;

// Blocks per multiprocessor: as many as the registers allow without spilling any. An encoder wants them, to hide the gathers' latency.
template <typename V, int kDim, typename Sum>
constexpr int kBackwardBlocks = Sum::kAdds ? 2 : kDim == 64 && sizeof(V) == 2 ? 3 : 4;

template <typename V, int kDim, typename Sum>
__global__ void __launch_bounds__(kFastThreads, kBackwardBlocks<V, kDim, Sum>)
    points_kernel(const __grid_constant__ Geometry g, const Inputs<V, float> in, const V* __restrict__ grad_output,
                  const Gradients out, const Sum grad_value, const bool tiled) {
  constexpr int kLanes = kBackwardLanes<V, kDim, Sum>, kChannels = kDim / kLanes;
  const int lane = threadIdx.x % kLanes;
  const Item item = find_item(g, tiled, threadIdx.x / kLanes, blockDim.x / kLanes);
  const int64_t row = (item.image * g.queries + item.query) * g.heads + item.head;
  PointReader<V, kLanes> reader(g, in, item.image * static_cast<int>(g.queries) + item.query, item.head, lane);
  // Gradients of the lane's weights, until the softmax's sum over all of them is known.
  __shared__ float along_weights[PointReader<V, kLanes>::kMostRounds][kFastThreads];
  float upstream[kChannels];
  read(grad_output + row * kDim + lane * kChannels, upstream);
  reader.softmax();
  const unsigned step = static_cast<unsigned>(g.heads) * kDim;
  const int64_t first = (item.image * g.cells * g.heads + item.head) * kDim + lane * kChannels;
  const V* map = in.value + first;
  [[maybe_unused]] const auto sums = grad_value.slice(g, item.image * g.heads + item.head, first);
  Place place{0u, 0.f, 0.f};  // of this lane's point of the round, and its weight
  float mine = 0.f;
#pragma unroll 1
  for (int level = 0; level < g.levels; ++level) {
    const int round = level / reader.kRoundLevels;
    if (level % reader.kRoundLevels == 0) {
      const Sample sample = reader.sample(round);
      place = item.exists ? reader.place(g, sample, round) : Place{0u, 0.f, 0.f};
      mine = reader.weight(sample);
    }
    const int width = g.width[level], first_source = level % reader.kRoundLevels * kFastPoints;
    const auto slopes_of = [&](int source) -> Slopes {
      const unsigned packed = __shfl_sync(kAll, place.packed, source, kLanes);
      const float dx = __shfl_sync(kAll, place.dx, source, kLanes), dy = __shfl_sync(kAll, place.dy, source, kLanes);
      const Corners corners = find_corners(packed, step, width);
      const bool inside[4] = {(packed & (kUpper | kLeft)) == (kUpper | kLeft), (packed & (kUpper | kRight)) == (kUpper | kRight),
                              (packed & (kLower | kLeft)) == (kLower | kLeft), (packed & (kLower | kRight)) == (kLower | kRight)};
      float dots[4];  // output gradient times each corner's value
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float value[kChannels], dot = 0.f;
        read(map + corners.at[c], value);
#pragma unroll
        for (int i = 0; i < kChannels; ++i) dot += upstream[i] * value[i];
        dots[c] = inside[c] ? dot : 0.f;  // chosen, not multiplied: it may be NaN
      }
      if constexpr (Sum::kAdds) {
        const float weight = __shfl_sync(kAll, mine, source, kLanes);
        const float corner[4] = {(1.f - dx) * (1.f - dy) * weight, dx * (1.f - dy) * weight, (1.f - dx) * dy * weight, dx * dy * weight};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const float w = corner[c];
          if (inside[c]) sums.add4(corners.at[c], make_float4(w * upstream[0], w * upstream[1], w * upstream[2], w * upstream[3]));
        }
      }
      return {(1.f - dy) * ((1.f - dx) * dots[0] + dx * dots[1]) + dy * ((1.f - dx) * dots[2] + dx * dots[3]),
              (1.f - dy) * (dots[1] - dots[0]) + dy * (dots[3] - dots[2]), (1.f - dx) * (dots[2] - dots[0]) + dx * (dots[3] - dots[1])};
    };
    // Sums over the lanes, two points together: a lane keeps one and hands over its share of the other, so that lanes i, i + 4, ... end
    // up with point i. Fewer shuffles than one sum per point; and all four points' loads at once would not fit into registers.
    Slopes slopes{0.f, 0.f, 0.f};
#pragma unroll 1
    for (int p = 0; p < kFastPoints; p += 2) {
      const Slopes even = slopes_of(first_source + p), odd = slopes_of(first_source + p + 1);
      Slopes sum = exchange(choose(lane % 2 == 0, even, odd), choose(lane % 2 == 0, odd, even), 1);
#pragma unroll
      for (int step = 2; step < kLanes; step *= 2) sum = exchange(sum, sum, step);
      slopes = choose(lane % kFastPoints / 2 == p / 2, sum, slopes);
    }
    if (!item.exists || lane / kFastPoints != level % reader.kRoundLevels) continue;  // else this level's point is mine
    if (reader.fused()) {
      along_weights[round][threadIdx.x] = slopes.weight;
    } else {
      write_number(out.weights, out.storage, reader.offset(round), slopes.weight);
    }
    const float weight = place.packed != 0u ? mine : 0.f;  // a point that is nowhere has gradient zero, even if its weight is NaN
    float2 along = make_float2(weight * slopes.x, weight * slopes.y);
    if (!reader.fused()) along = make_float2(along.x * static_cast<float>(width), along.y * static_cast<float>(g.height[level]));
    write_pair(out.points, out.storage, reader.offset(round), along);
  }
  if (!reader.fused()) return;
  float mean = 0.f;  // of the weights' gradients, under the weights: what the softmax takes off
  for (int round = 0; reader.has(round); ++round) mean += reader.weight(reader.sample(round)) * along_weights[round][threadIdx.x];
  mean = sum_over_lanes<kLanes>(mean);
  if (!item.exists) return;
  for (int round = 0; reader.has(round); ++round) {  // each lane what it has put aside itself
    const float gradient = reader.weight(reader.sample(round)) * (along_weights[round][threadIdx.x] - mean);
    write_number(out.weights, out.storage, reader.offset(round), gradient);
  }
}

template <typename V, typename Sum>
cudaError_t launch_points(const Geometry& g, const Inputs<V, float>& in, const V* grad_output, const Gradients& out, const Sum& sum,
                          cudaStream_t stream) {
  const bool tiled = is_encoder(g);
  const int threads = tiled ? kFastThreads : kFastThreads / 2;  // as in forward.cu
  return with_dim(g.dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    return launch(points_kernel<V, kDim, Sum>, item_blocks(g, tiled, threads / kBackwardLanes<V, kDim, Sum>), threads, stream, g, in,
                  grad_output, out, sum, tiled);
  });
}

}  // namespace

template <typename V, typename R>
bool writes_16_bits(const Geometry& g, const Inputs<V, R>& in, const V* grad_output) {
  if constexpr (sizeof(R) == sizeof(float)) return fits_fast(g, in, {grad_output});
  return false;
}

template <typename V, typename R>
cudaError_t launch_backward(const Geometry& g, const Inputs<V, R>& in, const V* grad_output, const Gradients& out, R* grad_value,
                            cudaStream_t stream) {
  if (g.items == 0) return cudaSuccess;
  if constexpr (sizeof(R) == sizeof(float)) {
    if (fits_fast(g, in, {grad_output, out.points, grad_value})) {
      if (!fits_tiles(g)) return launch_points(g, in, grad_output, out, FloatSum<float>{grad_value}, stream);
      const cudaError_t error = launch_points(g, in, grad_output, out, NoSum{}, stream);
      return error != cudaSuccess ? error : launch_tiles(g, in, grad_output, grad_value, stream);
    }
  }
  return launch_generic_backward(g, in, grad_output, out, FloatSum<R>{grad_value}, stream);
}

#define MRT_BACKWARD(V, R)                                                                                                      \
  template bool writes_16_bits(const Geometry&, const Inputs<V, R>&, const V*);                                                 \
  template cudaError_t launch_backward(const Geometry&, const Inputs<V, R>&, const V*, const Gradients&, R*, cudaStream_t);
MRT_BACKWARD(float, float)
MRT_BACKWARD(double, double)
MRT_BACKWARD(c10::BFloat16, float)
MRT_BACKWARD(c10::Half, float)
#undef MRT_BACKWARD

}  // namespace mrt::cuda
