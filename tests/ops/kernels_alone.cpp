// Runs the CPU kernels of every instruction set that this processor has, without torch's libraries, and compares them with plain loops in
// double. So a compiler, or another processor's emulator, can be tested where there is no torch. Prints a line per instruction set and the
// largest error as a share of the largest value; exit status 1 if one is too large.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"

namespace {

using mrt::Level;
using mrt::Sizes;
using mrt::cpu::Call;
using mrt::cpu::Kernels;
using mrt::cpu::Storage;

unsigned state = 1;

double uniform() {  // in [0, 1)
  state = state * 1664525u + 1013904223u;
  return static_cast<double>(state >> 8) / (1 << 24);
}

// Numbers as a tensor stores them, and what they are.
template <typename T>
struct Array {
  Array(int64_t count, Storage storage) : storage(storage), bytes(count * (storage == Storage::kWide ? sizeof(T) : sizeof(uint16_t))) {}

  int64_t size() const { return bytes.size() / (storage == Storage::kWide ? sizeof(T) : sizeof(uint16_t)); }
  void* data() { return bytes.data(); }

  double at(int64_t i) const {
    if (storage == Storage::kWide) {
      T number;
      std::memcpy(&number, bytes.data() + i * sizeof(T), sizeof(T));
      return number;
    }
    uint16_t bits;
    std::memcpy(&bits, bytes.data() + i * sizeof(bits), sizeof(bits));
    const int mantissa_bits = storage == Storage::kHalf ? 10 : 7, bias = storage == Storage::kHalf ? 15 : 127;
    const int exponent = (bits & 0x7fff) >> mantissa_bits, mantissa = bits & ((1 << mantissa_bits) - 1);
    const int hidden = exponent == 0 ? 0 : 1 << mantissa_bits;
    const double size = std::ldexp(mantissa + hidden, std::max(exponent, 1) - bias - mantissa_bits);
    return bits & 0x8000 ? -size : size;
  }

  void fill() {  // between -2 and 2, none of them very small
    for (int64_t i = 0; i < size(); ++i) {
      if (storage == Storage::kWide) {
        const T number = static_cast<T>(4 * uniform() - 2);
        std::memcpy(bytes.data() + i * sizeof(T), &number, sizeof(T));
      } else {
        const int one = storage == Storage::kHalf ? 15 << 10 : 127 << 7, octave = one & -one;  // one's bits, and twice as much in bits
        const int low = static_cast<int>(uniform() * 4 * octave);
        const uint16_t bits = static_cast<uint16_t>((one - 3 * octave + low) | (uniform() < 0.5 ? 0x8000 : 0));
        std::memcpy(bytes.data() + i * sizeof(bits), &bits, sizeof(bits));
      }
    }
  }

  Storage storage;
  std::vector<char> bytes;
};

struct Expected {
  std::vector<double> output, value, points, weights;  // the output, and the inputs' gradients
};

template <typename T>
struct Case {
  Case(int64_t dim, int64_t queries, int64_t points_per_level, Storage storage, bool fused)
      : sizes{2, 0, 3, dim, queries, points_per_level, {{6, 9, 0}, {3, 5, 54}, {1, 1, 69}}},
        fused(fused),
        value((sizes.cells = 70) * sizes.batch * sizes.heads * dim, storage),
        upstream(sizes.batch * queries * sizes.heads * dim, storage),
        references(sizes.batch * queries * sizes.levels.size() * 2),
        points(sizes.batch * queries * sizes.heads * sizes.samples() * 2),
        weights(points.size() / 2) {
    value.fill();
    upstream.fill();
    for (T& share : references) share = static_cast<T>(uniform());
    for (T& weight : weights) weight = static_cast<T>(3 * uniform());
    for (size_t i = 0; i < points.size(); ++i) {
      // A tenth of a cell or more away from the lines where the gradient jumps; some points are outside.
      const double where = std::floor((side(i) + 2) * uniform()) - 1.5 + (0.1 + 0.8 * uniform()) - 0.5;
      points[i] = static_cast<T>(fused ? where - centre(i) : (where + 0.5) / side(i));
    }
  }

  // The sides and the reference of element i of points: (N, Q, M, L, P, 2).
  int64_t level(int64_t i) const { return i / 2 / sizes.points % static_cast<int64_t>(sizes.levels.size()); }
  double side(int64_t i) const { return i % 2 == 0 ? sizes.levels[level(i)].width : sizes.levels[level(i)].height; }
  double centre(int64_t i) const {
    const int64_t query = i / (sizes.heads * sizes.samples() * 2), levels = sizes.levels.size();
    return references[(query * levels + level(i)) * 2 + i % 2] * side(i) - 0.5;
  }
  double place(int64_t i) const { return fused ? centre(i) + points[i] : points[i] * side(i) - 0.5; }

  Expected expected() const {
    const int64_t samples = sizes.samples(), dim = sizes.dim, items = sizes.batch * sizes.queries * sizes.heads;
    Expected e;
    e.output.resize(upstream.size());
    e.value.resize(value.size());
    e.points.resize(points.size());
    e.weights.resize(weights.size());
    for (int64_t item = 0; item < items; ++item) {
      const int64_t head = item % sizes.heads, image = item / sizes.heads / sizes.queries;
      std::vector<double> attention(samples), along(samples);
      double total = 0, mean = 0;
      for (int64_t k = 0; k < samples; ++k) {
        attention[k] = fused ? std::exp(static_cast<double>(weights[item * samples + k])) : weights[item * samples + k];
        total += attention[k];
      }
      for (int64_t k = 0; k < samples; ++k) {
        if (fused) attention[k] /= total;
        const int64_t i = 2 * (item * samples + k);
        const Level& map = sizes.levels[level(i)];
        const double x = place(i), y = place(i + 1), left = std::floor(x), top = std::floor(y), dx = x - left, dy = y - top;
        double slope_x = 0, slope_y = 0;
        for (int corner = 0; corner < 4; ++corner) {
          const int right = corner % 2, low = corner / 2;
          const int64_t column = static_cast<int64_t>(left) + right, row = static_cast<int64_t>(top) + low;
          if (column < 0 || row < 0 || column >= map.width || row >= map.height) continue;
          const double share_x = right ? dx : 1 - dx, share_y = low ? dy : 1 - dy;
          const int64_t cell = ((image * sizes.cells + map.start + row * map.width + column) * sizes.heads + head) * dim;
          double product = 0;
          for (int64_t d = 0; d < dim; ++d) {
            e.output[item * dim + d] += attention[k] * share_x * share_y * value.at(cell + d);
            e.value[cell + d] += attention[k] * share_x * share_y * upstream.at(item * dim + d);
            product += upstream.at(item * dim + d) * value.at(cell + d);
          }
          along[k] += share_x * share_y * product;
          slope_x += (right ? 1 : -1) * share_y * product;
          slope_y += (low ? 1 : -1) * share_x * product;
        }
        e.points[i] = attention[k] * slope_x * (fused ? 1 : map.width);
        e.points[i + 1] = attention[k] * slope_y * (fused ? 1 : map.height);
        mean += attention[k] * along[k];
      }
      for (int64_t k = 0; k < samples; ++k) e.weights[item * samples + k] = fused ? attention[k] * (along[k] - mean) : along[k];
    }
    return e;
  }

  // The largest error of the kernels. In place where they can; with more than one part the gradient maps are combined.
  double error(const Kernels<T>& kernels, bool in_place, int64_t parts) {
    const Storage storage = value.storage;
    Array<T> output(upstream.size(), storage), grad_value(value.size(), storage);
    std::vector<T> grad_points(points.size()), grad_weights(weights.size()), maps;
    const int64_t slices = sizes.batch * sizes.heads, dim = sizes.dim;
    if (parts > 1) maps.resize(slices * parts * kernels.rows.passes(dim) * (sizes.cells + 1) * kernels.rows.padded(dim));
    Call<T> call{};
    call.sizes = &sizes;
    call.value = value.data();
    call.references = fused ? references.data() : nullptr;
    call.points = points.data();
    call.weights = weights.data();
    call.point_step = points.size() / (sizes.batch * sizes.queries);
    call.weight_step = weights.size() / (sizes.batch * sizes.queries);
    call.output = output.data();
    call.grad_output = upstream.data();
    call.grad_value = grad_value.data();
    call.grad_points = grad_points.data();
    call.grad_weights = grad_weights.data();
    call.storage = storage;
    call.in_place = in_place;
    call.parts = parts;
    call.part_grads = parts > 1 ? maps.data() : nullptr;
    kernels.forward(call, 0, slices * sizes.queries);
    kernels.backward(call, 0, slices * parts);
    if (parts > 1) kernels.combine(call, 0, slices * sizes.cells);
    const Expected e = expected();
    const auto stored = [](const Array<T>& array) { return [&array](int64_t i) { return array.at(i); }; };
    const double rounding = storage == Storage::kWide ? 0 : storage == Storage::kHalf ? 1. / 2048 : 1. / 256;  // of a number, once
    const auto plain = [](const std::vector<T>& numbers) { return [&numbers](int64_t i) { return static_cast<double>(numbers[i]); }; };
    return std::max({share(e.output, stored(output), rounding), share(e.value, stored(grad_value), rounding), share(e.points, plain(grad_points)),
                     share(e.weights, plain(grad_weights))});
  }

  template <typename Actual>
  static double share(const std::vector<double>& wanted, const Actual& actual, double rounding = 0) {
    double most = 0, worst = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
      const double difference = std::max(std::abs(actual(i) - wanted[i]) - rounding * std::abs(wanted[i]), 0.);
      most = std::max(most, std::abs(wanted[i]));
      worst = difference <= worst ? worst : difference;  // NaN stays
    }
    return worst / most;
  }

  Sizes sizes;
  bool fused;
  Array<T> value, upstream;
  std::vector<T> references, points, weights;
};

template <typename T>
bool check(const char* name, const Kernels<T>& kernels) {
  const double limits[3] = {sizeof(T) == sizeof(float) ? 3e-6 : 1e-13, 1e-5, 1e-5};  // beyond one rounding of 16-bit numbers
  double worst[3] = {};
  const int storages = sizeof(T) == sizeof(float) ? 3 : 1;
  for (int s = 0; s < storages; ++s) {
    const Storage storage = s == 0 ? Storage::kWide : s == 1 ? Storage::kBFloat16 : Storage::kHalf;
    for (const int64_t dim : {1, 5, 16, 24, 32, 64, 130}) {
      for (const int64_t points : {1, 3, 4}) {
        for (const bool fused : {false, true}) {
          Case<T> one(dim, dim == 5 ? 19 : 3, points, storage, fused);
          const bool can = kernels.rows.whole(dim) && mrt::cpu::reads_in_place<T>(dim / kernels.rows.lanes);
          for (const double error : {one.error(kernels, false, 1), one.error(kernels, false, 3), one.error(kernels, can, 1)}) {
            worst[s] = error <= worst[s] ? worst[s] : error;
          }
        }
      }
    }
  }
  bool good = true;
  for (int s = 0; s < storages; ++s) good = good && worst[s] <= limits[s];
  std::printf("%s %s: %.1e", good ? "ok" : "WRONG", name, worst[0]);
  if (storages > 1) std::printf(", bfloat16 %.1e, float16 %.1e", worst[1], worst[2]);
  std::printf("\n");
  return good;
}

}  // namespace

int main() {
  bool good = check("doubles", mrt::cpu::doubles);
  good = check("baseline", mrt::cpu::baseline) && good;
#ifdef MRT_X86_LEVELS
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) good = check("avx2", mrt::cpu::avx2) && good;
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) good = check("avx512", mrt::cpu::avx512) && good;
#endif
  return good ? 0 : 1;
}
