// Backward: the fast kernel for the gradients of points and weights, and who adds up value's gradient:
//   encoder        tiles.cu: contributions to the same cell meet in shared memory before they meet in global memory
//   decoder        this kernel, corner by corner: its few queries seldom meet
// What the fast kernels do not take, and the deterministic backward, is generic.cu's.
#include "fast.cuh"
#include "sums.cuh"

namespace mrt::cuda {
namespace {

// A lane keeps one of two numbers and sends the other to the lane `step` away, whose choice is the opposite: what it keeps of both.
__device__ __forceinline__ float exchange(bool first, float a, float b, int step) {
  return (first ? a : b) + __shfl_xor_sync(kAll, first ? b : a, step);
}

// 16 bytes per lane to read value; but 4 channels per lane to add to its gradient, because a vector addition is 4 floats and the vectors of
// neighbouring lanes should be neighbours.
template <typename V, int kDim, typename Sum>
constexpr int kBackwardLanes = Sum::kAdds || kDim * sizeof(V) / 16 < 4 ? kDim / 4 : kDim * sizeof(V) / 16;

// Blocks per multiprocessor: as many as the registers allow without spilling any. An encoder wants them, to hide the gathers' latency.
template <int kLevels, typename Sum>
constexpr int kBackwardBlocks = Sum::kAdds ? 2 : kLevels == 0 ? 3 : 4;

template <typename V, int kDim, int kLevels, typename Sum>
__global__ void __launch_bounds__(kFastThreads, kBackwardBlocks<kLevels, Sum>)
    points_kernel(const __grid_constant__ Layout g, const __grid_constant__ Inputs<V, float> in, const V* __restrict__ grad_output,
                  const __grid_constant__ Gradients out, const Sum grad_value, const bool tiled) {
  constexpr int kLanes = kBackwardLanes<V, kDim, Sum>, kChannels = kDim / kLanes;
  using Vector = typename Word<sizeof(V) * kChannels>::type;
  using Reader = PointReader<V, kLanes, kLevels>;
  __shared__ int2 own[kFastThreads];
  __shared__ uint4 corners[kFastThreads];  // of the item's points of a round, in vectors; where sums are added: kOff in those outside
  __shared__ float4 corner_weights[Sum::kAdds ? kFastThreads : 1];
  // Of the lane's own points, to spare registers: how far the round's is from its upper left corner; of all rounds, weights
  // and their gradients without the softmax.
  __shared__ float2 fractions[kFastThreads];
  __shared__ float weights[Reader::kMostRounds][kFastThreads], along_weights[Reader::kMostRounds][kFastThreads];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const Item item = find_item(g, tiled, thread / kLanes, static_cast<int>(blockDim.x) / kLanes);
  const int row = item.image * g.queries + item.query;
  const Reader reader(g, in, row, item.head, lane, item.exists, own);
  float upstream[kChannels];
  read(grad_output + (static_cast<int64_t>(row) * g.heads + item.head) * kDim + lane * kChannels, upstream);
  reader.read_weights(weights);
  const unsigned step = static_cast<unsigned>(g.heads) * kLanes;
  const int64_t first = static_cast<int64_t>(item.image) * g.cells * static_cast<int>(step) + item.head * kLanes + lane;
  const Vector* const map = opaque(reinterpret_cast<const Vector*>(in.value) + first);
  [[maybe_unused]] const auto sums = grad_value.from(first * kChannels);
#pragma unroll 1
  for (int round = 0; round < reader.rounds(); ++round) {
    unsigned inside;  // which of the own point's corners are in the map, by bits
    uint4 at;
    {
      const Place place = reader.place(reader.sample(round), round);
      const int level = reader.has(round) ? reader.level(round) : 0, width = g.width[level];
      const Inside sides = find_inside(place, width, g.height[level]);
      fractions[thread] = make_float2(place.dx, place.dy);
      inside = (sides.upper && sides.left ? 1u : 0u) | (sides.upper && sides.right ? 2u : 0u) | (sides.lower && sides.left ? 4u : 0u) |
               (sides.lower && sides.right ? 8u : 0u);
      at = find_corners(place, sides, step, g.start[level], width);
    }
    __syncwarp();  // the last round's have been read
    if constexpr (Sum::kAdds) {
      at.x |= inside & 1u ? 0u : kOff;
      at.y |= inside & 2u ? 0u : kOff;
      at.z |= inside & 4u ? 0u : kOff;
      at.w |= inside & 8u ? 0u : kOff;
      const float mine = weights[round][thread], dx = fractions[thread].x, dy = fractions[thread].y;
      corner_weights[thread] = make_float4((1.f - dx) * (1.f - dy) * mine, dx * (1.f - dy) * mine, (1.f - dx) * dy * mine, dx * dy * mine);
    }
    corners[thread] = at;
    __syncwarp();
    float dots[4] = {};  // of the lane's own point: output gradient times each corner's value
#pragma unroll 1
    for (int part = 0; part < reader.kRoundLevels && round * reader.kRoundLevels + part < reader.levels(); ++part) {
      // Sums over the lanes, four points together: in each of two steps a lane keeps half of the points and hands over its share of the
      // others, so that lanes i, i + 4, ... end up with point i. Fewer shuffles than one sum per point.
      float former[4] = {}, latter[4] = {};  // of one of the first two points, and of one of the other two
#pragma unroll 1
      for (int p = 0; p < kFastPoints; p += 2) {  // the loads of all four at once would not fit into registers
        float both[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int source = thread - lane + part * kFastPoints + p + i;
          const uint4 from = corners[source];
          const unsigned offsets[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            float value[kChannels];
            unpack<V>(__ldg(advance(map, Sum::kAdds ? offsets[c] & ~kOff : offsets[c])), value);
            both[i][c] = upstream[0] * value[0];
#pragma unroll
            for (int k = 1; k < kChannels; ++k) both[i][c] += upstream[k] * value[k];
          }
          if constexpr (Sum::kAdds) {
            const float4 w4 = corner_weights[source];
            const float factors[4] = {w4.x, w4.y, w4.z, w4.w};
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              const float w = factors[c];
              if ((offsets[c] & kOff) == 0u) {
                sums.add4(offsets[c] * kChannels, make_float4(w * upstream[0], w * upstream[1], w * upstream[2], w * upstream[3]));
              }
            }
          }
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          former[c] = latter[c];
          latter[c] = exchange(lane % 2 == 0, both[0][c], both[1][c], 1);
        }
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float dot = exchange(lane % 4 < 2, former[c], latter[c], 2);
#pragma unroll
        for (int step = kFastPoints; step < kLanes; step *= 2) dot += __shfl_xor_sync(kAll, dot, step);
        if (lane / kFastPoints == part) dots[c] = dot;
      }
    }
    const float dx = fractions[thread].x, dy = fractions[thread].y;
    // Chosen, not multiplied: they may be NaN.
    const float upper_left = inside & 1u ? dots[0] : 0.f, upper_right = inside & 2u ? dots[1] : 0.f;
    const float lower_left = inside & 4u ? dots[2] : 0.f, lower_right = inside & 8u ? dots[3] : 0.f;
    const float along_weight = (1.f - dy) * ((1.f - dx) * upper_left + dx * upper_right) + dy * ((1.f - dx) * lower_left + dx * lower_right);
    const float along_x = (1.f - dy) * (upper_right - upper_left) + dy * (lower_right - lower_left);
    const float along_y = (1.f - dx) * (lower_left - upper_left) + dx * (lower_right - upper_right);
    const float mine = weights[round][thread];
    along_weights[round][thread] = along_weight;
    if (!reader.exists() || !reader.has(round)) continue;
    if (!reader.fused()) write_number(out.weights, out.storage, reader.offset(round), along_weight);
    const float weight = inside != 0u ? mine : 0.f;  // a point that is nowhere has gradient zero, even if its weight is NaN
    float2 along = make_float2(weight * along_x, weight * along_y);
    if (!reader.fused()) {
      const int level = reader.level(round);
      along = make_float2(along.x * static_cast<float>(g.width[level]), along.y * static_cast<float>(g.height[level]));
    }
    write_pair(out.points, out.storage, reader.offset(round), along);
  }
  if (!reader.fused()) return;
  float mean = 0.f;  // of the weights' gradients, under the weights: what the softmax takes off
#pragma unroll
  for (int round = 0; round < Reader::kMostRounds; ++round) {
    if (round < reader.rounds() && reader.has(round)) mean += weights[round][thread] * along_weights[round][thread];
  }
  mean = sum_over_lanes<kLanes>(mean);
  if (!reader.exists()) return;
#pragma unroll 1
  for (int round = 0; round < reader.rounds(); ++round) {  // each lane what it has put aside itself
    if (!reader.has(round)) continue;
    write_number(out.weights, out.storage, reader.offset(round), weights[round][thread] * (along_weights[round][thread] - mean));
  }
}

template <typename V, typename Sum>
cudaError_t launch_points(const Geometry& g, const Inputs<V, float>& in, const V* grad_output, const Gradients& out, const Sum& sum,
                          cudaStream_t stream) {
  const bool tiled = is_encoder(g);
  const int threads = tiled ? kFastThreads : kFastThreads / 2;  // as in forward.cu
  return with_dim_and_levels(g, [&](auto dim, auto levels) {
    constexpr int kDim = decltype(dim)::value, kLevels = decltype(levels)::value;
    const int items = threads / kBackwardLanes<V, kDim, Sum>;
    const Layout plan = layout(g, items / kTileSide);
    return launch(points_kernel<V, kDim, kLevels, Sum>, item_blocks(g, plan, tiled, items), threads, stream, plan, in, grad_output, out,
                  sum, tiled);
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
