// Value's gradient of an encoder call. Every corner of every point contributes corner weight * output gradient to one cell; neighbouring
// queries hit the same cells again and again. A block takes one head of 8 x 8 neighbouring queries and, level by level,
//   1. computes the contributions (one thread per point, 4 corners each) and counts them per cell of a 32 x 32 window around the tile,
//   2. turns the counts into positions (a prefix sum),
//   3. writes the contributions in the order of their cells,
//   4. cuts that list into equal parts, one per group of lanes; a group adds up neighbours of the same cell in registers and sends one
//      vector addition to global memory per cell.
// Contributions outside the window follow at the list's end, unsorted: with widely spread offsets this is the direct scatter.
// Only integers are counted atomically in shared memory; float additions there would be compare-and-swap loops.
#include "fast.cuh"

namespace mrt::cuda {
namespace {

constexpr int kTileQueries = kTileSide * kTileSide;
constexpr int kTileThreads = kTileQueries * kFastPoints;  // one per point of a level
constexpr int kWindow = 32, kBins = kWindow * kWindow;
constexpr int kEntries = kTileThreads * 4;
constexpr int kOutside = 1 << 30;
static_assert(kBins == 4 * kTileThreads, "a thread scans four bins");

// Whether a lane adds to neighbouring channels: see add4().
#if MRT_VECTOR_ATOMICS
constexpr bool kNeighbours = true;
#else
constexpr bool kNeighbours = false;
#endif

struct __align__(8) Entry {
  float weight;
  unsigned key;  // cell of the level * bytes of `upstream` | where in there the query's gradient begins
};

// Adds four sums to four channels: neighbours where one instruction adds them; else channels kLanes apart, so that each of four
// instructions adds to neighbours for neighbouring lanes: to one sector for 8 lanes, rather than four times to all four.
template <int kLanes>
__device__ __forceinline__ void add4(float* to, float4 x) {
  if constexpr (kNeighbours) {
    atomic_add4(to, x);
  } else {
    atomicAdd(to, x.x);
    atomicAdd(to + kLanes, x.y);
    atomicAdd(to + 2 * kLanes, x.z);
    atomicAdd(to + 3 * kLanes, x.w);
  }
}

// Exclusive prefix sums of bins, in place; returns their total. A thread owns four neighbours. `parts`: one number per warp.
__device__ __forceinline__ int scan_bins(int4* bins, int* parts) {
  const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int4 counts = bins[thread];
  const int own = counts.x + counts.y + counts.z + counts.w;
  int inclusive = own;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int other = __shfl_up_sync(kAll, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  if (lane == kWarp - 1) parts[warp] = inclusive;
  __syncthreads();
  int before = inclusive - own, total = 0;
#pragma unroll
  for (int i = 0; i < kTileThreads / kWarp; ++i) {
    if (i < warp) before += parts[i];
    total += parts[i];
  }
  bins[thread] = make_int4(before, before + counts.x, before + counts.x + counts.y, before + counts.x + counts.y + counts.z);
  return total;
}

template <typename V, int kDim, int kLevels>
__global__ void __launch_bounds__(kTileThreads, 4)
    tiles_kernel(const __grid_constant__ Layout g, const __grid_constant__ Inputs<V, float> in, const V* __restrict__ grad_output,
                 float* __restrict__ grad_value) {
  constexpr int kLanes = kDim / 4, kGroups = kTileThreads / kLanes;
  using Reader = PointReader<V, kFastPoints, kLevels>;
  constexpr int kMostLevels = Reader::kMostRounds;
  constexpr unsigned kRow = kLanes * sizeof(float4), kRows = kTileQueries * kRow;
  __shared__ float4 upstream[kTileQueries][kLanes];  // output gradients; a lane's four channels as add4() adds them
  __shared__ Entry entries[kEntries];
  __shared__ int4 bins[kBins / 4];
  __shared__ int parts[kTileThreads / kWarp], outside;
  __shared__ int2 own[kTileThreads];
  __shared__ float weights[kMostLevels][kTileThreads];  // of the thread's points
  int* const bin = &bins[0].x;
  const int thread = static_cast<int>(threadIdx.x), query = thread / kFastPoints, point = thread % kFastPoints;
  const int head = static_cast<int>(blockIdx.z), image = static_cast<int>(blockIdx.y);
  const Tile tile = find_tile(g, static_cast<int>(blockIdx.x), kTileSide);
  const int tile_width = g.width[tile.level], tile_height = g.height[tile.level];
  // Row of query i of the tile in (N, Q); -1 beyond the level's edge.
  const auto row_of = [&](int i) -> int {
    const int x = tile.x + i % kTileSide, y = tile.y + i / kTileSide;
    return x < tile_width && y < tile_height ? image * g.queries + g.start[tile.level] + y * tile_width + x : -1;
  };

#pragma unroll
  for (int i = thread; i < kTileQueries * kLanes; i += kTileThreads) {
    const int row = row_of(i / kLanes);
    float x[4] = {};
    if (row >= 0) read(grad_output + (static_cast<int64_t>(row) * g.heads + head) * kDim + i % kLanes * 4, x);
    if constexpr (kNeighbours) {
      upstream[i / kLanes][i % kLanes] = make_float4(x[0], x[1], x[2], x[3]);
    } else {
      float* const to = &upstream[i / kLanes][0].x;
#pragma unroll
      for (int c = 0; c < 4; ++c) to[(i % kLanes * 4 + c) % kLanes * 4 + (i % kLanes * 4 + c) / kLanes] = x[c];
    }
  }
  bins[thread] = make_int4(0, 0, 0, 0);
  if (thread == 0) outside = 0;

  // This thread's points are points `point` of `query` in all levels; the four threads of a query share its softmax.
  const bool exists = row_of(query) >= 0;
  const Reader reader(g, in, exists ? row_of(query) : row_of(0), head, point, exists, own);
  reader.read_weights(weights);

  const unsigned step = static_cast<unsigned>(g.heads) * kDim;
  const int group = thread / kLanes, lane = thread % kLanes;
  const float middle_x = (tile.x + kTileSide * 0.5f) / tile_width, middle_y = (tile.y + kTileSide * 0.5f) / tile_height;
  float* const slice = opaque(grad_value + (static_cast<int64_t>(image) * g.cells * g.heads + head) * kDim + lane * (kNeighbours ? 4 : 1));
  __syncthreads();
#pragma unroll 1
  for (int level = 0; level < reader.levels(); ++level) {
    const int width = g.width[level], height = g.height[level];
    // The window lies around the tile's middle, but inside the map.
    const int left = max(0, min(static_cast<int>(middle_x * width) - kWindow / 2, width - kWindow));
    const int upper = max(0, min(static_cast<int>(middle_y * height) - kWindow / 2, height - kWindow));

    const Sample sample = reader.sample(level);
    const float weight = weights[level][thread];
    const Place place = reader.place(sample, level);
    const Inside inside = find_inside(place, width, height);
    const float dx = place.dx, dy = place.dy;
    const float corner[4] = {weight * (1.f - dx) * (1.f - dy), weight * dx * (1.f - dy), weight * (1.f - dx) * dy, weight * dx * dy};
    const bool wanted[4] = {inside.upper && inside.left, inside.upper && inside.right, inside.lower && inside.left,
                            inside.lower && inside.right};
    int keys[4];  // bin | rank in it << 10; kOutside | rank; -1: no contribution
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int bin_x = place.x - left + c % 2, bin_y = place.y - upper + c / 2, own = bin_y * kWindow + bin_x;
      keys[c] = -1;
      if (!wanted[c]) continue;
      if ((static_cast<unsigned>(bin_x) | static_cast<unsigned>(bin_y)) < kWindow) {
        keys[c] = own | atomicAdd(bin + own, 1) << 10;
      } else {
        keys[c] = kOutside | atomicAdd(&outside, 1);
      }
    }
    __syncthreads();
    const int sorted = scan_bins(bins, parts), total = sorted + outside;
    __syncthreads();
    const unsigned cell = static_cast<unsigned>(place.y * width + place.x);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (keys[c] < 0) continue;
      const int at = keys[c] & kOutside ? sorted + (keys[c] ^ kOutside) : bin[keys[c] % kBins] + keys[c] / kBins;
      entries[at] = {corner[c], (cell + c % 2 + c / 2 * width) * kRows | query * kRow};
    }
    __syncthreads();
    bins[thread] = make_int4(0, 0, 0, 0);
    if (thread == 0) outside = 0;

    const int part = (total + kGroups - 1) / kGroups | 1;  // odd: groups of a warp read different banks
    const int begin = group * part, end = min(total, begin + part);
    float* const sums = opaque(advance(slice, g.start[level], step * sizeof(float)));
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    unsigned current = begin < end ? entries[begin].key : 0u;
#pragma unroll 4
    for (int k = begin; k < end; ++k) {
      const Entry entry = entries[k];
      const float4 x = *reinterpret_cast<const float4*>(reinterpret_cast<const char*>(upstream) + (entry.key % kRows | lane * sizeof(float4)));
      if ((entry.key ^ current) >= kRows) {
        add4<kLanes>(advance(sums, current / kRows, step * sizeof(float)), sum);
        sum = make_float4(0.f, 0.f, 0.f, 0.f);
      }
      current = entry.key;
      sum.x += entry.weight * x.x;
      sum.y += entry.weight * x.y;
      sum.z += entry.weight * x.z;
      sum.w += entry.weight * x.w;
    }
    if (begin < end) add4<kLanes>(advance(sums, current / kRows, step * sizeof(float)), sum);
    __syncthreads();
  }
}

}  // namespace

template <typename V>
cudaError_t launch_tiles(const Geometry& g, const Inputs<V, float>& in, const V* grad_output, float* grad_value, cudaStream_t stream) {
  const Layout plan = layout(g, kTileSide);
  return with_dim_and_levels(g, [&](auto dim, auto levels) {
    return launch(tiles_kernel<V, decltype(dim)::value, decltype(levels)::value>, item_blocks(g, plan, true, kTileQueries), kTileThreads,
                  stream, plan, in, grad_output, grad_value);
  });
}

template cudaError_t launch_tiles(const Geometry&, const Inputs<float, float>&, const float*, float*, cudaStream_t);
template cudaError_t launch_tiles(const Geometry&, const Inputs<c10::BFloat16, float>&, const c10::BFloat16*, float*, cudaStream_t);
template cudaError_t launch_tiles(const Geometry&, const Inputs<c10::Half, float>&, const c10::Half*, float*, cudaStream_t);

}  // namespace mrt::cuda
