// Calls the CPU kernels on the last image of a batch whose arrays have more than 2^32 elements, and on the same image alone; the results must
// be the same bytes. The arrays are address space only: of 1.4 TiB, the pages of one image are touched. Exit status 77: no such address space.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"

namespace {

using mrt::Sizes;
using mrt::cpu::baseline;
using mrt::cpu::Call;

// `images` arrays of `count` floats, zero. In a large batch all but the last image stay untouched, and cost nothing.
float* reserve(int64_t images, int64_t count) {
  void* memory = mmap(nullptr, images * count * sizeof(float), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::exit(77);
  return static_cast<float*>(memory);
}

struct Batch {
  Sizes sizes;
  int64_t value, references, points, weights, output;  // elements of one image
  float* arrays[9];

  explicit Batch(int64_t images) : sizes{images, 64, 2, 32, 256, 4, {{4, 4, 0}, {2, 8, 16}, {8, 2, 32}, {1, 16, 48}}} {
    value = sizes.cells * sizes.heads * sizes.dim;
    references = sizes.queries * static_cast<int64_t>(sizes.levels.size()) * 2;
    weights = sizes.queries * sizes.heads * sizes.samples();
    points = 2 * weights;
    output = sizes.queries * sizes.heads * sizes.dim;
    const int64_t counts[9] = {value, references, points, weights, output, output, value, points, weights};
    for (int i = 0; i < 9; ++i) arrays[i] = reserve(images, counts[i]);
  }

  float* last(int i, int64_t count) const { return arrays[i] + (sizes.batch - 1) * count; }

  void run(bool fused) const {
    unsigned state = 1;
    const auto fill = [&state](float* to, int64_t count, float low, float high) {
      for (int64_t i = 0; i < count; ++i) {
        state = state * 1664525u + 1013904223u;
        to[i] = low + (high - low) * static_cast<float>(state >> 8) / (1 << 24);
      }
    };
    fill(last(0, value), value, -1, 1);
    fill(last(1, references), references, 0, 1);
    fill(last(2, points), points, fused ? -2 : 0, fused ? 2 : 1);
    fill(last(3, weights), weights, 0, 1);
    fill(last(5, output), output, -1, 1);
    Call<float> call{&sizes,    arrays[0], fused ? arrays[1] : nullptr, arrays[2], arrays[3],
                     arrays[4], arrays[5], arrays[6],                   arrays[7], arrays[8]};
    const int64_t slices = sizes.batch * sizes.heads, first = slices - sizes.heads;
    baseline.forward(call, first * sizes.queries, slices * sizes.queries);
    baseline.backward(call, first, slices);
  }
};

bool same(const char* name, const float* one, const float* other, int64_t count) {
  bool moved = false;
  for (int64_t i = 0; i < count; ++i) moved = moved || one[i] != 0;
  const bool equal = moved && std::memcmp(one, other, count * sizeof(float)) == 0;
  if (!equal) std::printf("%s of the last image %s\n", name, moved ? "differs" : "was not written");
  return equal;
}

}  // namespace

int main() {
  const Batch alone(1), large((int64_t{1} << 22) + 1);
  bool equal = true;
  for (const bool fused : {false, true}) {
    alone.run(fused);
    large.run(fused);
    equal = same("output", alone.last(4, alone.output), large.last(4, large.output), large.output) && equal;
    equal = same("grad_value", alone.last(6, alone.value), large.last(6, large.value), large.value) && equal;
    equal = same("grad_points", alone.last(7, alone.points), large.last(7, large.points), large.points) && equal;
    equal = same("grad_weights", alone.last(8, alone.weights), large.last(8, large.weights), large.weights) && equal;
  }
  return equal ? 0 : 1;
}
