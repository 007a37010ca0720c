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

struct __align__(8) Entry {
  float weight;
  unsigned cell_and_query;  // cell of the level << 6 | query of the tile
};

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

template <typename V, int kDim>
__global__ void __launch_bounds__(kTileThreads, 4)
    tiles_kernel(const __grid_constant__ Geometry g, const Inputs<V, float> in, const V* __restrict__ grad_output,
                 float* __restrict__ grad_value) {
  constexpr int kLanes = kDim / 4, kGroups = kTileThreads / kLanes;
  __shared__ float4 upstream[kTileQueries][kLanes];
  __shared__ Entry entries[kEntries];
  __shared__ int4 bins[kBins / 4];
  __shared__ int parts[kTileThreads / kWarp], outside;
  int* const bin = &bins[0].x;
  const int thread = threadIdx.x, query = thread / kFastPoints, point = thread % kFastPoints;
  const int heads = static_cast<int>(g.heads), head = static_cast<int>(blockIdx.x) % heads;
  const int64_t image = blockIdx.y;
  const Tile tile = find_tile(g, static_cast<int>(blockIdx.x) / heads, kTileSide);
  const int tile_width = g.width[tile.level], tile_height = g.height[tile.level];
  // Row of query i of the tile in (N, Q); -1 beyond the level's edge.
  const auto row_of = [&](int i) -> int64_t {
    const int x = tile.x + i % kTileSide, y = tile.y + i / kTileSide;
    return x < tile_width && y < tile_height ? image * g.queries + g.start[tile.level] + y * tile_width + x : -1;
  };

  for (int i = thread; i < kTileQueries * kLanes; i += kTileThreads) {
    const int64_t row = row_of(i / kLanes);
    float x[4] = {};
    if (row >= 0) read(grad_output + (row * heads + head) * kDim + i % kLanes * 4, x);
    upstream[i / kLanes][i % kLanes] = make_float4(x[0], x[1], x[2], x[3]);
  }
  bins[thread] = make_int4(0, 0, 0, 0);
  if (thread == 0) outside = 0;

  // This thread's points are points `point` of `query` in all levels; the four threads of a query share its softmax.
  const bool exists = row_of(query) >= 0;
  const int64_t row = exists ? row_of(query) : row_of(0);
  PointReader<V, kFastPoints> reader(g, in, static_cast<int>(row), head, point);
  reader.softmax();

  const unsigned step = static_cast<unsigned>(heads) * kDim;
  const int group = thread / kLanes, lane = thread % kLanes;
  __syncthreads();
  for (int level = 0; level < g.levels; ++level) {
    const int width = g.width[level], height = g.height[level];
    // The window lies around the tile's middle, but inside the map.
    int left = static_cast<int>((tile.x + kTileSide * 0.5f) / tile_width * width) - kWindow / 2;
    int upper = static_cast<int>((tile.y + kTileSide * 0.5f) / tile_height * height) - kWindow / 2;
    left = max(0, min(left, width - kWindow));
    upper = max(0, min(upper, height - kWindow));

    const Sample sample = reader.sample(level);
    const float weight = reader.weight(sample);
    const Place place = exists ? reader.place(g, sample, level) : Place{0u, 0.f, 0.f};
    // The cell in `packed`: the upper left corner, or its neighbour where it is outside.
    const int first = static_cast<int>(place.packed & kCell) - g.start[level], first_y = first / width, first_x = first - first_y * width;
    float corner[4];
    int cells[4];
    int keys[4];  // bin | rank in it << 10; kOutside | rank; -1: no contribution
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const bool right = c % 2 == 1, lower = c / 2 == 1;
      corner[c] = weight * (right ? place.dx : 1.f - place.dx) * (lower ? place.dy : 1.f - place.dy);
      const unsigned needed = (right ? kRight : kLeft) | (lower ? kLower : kUpper);
      keys[c] = -1;
      cells[c] = 0;
      if ((place.packed & needed) != needed) continue;
      const int x = first_x + (right && (place.packed & kLeft) ? 1 : 0), y = first_y + (lower && (place.packed & kUpper) ? 1 : 0);
      cells[c] = y * width + x;
      const int bin_x = x - left, bin_y = y - upper;
      if (bin_x >= 0 && bin_x < kWindow && bin_y >= 0 && bin_y < kWindow) {
        keys[c] = (bin_y * kWindow + bin_x) | atomicAdd(bin + bin_y * kWindow + bin_x, 1) << 10;
      } else {
        keys[c] = kOutside | atomicAdd(&outside, 1);
      }
    }
    __syncthreads();
    const int inside = scan_bins(bins, parts), total = inside + outside;
    __syncthreads();
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (keys[c] < 0) continue;
      const int at = keys[c] & kOutside ? inside + (keys[c] ^ kOutside) : bin[keys[c] % kBins] + keys[c] / kBins;
      entries[at] = {corner[c], static_cast<unsigned>(cells[c] << 6 | query)};
    }
    __syncthreads();
    bins[thread] = make_int4(0, 0, 0, 0);
    if (thread == 0) outside = 0;

    const int part = (total + kGroups - 1) / kGroups | 1;  // odd: groups of a warp read different banks
    const int begin = group * part, end = min(total, begin + part);
    float* const sums = grad_value + ((image * g.cells + g.start[level]) * heads + head) * kDim + lane * 4;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    unsigned current = 0;
    for (int k = begin; k < end; ++k) {
      const Entry entry = entries[k];
      const float4 x = upstream[entry.cell_and_query % kTileQueries][lane];
      const unsigned cell = entry.cell_and_query / kTileQueries;
      if (cell != current) {
        if (k > begin) atomic_add4(sums + current * step, sum);
        sum = make_float4(0.f, 0.f, 0.f, 0.f);
        current = cell;
      }
      sum.x += entry.weight * x.x;
      sum.y += entry.weight * x.y;
      sum.z += entry.weight * x.z;
      sum.w += entry.weight * x.w;
    }
    if (begin < end) atomic_add4(sums + current * step, sum);
    __syncthreads();
  }
}

}  // namespace

template <typename V>
cudaError_t launch_tiles(const Geometry& g, const Inputs<V, float>& in, const V* grad_output, float* grad_value, cudaStream_t stream) {
  const dim3 blocks = item_blocks(g, true, kTileQueries);
  return with_dim(g.dim, [&](auto dim) {
    return launch(tiles_kernel<V, decltype(dim)::value>, blocks, kTileThreads, stream, g, in, grad_output, grad_value);
  });
}

template cudaError_t launch_tiles(const Geometry&, const Inputs<float, float>&, const float*, float*, cudaStream_t);
template cudaError_t launch_tiles(const Geometry&, const Inputs<c10::BFloat16, float>&, const c10::BFloat16*, float*, cudaStream_t);
template cudaError_t launch_tiles(const Geometry&, const Inputs<c10::Half, float>&, const c10::Half*, float*, cudaStream_t);

}  // namespace mrt::cuda
