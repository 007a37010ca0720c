// From an item's inputs to its sampling points: softmax, location arithmetic, the four corners and their weights.

namespace mrt::cpu {
namespace {

constexpr int kTogether = 8;  // queries prepared together, step by step: their chains of dependent instructions overlap

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

// What is known of one vector of sampling points: attention weight, distance from the upper left corner, whether any corner is in the map
// (all bits set, or none), and per corner (upper left, upper right, lower left, lower right) its row in the slice's buffer and its weight.
template <typename T>
struct Points {
  Vector<T> weight, dx, dy;
  Integers<T> inside;
  alignas(64) T corner_weight[4][kLanes<T>];
  alignas(64) Integer<T> row[4][kLanes<T>];
};

// Reads items (a head of a query each) and turns them into Points, a vector at a time. Inputs are read in whole vectors, past the item's
// end if L * P is no multiple of their length: what is read there lies "outside" its map of negative width, and gets no attention.
// Inputs of 16 bits are widened as they are read; locations are computed in T whatever they are.
template <typename T>
class Reader {
 public:
  explicit Reader(const Call<T>& call)
      : call_(call),
        samples_(call.sizes->samples()),
        padded_((samples_ + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        bytes_(call.point_storage == Storage::kWide ? sizeof(T) : sizeof(uint16_t)),
        points_end_(end_of(call, call.point_step, 2 * samples_)),
        weights_end_(end_of(call, call.weight_step, samples_)),
        numbers_(padded_ * (5 + kTogether) + 2 * kTogether * (padded_ + kLanes<T>)),
        integers_(padded_ * 2),
        width_(numbers_.get()),
        height_(width_ + padded_),
        tail_points_(height_ + padded_),
        tail_weights_(tail_points_ + 2 * padded_),
        attention_(tail_weights_ + padded_),
        centres_(attention_ + kTogether * padded_),
        start_(integers_.get()),
        columns_(start_ + padded_) {
    for (int64_t k = 0; k < padded_; ++k) {
      const int64_t l = k < samples_ ? k / call.sizes->points : 0;
      const Level level = call.sizes->levels[l];
      width_[k] = k < samples_ ? level.width : T(-2);
      height_[k] = level.height;
      start_[k] = level.start;
      columns_[k] = level.width;
      tail_points_[2 * k] = tail_points_[2 * k + 1] = tail_weights_[k] = 0;
    }
    std::memset(centres_, 0, 2 * kTogether * (padded_ + kLanes<T>) * sizeof(T));
  }

  int64_t samples() const { return samples_; }
  int64_t blocks() const { return padded_ / kLanes<T>; }
  Vector<T> width(int64_t k) const { return load(width_ + k); }
  Vector<T> height(int64_t k) const { return load(height_ + k); }

  // A head of queries `row` = n * Q + q and following, at most kTogether, into blocks() Points each; `nowhere` is the row of zeros.
  MRT_INLINE void read(int64_t row, int64_t head, int64_t queries, Integer<T> nowhere, Points<T>* p) {
    for (int64_t j = 0; j < queries; ++j) read_weights(row + j, head, attention_ + j * padded_);
    if (call_.references != nullptr) {
      for (int64_t j = 0; j < queries; ++j) read_references(row + j, centres_ + 2 * j * (padded_ + kLanes<T>));
      softmax(queries);
    }
    for (int64_t j = 0; j < queries; ++j) {
      const char* const points = item(call_.points, call_.point_step, row + j, head, 2, points_end_, tail_points_);
      const T *const centres = centres_ + 2 * j * (padded_ + kLanes<T>), *const attention = attention_ + j * padded_;
      for (int64_t k = 0; k < padded_; k += kLanes<T>) locate(k, points, centres + k, attention + k, nowhere, *p++);
    }
  }

 private:
  static int64_t end_of(const Call<T>& call, int64_t step, int64_t numbers) {
    return (call.sizes->batch * call.sizes->queries - 1) * step + call.sizes->heads * numbers;
  }

  MRT_INLINE Vector<T> numbers(const char* array, int64_t at) const { return load_numbers<T>(array, call_.point_storage, at); }

  // Where an item's numbers are, `each` of a point: nothing is read past the tensor's end, so the last ones are copied to `tail`.
  MRT_INLINE const char* item(const void* array, int64_t step, int64_t row, int64_t head, int64_t each, int64_t end, T* tail) const {
    const int64_t at = row * step + head * samples_ * each;
    const char* const numbers = static_cast<const char*>(array) + at * bytes_;
    // A later query's: too far apart for the processor to foresee.
    prefetch(numbers + kTogether * step * bytes_, each * samples_ * bytes_);
    if (at + each * padded_ <= end) return numbers;
    std::memcpy(tail, numbers, each * samples_ * bytes_);
    return reinterpret_cast<const char*>(tail);
  }

  // Logits, or (plain op) attention weights. What lies past the item's end gets no attention.
  MRT_INLINE void read_weights(int64_t row, int64_t head, T* attention) const {
    const Vector<T> masked = call_.references == nullptr ? Vector<T>{} : Vector<T>{} - std::numeric_limits<T>::infinity();
    const char* const weights = item(call_.weights, call_.weight_step, row, head, 1, weights_end_, tail_weights_);
    for (int64_t k = 0; k < padded_; k += kLanes<T>) {
      store(attention + k, load(width_ + k) > 0 ? numbers(weights, k) : masked);
    }
  }

  // A query's reference points, each as often as its level has sampling points: first all x, then all y.
  MRT_INLINE void read_references(int64_t row, T* centres) const {
    const int64_t levels = call_.sizes->levels.size(), points = call_.sizes->points;
    const T* const reference = call_.references + row * levels * 2;
    for (int64_t l = 0; l < levels; ++l) {
      const Vector<T> x = Vector<T>{} + reference[2 * l], y = Vector<T>{} + reference[2 * l + 1];
      for (int64_t p = 0; p < points; p += kLanes<T>) {  // what is too much, the next level writes over
        store(centres + l * points + p, x);
        store(centres + padded_ + kLanes<T> + l * points + p, y);
      }
    }
  }

  MRT_INLINE void locate(int64_t k, const char* points, const T* centres, const T* attention, Integer<T> nowhere, Points<T>& p) const {
    const Vector<T> width = load(width_ + k), height = load(height_ + k), weight = load(attention);
    const Vector<T> pairs[2] = {numbers(points, 2 * k), numbers(points, 2 * k + kLanes<T>)};
    Vector<T> x = every_second<0>(pairs[0], pairs[1], Lanes<T>{}), y = every_second<1>(pairs[0], pairs[1], Lanes<T>{});
    if (call_.references == nullptr) {  // cells, 0 = the centre of the first cell
      x = x * width - T(0.5);
      y = y * height - T(0.5);
    } else {
      x += load(centres) * width - T(0.5);
      y += load(centres + padded_ + kLanes<T>) * height - T(0.5);
    }
    const Integers<T> inside = (x > T(-1)) & (x < width) & (y > T(-1)) & (y < height);  // all bits set, or (NaN fails each) none
    x = inside ? x : Vector<T>{};
    y = inside ? y : Vector<T>{};
    Integers<T> x0 = __builtin_convertvector(x, Integers<T>), y0 = __builtin_convertvector(y, Integers<T>);
    x0 += x < __builtin_convertvector(x0, Vector<T>);  // truncation to floor: true is -1
    y0 += y < __builtin_convertvector(y0, Vector<T>);
    const Vector<T> dx = x - __builtin_convertvector(x0, Vector<T>), dy = y - __builtin_convertvector(y0, Vector<T>);
    const Integers<T> columns = load_integers<T>(columns_ + k), row = load_integers<T>(start_ + k) + y0 * columns + x0;
    const Integers<T> left = inside & (x0 >= 0), right = inside & (__builtin_convertvector(x0 + 1, Vector<T>) < width);
    const Integers<T> upper = y0 >= 0, lower = __builtin_convertvector(y0 + 1, Vector<T>) < height;
    const Integers<T> zeros = Integers<T>{} + nowhere;
    store(p.row[0], (left & upper) ? row : zeros);
    store(p.row[1], (right & upper) ? row + 1 : zeros);
    store(p.row[2], (left & lower) ? row + columns : zeros);
    store(p.row[3], (right & lower) ? row + columns + 1 : zeros);
    const Vector<T> counted = inside ? weight : Vector<T>{};  // a NaN among the weights of points outside must not reach the sums
    store(p.corner_weight[0], counted * (1 - dx) * (1 - dy));
    store(p.corner_weight[1], counted * dx * (1 - dy));
    store(p.corner_weight[2], counted * (1 - dx) * dy);
    store(p.corner_weight[3], counted * dx * dy);
    p.weight = weight;
    p.dx = dx;
    p.dy = dy;
    p.inside = inside;
  }

  // Each loop's turns do not depend on each other, and are short enough for the processor to have several at work.
  MRT_INLINE void softmax(int64_t queries) {
    Vector<T> largest[kTogether], total[kTogether];
    for (int64_t j = 0; j < queries; ++j) {
      Vector<T> most = Vector<T>{} + std::numeric_limits<T>::lowest();
      for (int64_t k = 0; k < padded_; k += kLanes<T>) {
        const Vector<T> logits = load(attention_ + j * padded_ + k);
        most = logits > most ? logits : most;
      }
      largest[j] = largest_of<T>(most);
    }
    for (int64_t j = 0; j < queries; ++j) {
      Vector<T> sum{};
      for (int64_t k = j * padded_; k < (j + 1) * padded_; k += kLanes<T>) {
        const Vector<T> e = exponential(load(attention_ + k) - largest[j]);
        store(attention_ + k, e);
        sum += e;
      }
      total[j] = sum;
    }
    for (int64_t j = 0; j < queries; ++j) {
      const Vector<T> scale = 1 / sum_of<T>(total[j]);
      for (int64_t k = j * padded_; k < (j + 1) * padded_; k += kLanes<T>) store(attention_ + k, load(attention_ + k) * scale);
    }
  }

  const Call<T>& call_;
  int64_t samples_, padded_, bytes_;   // bytes_: of a number of points and weights
  int64_t points_end_, weights_end_;  // elements up to the end of the last query's
  Buffer<T> numbers_;
  Buffer<Integer<T>> integers_;
  T *width_, *height_, *tail_points_, *tail_weights_;
  T *attention_, *centres_;  // (query, point), (query, x and y, point)
  Integer<T> *start_, *columns_;
};

}  // namespace
}  // namespace mrt::cpu
