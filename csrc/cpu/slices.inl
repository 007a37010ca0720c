// The CPU kernels. Included once per instruction set (baseline.cpp, avx2.cpp, avx512.cpp), each time into an unnamed namespace of its own.
//
// One head of one image (a slice) is handled at a time. Its value map is copied into a compact buffer whose rows are padded to whole
// vectors, with one row of zeros at the end: a corner outside the map, or a point that is not finite, reads that row, so the inner loops
// have no branches and no tails whatever D is. In the backward pass the slice's gradient map is a second such buffer that only this thread
// writes (the last row collects what belongs nowhere): no atomics.

namespace mrt::cpu {
namespace {

constexpr int kBlock = 16;      // sampling points prepared together: one AVX-512 register of floats
constexpr int kMaxVectors = 4;  // vectors per row kept in registers; wider heads are done in several passes over the channels

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(64)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int kLanes = 64 / sizeof(T);

#define MRT_INLINE inline __attribute__((always_inline))

template <typename T>
MRT_INLINE Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T>
MRT_INLINE void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

// The sums of four vectors' lanes.
MRT_INLINE void sum_lanes(const Vector<float> (&s)[4], float (&sums)[4]) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  Quarter q[4];
  for (int c = 0; c < 4; ++c) {
    const Half h = __builtin_shufflevector(s[c], s[c], 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(s[c], s[c], 8, 9, 10, 11, 12, 13, 14, 15);
    q[c] = __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
  }
  const Quarter ab = __builtin_shufflevector(q[0], q[1], 0, 4, 1, 5) + __builtin_shufflevector(q[0], q[1], 2, 6, 3, 7);
  const Quarter cd = __builtin_shufflevector(q[2], q[3], 0, 4, 1, 5) + __builtin_shufflevector(q[2], q[3], 2, 6, 3, 7);
  const Quarter all = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  std::memcpy(sums, &all, sizeof(all));
}

MRT_INLINE void sum_lanes(const Vector<double> (&s)[4], double (&sums)[4]) {
  for (int c = 0; c < 4; ++c) {
    sums[c] = 0;
    for (int i = 0; i < kLanes<double>; ++i) sums[c] += s[c][i];
  }
}

// exp(x) for x <= 0, in a form the compiler vectorises: x = n ln 2 + r, Taylor series for exp(r), n into the exponent. 1 ulp or so.
MRT_INLINE float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  const int32_t n = static_cast<int32_t>(x * 1.44269504f - 0.5f);  // rounds to nearest: x is not positive
  const float r = (x - static_cast<float>(n) * 0.693359375f) - static_cast<float>(n) * -2.12194440e-4f;
  float e = 1.0f / 5040;
  e = e * r + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const int32_t exponent = (n + 127) << 23;
  float scale;
  std::memcpy(&scale, &exponent, sizeof(scale));
  return e * scale;
}
MRT_INLINE double exponential(double x) { return std::exp(x); }

// Aligned memory for one thread.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{64}))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t{64}); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

// What a block of sampling points needs: attention weight, distance from the upper left corner, and per corner its row and weight.
template <typename T>
struct Points {
  alignas(64) T weight[kBlock], dx[kBlock], dy[kBlock];
  alignas(64) T corner_weight[4][kBlock];
  alignas(64) int32_t row[4][kBlock];  // corners: upper left, upper right, lower left, lower right
};

// Reads one (query, head) item's inputs and turns them into Points, block by block.
template <typename T>
class Item {
 public:
  explicit Item(const Call<T>& call)
      : call_(call),
        samples_(call.sizes->samples()),
        padded_((samples_ + kBlock - 1) / kBlock * kBlock),
        reals_(padded_ * 5),
        ints_(padded_ * 2),
        width_(reals_.get()),
        height_(width_ + padded_),
        x_(height_ + padded_),
        y_(x_ + padded_),
        attention_(y_ + padded_),
        start_(ints_.get()),
        columns_(start_ + padded_) {
    const Sizes& sizes = *call.sizes;
    for (int64_t k = 0; k < padded_; ++k) {
      const bool real = k < samples_;
      const Level level = real ? sizes.levels[k / sizes.points] : Level{0, 0, 0};
      width_[k] = real ? level.width : T(-2);  // nothing lies inside a map of negative width
      height_[k] = level.height;
      start_[k] = level.start;
      columns_[k] = level.width;
      x_[k] = y_[k] = attention_[k] = 0;
    }
  }

  int64_t samples() const { return samples_; }
  const T* attention() const { return attention_; }
  T width(int64_t k) const { return width_[k]; }
  T height(int64_t k) const { return height_[k]; }

  // Coordinates in cells (0 = centre of the first cell) and attention weights of item `row` = (n * Q + q) * M + m.
  MRT_INLINE void read(int64_t row) {
    const Sizes& sizes = *call_.sizes;
    const T* points = call_.points + row * samples_ * 2;
    const T* weights = call_.weights + row * samples_;
    if (call_.references == nullptr) {
      for (int64_t k = 0; k < samples_; ++k) {
        x_[k] = points[2 * k] * width_[k] - T(0.5);
        y_[k] = points[2 * k + 1] * height_[k] - T(0.5);
        attention_[k] = weights[k];
      }
      return;
    }
    const int64_t levels = sizes.levels.size();
    const T* reference = call_.references + row / sizes.heads * levels * 2;
    for (int64_t l = 0, k = 0; l < levels; ++l) {
      const T x = reference[2 * l] * width_[k] - T(0.5), y = reference[2 * l + 1] * height_[k] - T(0.5);
      for (int64_t p = 0; p < sizes.points; ++p, ++k) {
        x_[k] = x + points[2 * k];
        y_[k] = y + points[2 * k + 1];
      }
    }
    T largest = weights[0];
    for (int64_t k = 1; k < samples_; ++k) largest = weights[k] > largest ? weights[k] : largest;
    T total = 0;
    for (int64_t k = 0; k < samples_; ++k) attention_[k] = exponential(weights[k] - largest);
    for (int64_t k = 0; k < samples_; ++k) total += attention_[k];
    const T scale = 1 / total;
    for (int64_t k = 0; k < samples_; ++k) attention_[k] *= scale;
  }

  // Points first .. first + kBlock - 1 of the item just read; `nowhere` is the row of zeros.
  MRT_INLINE void locate(int64_t first, int32_t nowhere, Points<T>& p) const {
    for (int i = 0; i < kBlock; ++i) {
      const int64_t k = first + i;
      const bool inside = (x_[k] > -1) & (x_[k] < width_[k]) & (y_[k] > -1) & (y_[k] < height_[k]);  // false for NaN
      const T x = inside ? x_[k] : T(0), y = inside ? y_[k] : T(0), weight = attention_[k];
      int32_t x0 = static_cast<int32_t>(x), y0 = static_cast<int32_t>(y);
      x0 -= x < static_cast<T>(x0);  // truncation to floor
      y0 -= y < static_cast<T>(y0);
      const T dx = x - static_cast<T>(x0), dy = y - static_cast<T>(y0);
      const bool left = inside & (x0 >= 0), right = inside & (static_cast<T>(x0 + 1) < width_[k]);
      const bool upper = y0 >= 0, lower = static_cast<T>(y0 + 1) < height_[k];
      const int32_t row = start_[k] + y0 * columns_[k] + x0;
      p.weight[i] = weight;
      p.dx[i] = dx;
      p.dy[i] = dy;
      p.row[0][i] = left & upper ? row : nowhere;
      p.row[1][i] = right & upper ? row + 1 : nowhere;
      p.row[2][i] = left & lower ? row + columns_[k] : nowhere;
      p.row[3][i] = right & lower ? row + columns_[k] + 1 : nowhere;
      p.corner_weight[0][i] = weight * (1 - dx) * (1 - dy);
      p.corner_weight[1][i] = weight * dx * (1 - dy);
      p.corner_weight[2][i] = weight * (1 - dx) * dy;
      p.corner_weight[3][i] = weight * dx * dy;
    }
  }

 private:
  const Call<T>& call_;
  int64_t samples_, padded_;
  Buffer<T> reals_;
  Buffer<int32_t> ints_;
  T *width_, *height_, *x_, *y_, *attention_;
  int32_t *start_, *columns_;
};

// Channels [channel, channel + width) of a slice's value map, padded with zeros to V vectors a row, and the row of zeros.
template <typename T, int V>
void copy_slice(const Call<T>& call, int64_t slice, int64_t channel, int64_t width, T* rows) {
  const Sizes& sizes = *call.sizes;
  constexpr int64_t stride = V * kLanes<T>;
  const int64_t step = sizes.heads * sizes.dim;
  const T* from = call.value + slice / sizes.heads * sizes.cells * step + slice % sizes.heads * sizes.dim + channel;
  for (int64_t cell = 0; cell < sizes.cells; ++cell, from += step, rows += stride) {
    if (width == stride) {
      std::memcpy(rows, from, stride * sizeof(T));
    } else {
      for (int64_t i = 0; i < stride; ++i) rows[i] = i < width ? from[i] : T(0);
    }
  }
  std::memset(rows, 0, stride * sizeof(T));
}

template <typename T, int V>
void forward_slice(const Call<T>& call, Item<T>& item, int64_t slice, int64_t first, int64_t last, int64_t channel, int64_t width, T* rows) {
  const Sizes& sizes = *call.sizes;
  constexpr int lanes = kLanes<T>;
  const int32_t nowhere = static_cast<int32_t>(sizes.cells);
  copy_slice<T, V>(call, slice, channel, width, rows);
  Points<T> p;
  for (int64_t q = first; q < last; ++q) {
    const int64_t row = (slice / sizes.heads * sizes.queries + q) * sizes.heads + slice % sizes.heads;
    item.read(row);
    Vector<T> sum[4][V] = {};  // one per corner: four independent chains of additions
    for (int64_t k = 0; k < item.samples(); k += kBlock) {
      item.locate(k, nowhere, p);
      const int count = static_cast<int>(item.samples() - k < kBlock ? item.samples() - k : kBlock);
      for (int i = 0; i < count; ++i) {
        for (int c = 0; c < 4; ++c) {
          const T* corner = rows + static_cast<int64_t>(p.row[c][i]) * (V * lanes);
          for (int v = 0; v < V; ++v) sum[c][v] += p.corner_weight[c][i] * load(corner + v * lanes);
        }
      }
    }
    T* to = call.output + row * sizes.dim + channel;
    for (int v = 0; v < V; ++v) {
      const Vector<T> total = (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]);
      const int64_t left = width - v * lanes;
      if (left >= lanes) {
        store(to + v * lanes, total);
      } else if (left > 0) {
        std::memcpy(to + v * lanes, &total, left * sizeof(T));
      }
    }
  }
}

template <typename T, int V>
void backward_slice(const Call<T>& call, Item<T>& item, int64_t slice, int64_t channel, int64_t width, T* rows, T* grads, T* grad_attention) {
  const Sizes& sizes = *call.sizes;
  constexpr int lanes = kLanes<T>;
  const int32_t nowhere = static_cast<int32_t>(sizes.cells);
  const int64_t samples = item.samples();
  const bool fused = call.references != nullptr, first_pass = channel == 0;
  copy_slice<T, V>(call, slice, channel, width, rows);
  std::memset(grads, 0, (sizes.cells + 1) * V * lanes * sizeof(T));
  Points<T> p;
  alignas(64) T dots[kBlock][4] = {};  // output gradient times each corner's value
  for (int64_t q = 0; q < sizes.queries; ++q) {
    const int64_t row = (slice / sizes.heads * sizes.queries + q) * sizes.heads + slice % sizes.heads;
    alignas(64) T padded[V * lanes] = {};
    std::memcpy(padded, call.grad_output + row * sizes.dim + channel, width * sizeof(T));
    Vector<T> upstream[V];
    for (int v = 0; v < V; ++v) upstream[v] = load(padded + v * lanes);
    item.read(row);
    T* grad_points = call.grad_points + row * samples * 2;
    for (int64_t k = 0; k < samples; k += kBlock) {
      item.locate(k, nowhere, p);
      const int count = static_cast<int>(samples - k < kBlock ? samples - k : kBlock);
      for (int i = 0; i < count; ++i) {
        Vector<T> products[4] = {};
        for (int c = 0; c < 4; ++c) {
          const int64_t at = static_cast<int64_t>(p.row[c][i]) * (V * lanes);
          for (int v = 0; v < V; ++v) {
            products[c] += upstream[v] * load(rows + at + v * lanes);
            store(grads + at + v * lanes, load(grads + at + v * lanes) + p.corner_weight[c][i] * upstream[v]);
          }
        }
        sum_lanes(products, dots[i]);
      }
      alignas(64) T grad_x[kBlock], grad_y[kBlock], grad_weight[kBlock];
      for (int i = 0; i < kBlock; ++i) {
        const T ul = dots[i][0], ur = dots[i][1], ll = dots[i][2], lr = dots[i][3], dx = p.dx[i], dy = p.dy[i];
        grad_weight[i] = (1 - dy) * ((1 - dx) * ul + dx * ur) + dy * ((1 - dx) * ll + dx * lr);
        grad_x[i] = p.weight[i] * ((1 - dy) * (ur - ul) + dy * (lr - ll)) * (fused ? T(1) : item.width(k + i));
        grad_y[i] = p.weight[i] * ((1 - dx) * (ll - ul) + dx * (lr - ur)) * (fused ? T(1) : item.height(k + i));
      }
      for (int i = 0; i < count; ++i) {
        grad_attention[k + i] = grad_weight[i];
        grad_points[2 * (k + i)] = first_pass ? grad_x[i] : grad_points[2 * (k + i)] + grad_x[i];
        grad_points[2 * (k + i) + 1] = first_pass ? grad_y[i] : grad_points[2 * (k + i) + 1] + grad_y[i];
      }
    }
    T mean = 0;  // softmax: d logit = weight * (d weight - mean of d weight under the weights)
    if (fused) {
      for (int64_t k = 0; k < samples; ++k) mean += item.attention()[k] * grad_attention[k];
    }
    T* grad_weights = call.grad_weights + row * samples;
    for (int64_t k = 0; k < samples; ++k) {
      const T grad = fused ? item.attention()[k] * (grad_attention[k] - mean) : grad_attention[k];
      grad_weights[k] = first_pass ? grad : grad_weights[k] + grad;
    }
  }
  const int64_t step = sizes.heads * sizes.dim;
  T* to = call.grad_value + slice / sizes.heads * sizes.cells * step + slice % sizes.heads * sizes.dim + channel;
  for (int64_t cell = 0; cell < sizes.cells; ++cell) std::memcpy(to + cell * step, grads + cell * V * lanes, width * sizeof(T));
}

// Calls body(std::integral_constant-like V) with the vectors needed for `width` channels.
template <typename T, typename Body>
MRT_INLINE void with_vectors(int64_t width, const Body& body) {
  if (width <= kLanes<T>) {
    body.template operator()<1>();
  } else if (width <= 2 * kLanes<T>) {
    body.template operator()<2>();
  } else if (width <= 3 * kLanes<T>) {
    body.template operator()<3>();
  } else {
    body.template operator()<4>();
  }
}

template <typename T>
int64_t row_length(int64_t dim) {
  const int64_t vectors = (dim + kLanes<T> - 1) / kLanes<T>;
  return (vectors < kMaxVectors ? vectors : kMaxVectors) * kLanes<T>;
}

template <typename T>
void forward(const Call<T>& call, int64_t begin, int64_t end) {
  const Sizes& sizes = *call.sizes;
  const int64_t pass = row_length<T>(sizes.dim);
  const Buffer<T> rows((sizes.cells + 1) * pass);
  Item<T> item(call);
  while (begin < end) {
    const int64_t slice = begin / sizes.queries, first = begin % sizes.queries;
    const int64_t last = first + (end - begin) < sizes.queries ? first + (end - begin) : sizes.queries;
    for (int64_t channel = 0; channel < sizes.dim; channel += pass) {
      const int64_t width = sizes.dim - channel < pass ? sizes.dim - channel : pass;
      with_vectors<T>(width, [&]<int V>() { forward_slice<T, V>(call, item, slice, first, last, channel, width, rows.get()); });
    }
    begin += last - first;
  }
}

template <typename T>
void backward(const Call<T>& call, int64_t begin, int64_t end) {
  const Sizes& sizes = *call.sizes;
  const int64_t pass = row_length<T>(sizes.dim);
  const Buffer<T> rows((sizes.cells + 1) * pass), grads((sizes.cells + 1) * pass), grad_attention(sizes.samples());
  Item<T> item(call);
  for (int64_t slice = begin; slice < end; ++slice) {
    for (int64_t channel = 0; channel < sizes.dim; channel += pass) {
      const int64_t width = sizes.dim - channel < pass ? sizes.dim - channel : pass;
      with_vectors<T>(width, [&]<int V>() {
        backward_slice<T, V>(call, item, slice, channel, width, rows.get(), grads.get(), grad_attention.get());
      });
    }
  }
}

}  // namespace

const InstructionSet MRT_INSTRUCTION_SET{{forward<float>, backward<float>}, {forward<double>, backward<double>}};

}  // namespace mrt::cpu
