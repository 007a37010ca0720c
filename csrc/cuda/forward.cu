// Forward: output[item, channel] = sum over points and corners of corner weight * value. This is its fast kernel; generic.cu has the other.
//
// What bounds it is the gathering of 4 * K corners per item, and the instructions around it. Hence 16 bytes per lane and load; points
// prepared once per item rather than by every lane, and handed round through shared memory: two loads of 16 bytes take fewer instructions
// than five shuffles and what would be left to compute; no branch between one point's loads and the next's; blocks of neighbouring queries.
#include "fast.cuh"

namespace mrt::cuda {
namespace {

// Four lanes at least: with fewer, each would prepare too many points.
template <typename V, int kDim>
constexpr int kForwardLanes = kDim * sizeof(V) / 16 < 4 ? 4 : kDim * sizeof(V) / 16;

// 4 blocks per multiprocessor leave 64 registers a thread, enough for the gathers of two points (8 loads) at a time without spilling any,
// unless the number of levels is unknown.
template <typename V, int kDim, int kLevels>
__global__ void __launch_bounds__(kFastThreads, kLevels == 0 ? 3 : 4)
    forward_kernel(const __grid_constant__ Layout g, const __grid_constant__ Inputs<V, float> in, V* __restrict__ output, const bool tiled) {
  constexpr int kLanes = kForwardLanes<V, kDim>, kChannels = kDim / kLanes;
  using Vector = typename Word<sizeof(V) * kChannels>::type;
  using Reader = PointReader<V, kLanes, kLevels>;
  __shared__ int2 own[kFastThreads];
  __shared__ uint4 corners[kFastThreads];  // of the item's points of a round, in vectors; kOff in the first: the point is nowhere
  __shared__ float4 corner_weights[kFastThreads];
  __shared__ float weights[Reader::kMostRounds][kFastThreads];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes;
  const Item item = find_item(g, tiled, thread / kLanes, static_cast<int>(blockDim.x) / kLanes);
  const int row = item.image * g.queries + item.query;
  const Reader reader(g, in, row, item.head, lane, item.exists, own);
  reader.read_weights(weights);
  const unsigned step = static_cast<unsigned>(g.heads) * kLanes;
  const Vector* const map = opaque(reinterpret_cast<const Vector*>(in.value) +
                                   static_cast<int64_t>(item.image) * g.cells * static_cast<int>(step) + item.head * kLanes + lane);
  float sum[kChannels] = {};
#pragma unroll 1
  for (int round = 0; round < reader.rounds(); ++round) {
    const Sample sample = reader.sample(round);
    const Place place = reader.place(sample, round);
    const float mine = weights[round][thread];
    const int level = reader.has(round) ? reader.level(round) : 0, width = g.width[level];
    const Inside inside = find_inside(place, width, g.height[level]);
    const float upper = inside.upper ? (1.f - place.dy) * mine : 0.f, lower = inside.lower ? place.dy * mine : 0.f;
    const float left = inside.left ? 1.f - place.dx : 0.f, right = inside.right ? place.dx : 0.f;
    uint4 at = find_corners(place, inside, step, g.start[level], width);
    if (!place.somewhere) at.x = kOff;
    __syncwarp();  // the last round's have been read
    corners[thread] = at;
    corner_weights[thread] = make_float4(left * upper, right * upper, left * lower, right * lower);  // zero outside
    __syncwarp();
    const int count = kLevels != 0 ? kLanes : min(kLanes, g.samples - round * kLanes);
#pragma unroll 2
    for (int p = 0; p < count; ++p) {
      const uint4 from = corners[thread - lane + p];
      const float4 w = corner_weights[thread - lane + p];
      // A point that is nowhere reads a cell for nothing; were that cell NaN, so would be its product. Chosen, not branched.
      const bool somewhere = (from.x & kOff) == 0u;
      const unsigned offsets[4] = {from.x & ~kOff, from.y, from.z, from.w};
      const float factors[4] = {w.x, w.y, w.z, w.w};
      Vector values[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) values[c] = __ldg(advance(map, offsets[c]));
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float value[kChannels];
        unpack<V>(values[c], value);
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          if (somewhere) sum[i] += factors[c] * value[i];
        }
      }
    }
  }
  if (reader.exists()) write(sum, output + (static_cast<int64_t>(reader.row()) * g.heads + item.head) * kDim + lane * kChannels);
}

template <typename V>
cudaError_t launch_fast(const Geometry& g, const Inputs<V, float>& in, V* output, cudaStream_t stream) {
  const bool tiled = is_encoder(g);
  const int threads = tiled ? kFastThreads : kFastThreads / 2;  // a decoder has few items: small blocks spread them evenly
  return with_dim_and_levels(g, [&](auto dim, auto levels) {
    constexpr int kDim = decltype(dim)::value, kLevels = decltype(levels)::value;
    const int items = threads / kForwardLanes<V, kDim>;
    const Layout plan = layout(g, items / kTileSide);
    return launch(forward_kernel<V, kDim, kLevels>, item_blocks(g, plan, tiled, items), threads, stream, plan, in, output, tiled);
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
