// From an item's inputs to its sampling points: softmax, location arithmetic, the four corners and their weights.

namespace mrt::cpu {
namespace {

constexpr int kTogether = 8;    // queries prepared together: their long chains of dependent instructions overlap

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

// Reads one item (a head of a query) and turns it into Points, a vector at a time. Inputs are read in whole vectors, past the item's end
// if L * P is no multiple of their length: what is read there lies "outside" its map of negative width, and gets no attention.
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
        numbers_(padded_ * 6),
        integers_(padded_ * 3),
        width_(numbers_.get()),
        height_(width_ + padded_),
        attention_(height_ + padded_),
        tail_points_(attention_ + padded_),
        tail_weights_(tail_points_ + 2 * padded_),
        start_(integers_.get()),
        columns_(start_ + padded_),
        centre_(columns_ + padded_) {
    for (int64_t k = 0; k < padded_; ++k) {
      const int64_t l = k < samples_ ? k / call.sizes->points : 0;
      const Level level = call.sizes->levels[l];
      width_[k] = k < samples_ ? level.width : T(-2);
      height_[k] = level.height;
      start_[k] = level.start;
      columns_[k] = level.width;
      centre_[k] = 2 * l;
      attention_[k] = tail_points_[2 * k] = tail_points_[2 * k + 1] = tail_weights_[k] = 0;
    }
  }

  int64_t samples() const { return samples_; }
  int64_t blocks() const { return padded_ / kLanes<T>; }
  Vector<T> width(int64_t k) const { return load(width_ + k); }
  Vector<T> height(int64_t k) const { return load(height_ + k); }

  // A head of query `row` = n * Q + q into blocks() Points; `nowhere` is the row of zeros.
  MRT_INLINE void read(int64_t row, int64_t head, Integer<T> nowhere, Points<T>* p) {
    const int64_t point = row * call_.point_step + head * samples_ * 2, weight = row * call_.weight_step + head * samples_;
    points_ = static_cast<const char*>(call_.points) + point * bytes_;
    weights_ = static_cast<const char*>(call_.weights) + weight * bytes_;
    // A later query's: too far apart for the processor to foresee.
    prefetch(points_ + kTogether * call_.point_step * bytes_, 2 * samples_ * bytes_);
    prefetch(weights_ + kTogether * call_.weight_step * bytes_, samples_ * bytes_);
    if (point + 2 * padded_ > points_end_ || weight + padded_ > weights_end_) {  // nothing to read past the tensors' ends
      std::memcpy(tail_points_, points_, 2 * samples_ * bytes_);
      std::memcpy(tail_weights_, weights_, samples_ * bytes_);
      points_ = reinterpret_cast<const char*>(tail_points_);
      weights_ = reinterpret_cast<const char*>(tail_weights_);
    }
    if (call_.references == nullptr) {
      for (int64_t k = 0; k < padded_; k += kLanes<T>) store(attention_ + k, numbers(weights_, k));
    } else {
      reference_ = call_.references + row * call_.sizes->levels.size() * 2;
      softmax();
    }
    for (int64_t k = 0; k < padded_; k += kLanes<T>) locate(k, nowhere, *p++);
  }

 private:
  static int64_t end_of(const Call<T>& call, int64_t step, int64_t numbers) {
    return (call.sizes->batch * call.sizes->queries - 1) * step + call.sizes->heads * numbers;
  }

  MRT_INLINE Vector<T> numbers(const char* array, int64_t at) const { return load_numbers<T>(array, call_.point_storage, at); }

  MRT_INLINE void locate(int64_t k, Integer<T> nowhere, Points<T>& p) const {
    const Vector<T> width = load(width_ + k), height = load(height_ + k), weight = load(attention_ + k);
    const Vector<T> pairs[2] = {numbers(points_, 2 * k), numbers(points_, 2 * k + kLanes<T>)};
    Vector<T> x = every_second<0>(pairs[0], pairs[1], Lanes<T>{}), y = every_second<1>(pairs[0], pairs[1], Lanes<T>{});
    if (call_.references == nullptr) {  // cells, 0 = the centre of the first cell
      x = x * width - T(0.5);
      y = y * height - T(0.5);
    } else {
      alignas(64) T centre_x[kLanes<T>], centre_y[kLanes<T>];
      for (int i = 0; i < kLanes<T>; ++i) {
        centre_x[i] = reference_[centre_[k + i]];
        centre_y[i] = reference_[centre_[k + i] + 1];
      }
      x += load(centre_x) * width - T(0.5);
      y += load(centre_y) * height - T(0.5);
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

  MRT_INLINE void softmax() {
    const Vector<T> masked = Vector<T>{} - std::numeric_limits<T>::infinity();  // lanes past the item's end: no attention, ever
    Vector<T> largest = Vector<T>{} + std::numeric_limits<T>::lowest(), total{};
    for (int64_t k = 0; k < padded_; k += kLanes<T>) {
      const Vector<T> logits = load(width_ + k) > 0 ? numbers(weights_, k) : masked;
      store(attention_ + k, logits);
      largest = logits > largest ? logits : largest;
    }
    largest = largest_of<T>(largest);
    for (int64_t k = 0; k < padded_; k += kLanes<T>) {
      const Vector<T> e = exponential(load(attention_ + k) - largest);
      store(attention_ + k, e);
      total += e;
    }
    const Vector<T> scale = 1 / sum_of<T>(total);
    for (int64_t k = 0; k < padded_; k += kLanes<T>) store(attention_ + k, load(attention_ + k) * scale);
  }

  const Call<T>& call_;
  int64_t samples_, padded_, bytes_;   // bytes_: of a number of points and weights
  int64_t points_end_, weights_end_;  // elements up to the end of the last query's
  Buffer<T> numbers_;
  Buffer<Integer<T>> integers_;
  T *width_, *height_, *attention_, *tail_points_, *tail_weights_;
  Integer<T> *start_, *columns_, *centre_;
  const char *points_ = nullptr, *weights_ = nullptr;  // the item's
  const T* reference_ = nullptr;
};

}  // namespace
}  // namespace mrt::cpu
