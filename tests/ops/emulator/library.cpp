// The emulated kernels behind a C interface for ctypes. Null references: the plain op. dtypes: 0 float, 1 double, 2 bfloat16, 3 half.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "kernels.h"
#include "machine.h"

using namespace mrt::cuda;

struct Call {  // as in test_ops_cuda_emulated.py
  int64_t dtype, batch, cells, heads, dim, queries, points, levels, deterministic, seed;
  int64_t point_step, weight_step, storage, grad_storage;  // storages: as in kernels.h
  int64_t shapes[2 * kLevels];
  const void *value, *references, *where, *weights, *grad_output;
  void *output, *grad_value, *grad_references, *grad_where, *grad_weights, *sums, *bounds;
};

namespace {

Geometry geometry(const Call& call) {
  Geometry g{};
  g.batch = call.batch, g.cells = call.cells, g.heads = call.heads, g.dim = call.dim;
  g.queries = call.queries, g.points = call.points, g.levels = call.levels;
  g.samples = g.levels * g.points;
  g.items = g.batch * g.queries * g.heads;
  int start = 0;
  for (int64_t level = 0; level < g.levels; ++level) {
    g.height[level] = static_cast<int32_t>(call.shapes[2 * level]);
    g.width[level] = static_cast<int32_t>(call.shapes[2 * level + 1]);
    g.start[level] = start;
    start += g.height[level] * g.width[level];
  }
  return g;
}

template <typename V, typename R>
Inputs<V, R> inputs(const Call& call) {
  return {static_cast<const V*>(call.value), static_cast<const R*>(call.references), call.where, call.weights, call.point_step,
          call.weight_step, static_cast<Storage>(call.storage)};
}

template <typename V, typename R>
cudaError_t forward(const Call& call, const Geometry& g) {
  return launch_forward(g, inputs<V, R>(call), static_cast<V*>(call.output), nullptr);
}

template <typename V, typename R>
cudaError_t backward(const Call& call, const Geometry& g) {
  const Inputs<V, R> in = inputs<V, R>(call);
  const Gradients out{call.grad_where, call.grad_weights, static_cast<Storage>(call.grad_storage)};
  const V* upstream = static_cast<const V*>(call.grad_output);
  cudaError_t error;
  if (call.deterministic != 0) {
    error = launch_deterministic_backward(g, in, upstream, out, static_cast<V*>(call.grad_value),
                                          static_cast<unsigned long long*>(call.sums), static_cast<unsigned long long*>(call.bounds), nullptr);
  } else {
    error = launch_backward(g, in, upstream, out, static_cast<R*>(call.grad_value), nullptr);
  }
  if (error != cudaSuccess || call.grad_references == nullptr) return error;
  return launch_reference_gradient(g, static_cast<const R*>(out.points), static_cast<R*>(call.grad_references), nullptr);
}

void announce(const void* buffer, int64_t count, size_t bytes) {
  if (buffer != nullptr) emulator::machine.buffers.emplace_back(buffer, static_cast<size_t>(count) * bytes);
}

void announce_all(const Call& call, const Geometry& g) {
  const size_t wide = call.dtype == 1 ? 8 : 4, narrow = call.dtype >= 2 ? 2 : wide;
  const int64_t values = g.batch * g.cells * g.heads * g.dim, outputs = g.items * g.dim, samples = g.items * g.samples;
  emulator::machine.buffers.clear();
  announce(call.value, values, narrow);
  announce(call.references, g.batch * g.queries * g.levels * 2, wide);
  const int64_t last_row = g.batch * g.queries - 1, row = g.heads * g.samples;
  const size_t number = call.storage == 0 ? wide : 2;
  announce(call.where, samples == 0 ? 0 : last_row * call.point_step + row * 2, number);
  announce(call.weights, samples == 0 ? 0 : last_row * call.weight_step + row, number);
  announce(call.grad_output, outputs, narrow);
  announce(call.grad_value, values, call.deterministic != 0 ? narrow : wide);
  announce(call.sums, values, 8);
  announce(call.bounds, g.batch * g.heads, 8);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// 0, or a cudaError_t; emulated_error() has the words.
int emulated_run(const Call* call, int is_backward) {
  const Geometry g = geometry(*call);
  emulator::machine.seed(static_cast<uint64_t>(call->seed));
  emulator::machine.error.clear();
  emulator::machine.launches.clear();
  announce_all(*call, g);
  switch (call->dtype) {
    case 0: return is_backward ? backward<float, float>(*call, g) : forward<float, float>(*call, g);
    case 1: return is_backward ? backward<double, double>(*call, g) : forward<double, double>(*call, g);
    case 2: return is_backward ? backward<c10::BFloat16, float>(*call, g) : forward<c10::BFloat16, float>(*call, g);
    default: return is_backward ? backward<c10::Half, float>(*call, g) : forward<c10::Half, float>(*call, g);
  }
}

// A __shared__ variable: the compiler does not say where these are, cuda_emulator.py reads it from the library's symbols.
void emulated_shared(void* variable, int64_t bytes) { emulator::machine.shared.emplace_back(variable, bytes); }

const char* emulated_error() { return emulator::machine.error.c_str(); }

// (grid x, grid y, block x) of up to `most` launches of the last run; returns how many there were.
int emulated_launches(int64_t* sizes, int most) {
  int count = 0;
  for (const auto& [grid, block] : emulator::machine.launches) {
    if (count < most) sizes[3 * count] = grid.x, sizes[3 * count + 1] = grid.y, sizes[3 * count + 2] = block.x;
    ++count;
  }
  return count;
}
}
#pragma GCC visibility pop
