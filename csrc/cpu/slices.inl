// The CPU kernels, over vectors.inl and points.inl.
//
// One head of one image (a slice) is handled at a time. Its value map is copied into a compact buffer whose rows are padded to whole
// vectors, with one row of zeros at the end: a corner outside the map, or a point that is not finite, reads that row, so the inner loops
// have no branches and no tails whatever D is. In the backward pass the slice's gradient map is a second such buffer that only this thread
// writes (the last row collects what belongs nowhere): no atomics.

namespace mrt::cpu {
namespace {

// One thread's working memory.
template <typename T>
struct Scratch {
  Scratch(const Sizes& sizes, int64_t row_length, int64_t blocks, bool backward)
      : rows((sizes.cells + 1) * row_length),
        grads(backward ? (sizes.cells + 1) * row_length : 0),
        dots(backward ? kTogether * blocks * kLanes<T> * 4 : 0),
        grad_attention(backward ? blocks * kLanes<T> : 0),
        points(kTogether * blocks) {
    if (backward) std::memset(dots.get(), 0, kTogether * blocks * kLanes<T> * 4 * sizeof(T));
  }
  Buffer<T> rows, grads;     // the slice's value map and its gradient, and a row more each
  Buffer<T> dots;            // output gradient times corner value: (query, point, corner)
  Buffer<T> grad_attention;  // (point)
  Buffer<Points<T>> points;  // (query, block)
};

// Channels [channel, channel + width) of a slice's value map, padded with zeros to V vectors a row, and the row of zeros.
template <typename T, int V>
void copy_slice(const Call<T>& call, int64_t slice, int64_t channel, int64_t width, T* rows) {
  const Sizes& sizes = *call.sizes;
  constexpr int64_t stride = V * kLanes<T>;
  const int64_t step = sizes.heads * sizes.dim;
  const T* from = call.value + slice / sizes.heads * sizes.cells * step + slice % sizes.heads * sizes.dim + channel;
  const T* end = call.value + sizes.batch * sizes.cells * step;
  for (int64_t cell = 0; cell < sizes.cells; ++cell, from += step, rows += stride) {
    Vector<T> row[V];
    load_row(from, width, end, row);
    for (int v = 0; v < V; ++v) store(rows + v * kLanes<T>, row[v]);
  }
  std::memset(rows, 0, stride * sizeof(T));
}

template <typename T, int V>
void forward_slice(const Call<T>& call, Reader<T>& reader, int64_t slice, int64_t first, int64_t last, int64_t channel, int64_t width,
                   const Scratch<T>& scratch) {
  const Sizes& sizes = *call.sizes;
  constexpr int lanes = kLanes<T>, chains = V <= 2 ? 4 : V <= 4 ? 2 : 1;  // independent additions, as many as there are registers for
  T* __restrict rows = scratch.rows.get();
  const int64_t samples = reader.samples(), blocks = reader.blocks();
  const int64_t first_row = slice / sizes.heads * sizes.queries * sizes.heads + slice % sizes.heads;  // the slice's item of query 0
  copy_slice<T, V>(call, slice, channel, width, rows);
  for (int64_t q = first; q < last; q += kTogether) {
    const int64_t together = last - q < kTogether ? last - q : kTogether, row = first_row + q * sizes.heads;
    for (int64_t j = 0; j < together; ++j) reader.read(row + j * sizes.heads, sizes.cells, scratch.points.get() + j * blocks);
    for (int64_t j = 0; j < together; ++j) {
      Vector<T> sum[chains][V] = {};
      const Points<T>* p = scratch.points.get() + j * blocks;
      for (int64_t k = 0; k < samples; k += lanes, ++p) {
        const int count = static_cast<int>(samples - k < lanes ? samples - k : lanes);
        for (int i = 0; i < count; ++i) {
          for (int c = 0; c < 4; ++c) {
            const T* corner = rows + static_cast<int64_t>(p->row[c][i]) * (V * lanes);
            for (int v = 0; v < V; ++v) sum[c % chains][v] += p->corner_weight[c][i] * load(corner + v * lanes);
          }
        }
      }
      Vector<T> total[V];
      for (int v = 0; v < V; ++v) {
        total[v] = sum[0][v];
        for (int c = 1; c < chains; ++c) total[v] += sum[c][v];
      }
      store_row(call.output + (row + j * sizes.heads) * sizes.dim + channel, width, total);
    }
  }
}

// Gradients of one item's points and weights, from the products of the output's gradient with each point's four corners. A further pass
// over channels adds to what the first one stored.
template <typename T>
MRT_INLINE void store_gradients(const Call<T>& call, const Reader<T>& reader, int64_t row, bool first_pass, const Points<T>* points,
                                const T* dots, T* grad_attention) {
  constexpr int lanes = kLanes<T>;
  const int64_t samples = reader.samples();
  const auto put = [first_pass](T* to, Vector<T> v, int64_t count) {
    if (!first_pass) v += count >= lanes ? load(to) : load_part(to, count, to);
    if (count >= lanes) {
      store(to, v);
    } else if (count > 0) {
      store_part(to, v, count);
    }
  };
  Vector<T> mean{};
  const Points<T>* p = points;
  for (int64_t k = 0; k < samples; k += lanes, ++p, dots += 4 * lanes) {
    const Vector<T> quarter[4] = {load(dots), load(dots + lanes), load(dots + 2 * lanes), load(dots + 3 * lanes)};
    const Vector<T> left[2] = {every_second<0>(quarter[0], quarter[1], Lanes<T>{}), every_second<0>(quarter[2], quarter[3], Lanes<T>{})};
    const Vector<T> right[2] = {every_second<1>(quarter[0], quarter[1], Lanes<T>{}), every_second<1>(quarter[2], quarter[3], Lanes<T>{})};
    const Vector<T> ul = every_second<0>(left[0], left[1], Lanes<T>{}), ll = every_second<1>(left[0], left[1], Lanes<T>{});
    const Vector<T> ur = every_second<0>(right[0], right[1], Lanes<T>{}), lr = every_second<1>(right[0], right[1], Lanes<T>{});
    const Vector<T> dx = p->dx, dy = p->dy;
    const Vector<T> along_weight = (1 - dy) * ((1 - dx) * ul + dx * ur) + dy * ((1 - dx) * ll + dx * lr);
    Vector<T> along_x = p->weight * ((1 - dy) * (ur - ul) + dy * (lr - ll)), along_y = p->weight * ((1 - dx) * (ll - ul) + dx * (lr - ur));
    if (call.references == nullptr) {
      along_x *= reader.width(k);
      along_y *= reader.height(k);
    }
    store(grad_attention + k, along_weight);
    mean += p->weight * along_weight;
    T* to = call.grad_points + 2 * (row * samples + k);
    put(to, interleave<0>(along_x, along_y, Lanes<T>{}), 2 * (samples - k));
    put(to + lanes, interleave<lanes / 2>(along_x, along_y, Lanes<T>{}), 2 * (samples - k) - lanes);
  }
  // Softmax: d logit = weight * (d weight - mean of d weight under the weights).
  mean = sum_of<T>(mean);
  for (int64_t k = 0; k < samples; k += lanes) {
    const Vector<T> grad = load(grad_attention + k);
    put(call.grad_weights + row * samples + k, call.references == nullptr ? grad : points[k / lanes].weight * (grad - mean), samples - k);
  }
}

template <typename T, int V>
void backward_slice(const Call<T>& call, Reader<T>& reader, int64_t slice, int64_t channel, int64_t width, const Scratch<T>& scratch) {
  const Sizes& sizes = *call.sizes;
  constexpr int lanes = kLanes<T>;
  T *__restrict rows = scratch.rows.get(), *__restrict grads = scratch.grads.get();
  const int64_t samples = reader.samples(), blocks = reader.blocks(), step = sizes.heads * sizes.dim;
  const int64_t first_row = slice / sizes.heads * sizes.queries * sizes.heads + slice % sizes.heads;
  const T* end = call.grad_output + sizes.batch * sizes.queries * step;
  copy_slice<T, V>(call, slice, channel, width, rows);
  std::memset(grads, 0, (sizes.cells + 1) * V * lanes * sizeof(T));
  for (int64_t q = 0; q < sizes.queries; q += kTogether) {
    const int64_t together = sizes.queries - q < kTogether ? sizes.queries - q : kTogether, row = first_row + q * sizes.heads;
    for (int64_t j = 0; j < together; ++j) reader.read(row + j * sizes.heads, sizes.cells, scratch.points.get() + j * blocks);
    for (int64_t j = 0; j < together; ++j) {
      const T* from = call.grad_output + (row + j * sizes.heads) * sizes.dim + channel;
      prefetch(from + kTogether * step, width);
      Vector<T> upstream[V];
      load_row(from, width, end, upstream);
      const Points<T>* p = scratch.points.get() + j * blocks;
      T* dots = scratch.dots.get() + j * blocks * lanes * 4;
      for (int64_t k = 0; k < samples; k += lanes, ++p) {
        const int count = static_cast<int>(samples - k < lanes ? samples - k : lanes);
        for (int i = 0; i < count; ++i) {
          Vector<T> products[4] = {};
          for (int c = 0; c < 4; ++c) {
            const int64_t at = static_cast<int64_t>(p->row[c][i]) * (V * lanes);
            for (int v = 0; v < V; ++v) {
              products[c] += upstream[v] * load(rows + at + v * lanes);
              store(grads + at + v * lanes, load(grads + at + v * lanes) + p->corner_weight[c][i] * upstream[v]);
            }
          }
          sum_lanes(products, dots + (k + i) * 4);
        }
      }
    }
    for (int64_t j = 0; j < together; ++j) {
      store_gradients(call, reader, row + j * sizes.heads, channel == 0, scratch.points.get() + j * blocks,
                      scratch.dots.get() + j * blocks * lanes * 4, scratch.grad_attention.get());
    }
  }
  T* to = call.grad_value + slice / sizes.heads * sizes.cells * step + slice % sizes.heads * sizes.dim + channel;
  for (int64_t cell = 0; cell < sizes.cells; ++cell) {
    Vector<T> grad[V];
    for (int v = 0; v < V; ++v) grad[v] = load(grads + (cell * V + v) * lanes);
    store_row(to + cell * step, width, grad);
  }
}

// Calls body with the number of vectors that `width` channels need.
template <typename T, int V = 1, typename Body>
MRT_INLINE void with_vectors(int64_t width, const Body& body) {
  if constexpr (V == kMaxVectors) {
    body.template operator()<V>();
  } else if (width <= V * kLanes<T>) {
    body.template operator()<V>();
  } else {
    with_vectors<T, V + 1>(width, body);
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
  Reader<T> reader(call);
  const Scratch<T> scratch(sizes, pass, reader.blocks(), false);
  while (begin < end) {
    const int64_t slice = begin / sizes.queries, first = begin % sizes.queries;
    const int64_t last = first + (end - begin) < sizes.queries ? first + (end - begin) : sizes.queries;
    for (int64_t channel = 0; channel < sizes.dim; channel += pass) {
      const int64_t width = sizes.dim - channel < pass ? sizes.dim - channel : pass;
      with_vectors<T>(width, [&]<int V>() { forward_slice<T, V>(call, reader, slice, first, last, channel, width, scratch); });
    }
    begin += last - first;
  }
}

template <typename T>
void backward(const Call<T>& call, int64_t begin, int64_t end) {
  const Sizes& sizes = *call.sizes;
  const int64_t pass = row_length<T>(sizes.dim);
  Reader<T> reader(call);
  const Scratch<T> scratch(sizes, pass, reader.blocks(), true);
  for (int64_t slice = begin; slice < end; ++slice) {
    for (int64_t channel = 0; channel < sizes.dim; channel += pass) {
      const int64_t width = sizes.dim - channel < pass ? sizes.dim - channel : pass;
      with_vectors<T>(width, [&]<int V>() { backward_slice<T, V>(call, reader, slice, channel, width, scratch); });
    }
  }
}

}  // namespace

const InstructionSet MRT_INSTRUCTION_SET{{forward<float>, backward<float>}, {forward<double>, backward<double>}};

}  // namespace mrt::cpu
