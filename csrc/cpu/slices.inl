// The CPU kernels, over vectors.inl and points.inl.
//
// One head of one image (a slice) is handled at a time. Its value map is copied into a compact buffer whose rows are padded to whole
// vectors, with one row of zeros at the end: a corner outside the map, or a point that is not finite, reads that row, so the inner loops
// have no branches and no tails whatever D is. In the backward pass the slice's gradient map is a second such buffer that only this thread
// writes (the last row collects what belongs nowhere): no atomics. Where there are fewer slices than threads, a slice's queries are divided
// into parts with a gradient map each, which `combine` sums.
//
// A decoder's few queries would not repay the copying: they read value's rows where they are (`in_place`), widened if they have 16 bits,
// and add to grad_value's, but not in 16 bits.

namespace mrt::cpu {
namespace {

// One thread's working memory.
template <typename T>
struct Scratch {
  Scratch(const Call<T>& call, int64_t row, int64_t blocks, bool backward)
      : rows(call.in_place ? 0 : (call.sizes->cells + 1) * row),
        grads(backward && !call.adds_in_place() && call.parts == 1 ? (call.sizes->cells + 1) * row : 0),
        spare(2 * row),
        dots(backward ? kTogether * blocks * kLanes<T> * 4 : 0),
        grad_attention(backward ? blocks * kLanes<T> : 0),
        points(kTogether * blocks) {
    std::memset(spare.get(), 0, 2 * row * sizeof(T));
    if (backward) std::memset(dots.get(), 0, kTogether * blocks * kLanes<T> * 4 * sizeof(T));
  }
  Buffer<T> rows, grads;     // the slice's value map and its gradient, and a row more each
  Buffer<T> spare;           // in place: the row of zeros, and the one for gradients that belong nowhere
  Buffer<T> dots;            // output gradient times corner value: (query, point, corner)
  Buffer<T> grad_attention;  // (point)
  Buffer<Points<T>> points;  // (query, block)
};

// A slice's queries [first, last) and channels [channel, channel + width), and where they are in the tensors.
struct Task {
  Task(const Sizes& sizes, int64_t slice, int64_t first, int64_t last)
      : slice(slice), first(first), last(last), image(slice / sizes.heads), head(slice % sizes.heads), step(sizes.heads * sizes.dim) {}
  int64_t slice, first, last, image, head;
  int64_t step;  // from a cell's (or query's) elements to the next one's
  int64_t channel = 0, width = 0;

  int64_t row(const Sizes& sizes, int64_t q) const { return image * sizes.queries + q; }
  int64_t item(const Sizes& sizes, int64_t q) const { return row(sizes, q) * sizes.heads + head; }
  int64_t cell(const Sizes& sizes, int64_t s) const { return (image * sizes.cells + s) * step + head * sizes.dim + channel; }
};

// Where value's rows are read: from the compact copy, or where they are, as numbers of T or of 16 bits.
enum class Reads { kCopied, kInPlace, kInPlaceNarrow };

// A map's rows: compact, the last one standing for "nowhere", or in place, with another row for that.
template <typename E, int V, bool kInPlace>
struct Map {
  E* rows;
  E* nowhere;
  int64_t step, cells;
  Storage storage = Storage::kWide;

  MRT_INLINE E* operator[](int64_t row) const {
    if constexpr (kInPlace) return row == cells ? nowhere : rows + row * step;
    return rows + row * (V * kLanes<std::remove_const_t<E>>);
  }

  // Vector v of a row.
  MRT_INLINE auto vector(const E* row, int v) const {
    if constexpr (std::is_same_v<std::remove_const_t<E>, uint16_t>) return load_numbers<float>(row, storage, v * kLanes<float>);
    else return load(row + v * kLanes<std::remove_const_t<E>>);
  }
};

// A task's channels of its value map, padded with zeros to V vectors a row, and the row of zeros.
template <typename T, int V>
void copy_slice(const Call<T>& call, const Task& task, T* rows) {
  const Sizes& sizes = *call.sizes;
  const int64_t size = sizes.batch * sizes.cells * task.step;
  for (int64_t s = 0; s < sizes.cells; ++s, rows += V * kLanes<T>) {
    Vector<T> row[V];
    load_row<T>(call.value, call.storage, task.cell(sizes, s), task.width, size, row);
    for (int v = 0; v < V; ++v) store(rows + v * kLanes<T>, row[v]);
  }
  std::memset(rows, 0, V * kLanes<T> * sizeof(T));
}

template <typename T, int V, Reads kReads>
auto value_map(const Call<T>& call, const Task& task, const Scratch<T>& scratch) {
  using E = std::conditional_t<kReads == Reads::kInPlaceNarrow, uint16_t, T>;
  using Rows = Map<const E, V, kReads != Reads::kCopied>;
  const int64_t cells = call.sizes->cells;
  if constexpr (kReads != Reads::kCopied) {
    const E* zeros = reinterpret_cast<const E*>(scratch.spare.get());
    return Rows{static_cast<const E*>(call.value) + task.cell(*call.sizes, 0), zeros, task.step, cells, call.storage};
  } else {
    copy_slice<T, V>(call, task, scratch.rows.get());
    return Rows{scratch.rows.get(), nullptr, task.step, cells};
  }
}

// Where a task adds value's gradient; the compact map starts with zeros.
template <typename T, int V, bool kInPlace>
Map<T, V, kInPlace> gradient_map(const Call<T>& call, const Task& task, const Scratch<T>& scratch, T* part_grads) {
  const int64_t cells = call.sizes->cells;
  constexpr int64_t row = V * kLanes<T>;
  if constexpr (kInPlace) {
    return {static_cast<T*>(call.grad_value) + task.cell(*call.sizes, 0), scratch.spare.get() + row, task.step, cells};
  }
  T* rows = part_grads == nullptr ? scratch.grads.get() : part_grads;
  std::memset(rows, 0, (cells + 1) * row * sizeof(T));
  return {rows, nullptr, task.step, cells};
}

template <typename T, int V, Reads kReads>
void forward_task(const Call<T>& call, Reader<T>& reader, const Task& task, const Scratch<T>& scratch) {
  const Sizes& sizes = *call.sizes;
  constexpr int lanes = kLanes<T>, chains = V <= 2 ? 4 : V <= 4 ? 2 : 1;  // independent additions, as many as there are registers for
  const int64_t samples = reader.samples(), blocks = reader.blocks();
  const auto rows = value_map<T, V, kReads>(call, task, scratch);
  for (int64_t q = task.first; q < task.last; q += kTogether) {
    const int64_t together = task.last - q < kTogether ? task.last - q : kTogether, item = task.item(sizes, q);
    reader.read(task.row(sizes, q), task.head, together, sizes.cells, scratch.points.get());
    for (int64_t j = 0; j < together; ++j) {
      Vector<T> sum[chains][V] = {};
      const Points<T>* p = scratch.points.get() + j * blocks;
      for (int64_t k = 0; k < samples; k += lanes, ++p) {
        const int count = static_cast<int>(samples - k < lanes ? samples - k : lanes);
        for (int i = 0; i < count; ++i) {
          for (int c = 0; c < 4; ++c) {
            const auto* corner = rows[p->row[c][i]];
            for (int v = 0; v < V; ++v) sum[c % chains][v] += p->corner_weight[c][i] * rows.vector(corner, v);
          }
        }
      }
      Vector<T> total[V];
      for (int v = 0; v < V; ++v) {
        total[v] = sum[0][v];
        for (int c = 1; c < chains; ++c) total[v] += sum[c][v];
      }
      store_row<T>(call.output, call.storage, (item + j * sizes.heads) * sizes.dim + task.channel, task.width, total);
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
  const auto put = [&call, first_pass](void* array, int64_t at, Vector<T> v, int64_t count) {
    if (!first_pass) {  // then they are wide
      const T* from = static_cast<const T*>(array) + at;
      v += count >= lanes ? load(from) : load_part(from, count, from);
    }
    store_numbers<T>(array, call.grad_storage, at, v, count);
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
    // Chosen, not only multiplied by zeros: a point outside has no gradient, were its weight or the output's gradient NaN.
    const Vector<T> none{};
    const Vector<T> along_weight = p->inside ? (1 - dy) * ((1 - dx) * ul + dx * ur) + dy * ((1 - dx) * ll + dx * lr) : none;
    Vector<T> along_x = p->inside ? p->weight * ((1 - dy) * (ur - ul) + dy * (lr - ll)) : none;
    Vector<T> along_y = p->inside ? p->weight * ((1 - dx) * (ll - ul) + dx * (lr - ur)) : none;
    if (call.references == nullptr) {
      along_x *= reader.width(k);
      along_y *= reader.height(k);
    }
    store(grad_attention + k, along_weight);
    mean += p->weight * along_weight;
    const int64_t at = 2 * (row * samples + k);
    put(call.grad_points, at, interleave<0>(along_x, along_y, Lanes<T>{}), 2 * (samples - k));
    put(call.grad_points, at + lanes, interleave<lanes / 2>(along_x, along_y, Lanes<T>{}), 2 * (samples - k) - lanes);
  }
  // Softmax: d logit = weight * (d weight - mean of d weight under the weights).
  mean = sum_of<T>(mean);
  for (int64_t k = 0; k < samples; k += lanes) {
    const Vector<T> grad = load(grad_attention + k);
    const Vector<T> own = call.references == nullptr ? grad : points[k / lanes].weight * (grad - mean);
    put(call.grad_weights, row * samples + k, own, samples - k);
  }
}

template <typename T, int V, Reads kReads>
void backward_task(const Call<T>& call, Reader<T>& reader, const Task& task, const Scratch<T>& scratch, T* part_grads) {
  const Sizes& sizes = *call.sizes;
  constexpr int lanes = kLanes<T>;
  const int64_t samples = reader.samples(), blocks = reader.blocks(), size = sizes.batch * sizes.queries * task.step;
  const int64_t upstream_bytes = call.storage == Storage::kWide ? sizeof(T) : sizeof(uint16_t);
  const auto rows = value_map<T, V, kReads>(call, task, scratch);
  const auto grads = gradient_map<T, V, kReads == Reads::kInPlace>(call, task, scratch, part_grads);
  for (int64_t q = task.first; q < task.last; q += kTogether) {
    const int64_t together = task.last - q < kTogether ? task.last - q : kTogether, item = task.item(sizes, q);
    reader.read(task.row(sizes, q), task.head, together, sizes.cells, scratch.points.get());
    for (int64_t j = 0; j < together; ++j) {
      const int64_t at = (item + j * sizes.heads) * sizes.dim + task.channel;
      prefetch(static_cast<const char*>(call.grad_output) + (at + kTogether * task.step) * upstream_bytes, task.width * upstream_bytes);
      Vector<T> upstream[V];
      load_row<T>(call.grad_output, call.storage, at, task.width, size, upstream);
      const Points<T>* p = scratch.points.get() + j * blocks;
      T* dots = scratch.dots.get() + j * blocks * lanes * 4;
      for (int64_t k = 0; k < samples; k += lanes, ++p) {
        const int count = static_cast<int>(samples - k < lanes ? samples - k : lanes);
        for (int i = 0; i < count; ++i) {
          Vector<T> products[4] = {};
          for (int c = 0; c < 4; ++c) {
            const auto* __restrict row = rows[p->row[c][i]];
            T* __restrict grad = grads[p->row[c][i]];
            for (int v = 0; v < V; ++v) {
              products[c] += upstream[v] * rows.vector(row, v);
              store(grad + v * lanes, load(grad + v * lanes) + p->corner_weight[c][i] * upstream[v]);
            }
          }
          sum_lanes(products, dots + (k + i) * 4);
        }
      }
    }
    for (int64_t j = 0; j < together; ++j) {
      store_gradients(call, reader, item + j * sizes.heads, task.channel == 0, scratch.points.get() + j * blocks,
                      scratch.dots.get() + j * blocks * lanes * 4, scratch.grad_attention.get());
    }
  }
  if (kReads == Reads::kInPlace || part_grads != nullptr) return;
  for (int64_t s = 0; s < sizes.cells; ++s) {
    Vector<T> grad[V];
    for (int v = 0; v < V; ++v) grad[v] = load(grads.rows + (s * V + v) * lanes);
    store_row<T>(call.grad_value, call.storage, task.cell(sizes, s), task.width, grad);
  }
}

// Calls body with the number of vectors that `width` channels need.
template <typename T, int V = 1, typename Body>
MRT_INLINE void with_vectors(int64_t width, const Body& body) {
  if constexpr (V == kMaxVectors<T>) {
    body.template operator()<V>();
  } else if (width <= V * kLanes<T>) {
    body.template operator()<V>();
  } else {
    with_vectors<T, V + 1>(width, body);
  }
}

template <typename T>
constexpr Rows kRows{kLanes<T>, kMaxVectors<T> * kLanes<T>};

// Calls body<V> for a task's channels, as many at a time as fit into V registers.
template <typename T, typename Body>
MRT_INLINE void in_passes(const Sizes& sizes, Task& task, const Body& body) {
  for (task.channel = 0; task.channel < sizes.dim; task.channel += kRows<T>.longest) {
    task.width = sizes.dim - task.channel < kRows<T>.longest ? sizes.dim - task.channel : kRows<T>.longest;
    with_vectors<T>(task.width, body);
  }
}

// Calls body with where value's rows are read.
template <typename T, int V, typename Body>
MRT_INLINE void with_reads(const Call<T>& call, const Body& body) {
  if constexpr (reads_in_place<T>(V)) {
    if (call.adds_in_place()) return body.template operator()<Reads::kInPlace>();
    if (call.in_place) return body.template operator()<Reads::kInPlaceNarrow>();
  }
  body.template operator()<Reads::kCopied>();
}

template <typename T>
void forward(const Call<T>& call, int64_t begin, int64_t end) {
  const Sizes& sizes = *call.sizes;
  Reader<T> reader(call);
  const Scratch<T> scratch(call, kRows<T>.padded(sizes.dim), reader.blocks(), false);
  while (begin < end) {
    const int64_t first = begin % sizes.queries;
    const int64_t last = first + (end - begin) < sizes.queries ? first + (end - begin) : sizes.queries;
    Task task(sizes, begin / sizes.queries, first, last);
    in_passes<T>(sizes, task, [&]<int V>() {
      with_reads<T, V>(call, [&]<Reads kReads>() { forward_task<T, V, kReads>(call, reader, task, scratch); });
    });
    begin += last - first;
  }
}

template <typename T>
int64_t part_offset(const Call<T>& call, int64_t index, int64_t channel) {
  const Rows rows = kRows<T>;
  return (index * rows.passes(call.sizes->dim) + channel / rows.longest) * (call.sizes->cells + 1) * rows.padded(call.sizes->dim);
}

template <typename T>
void backward(const Call<T>& call, int64_t begin, int64_t end) {
  const Sizes& sizes = *call.sizes;
  Reader<T> reader(call);
  const Scratch<T> scratch(call, kRows<T>.padded(sizes.dim), reader.blocks(), true);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t part = index % call.parts;
    Task task(sizes, index / call.parts, part * sizes.queries / call.parts, (part + 1) * sizes.queries / call.parts);
    in_passes<T>(sizes, task, [&]<int V>() {
      T* part_grads = call.parts == 1 ? nullptr : call.part_grads + part_offset(call, index, task.channel);
      with_reads<T, V>(call, [&]<Reads kReads>() { backward_task<T, V, kReads>(call, reader, task, scratch, part_grads); });
    });
  }
}

template <typename T>
void combine(const Call<T>& call, int64_t begin, int64_t end) {
  const Sizes& sizes = *call.sizes;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t slice = index / sizes.cells, s = index % sizes.cells;
    Task task(sizes, slice, 0, 0);
    in_passes<T>(sizes, task, [&]<int V>() {
      Vector<T> sum[V] = {};
      for (int64_t part = 0; part < call.parts; ++part) {
        const T* grad = call.part_grads + part_offset(call, slice * call.parts + part, task.channel) + s * V * kLanes<T>;
        for (int v = 0; v < V; ++v) sum[v] += load(grad + v * kLanes<T>);
      }
      store_row<T>(call.grad_value, call.storage, task.cell(sizes, s), task.width, sum);
    });
  }
}

}  // namespace

const Kernels<float> MRT_INSTRUCTION_SET{forward<float>, backward<float>, combine<float>, kRows<float>};
#ifdef MRT_WITH_DOUBLES
const Kernels<double> doubles{forward<double>, backward<double>, combine<double>, kRows<double>};
#endif

}  // namespace mrt::cpu
