// A key-value bottleneck in place of layers: memory/bottleneck.py, for one observation.
//
// Keys move in Python and seldom, while nothing is learned. Here observations are kept for that, and then looked up.

// The keys of a learner, by which each of its networks finds values of its own.
template <class T>
class Books {
 public:
  explicit Books(const BooksSpec& given)
      : spec(given),
        projection_(static_cast<const T*>(given.projection)),
        keys_(static_cast<const T*>(given.keys)),
        waiting_(static_cast<T*>(given.waiting)),
        padded_((given.pairs + kWidth - 1) / kWidth * kWidth) {
    if (!present()) return;
    columns_.allocate(spec.books * spec.key_width * padded_);
    rows_.allocate(spec.books * spec.key_width * spec.width);
    heads_.allocate(spec.books * spec.key_width);
    no_bias_.allocate(spec.books * spec.key_width);
    distances_.allocate(padded_);
    for (Sight& sight : sights_) {
      sight.x.allocate(spec.width);
      sight.found.allocate(spec.books);
    }
  }

  bool present() const { return keys_ != nullptr; }
  bool are_frozen() const { return spec.counters[0] >= spec.warm_up; }

  void append(const T* x) {
    if (are_frozen()) return;
    int64_t& count = spec.counters[1];
    __builtin_memcpy(waiting_ + count * spec.width, x, bytes());
    ++spec.counters[0];
    if (++count < spec.batch && !are_frozen()) return;
    const int64_t moving = count;
    count = 0;  // before Python has a chance to raise: the next row must be one that is there
    keys_changed();
    spec.move(spec.mover, moving);
  }

  void keys_changed() {
    laid_out_ = false;
    for (Sight& sight : sights_) sight.known = false;
  }

  // The pair of each book whose key is nearest to x; of several, the first. The last two answers are kept: a learner's
  // networks ask for the same observations, and what comes next in one update is what is there in the following.
  const int64_t* find(const T* x) {
    for (int i = 0; i < 2; ++i)
      if (sights_[i].known && __builtin_memcmp(sights_[i].x.data, x, bytes()) == 0) {
        newest_ = i;
        return sights_[i].found.data;
      }
    newest_ = 1 - newest_;
    Sight& sight = sights_[newest_];
    __builtin_memcpy(sight.x.data, x, bytes());
    look_up(x, sight.found.data);
    sight.known = true;
    return sight.found.data;
  }

  const BooksSpec spec;

 private:
  using Vector = typename Wide<T>::Vector;
  static constexpr int64_t kWidth = Wide<T>::kWidth;

  struct Sight {
    Array<T> x;
    Array<int64_t> found;
    bool known = false;
  };

  size_t bytes() const { return sizeof(T) * static_cast<size_t>(spec.width); }

  // Copies whose rows are long, [books, key_width, ...]: what a number of a key is made by, and that number of every
  // key. What fills up the last vector of keys is infinitely far away.
  void lay_out() {
    for (int64_t c = 0; c < spec.books; ++c)
      for (int64_t k = 0; k < spec.key_width; ++k) {
        T* const row = rows_.data + (c * spec.key_width + k) * spec.width;
        for (int64_t i = 0; i < spec.width; ++i) row[i] = projection_[(c * spec.width + i) * spec.key_width + k];
        T* const column = columns_.data + (c * spec.key_width + k) * padded_;
        for (int64_t j = 0; j < padded_; ++j)
          column[j] = j < spec.pairs ? keys_[(c * spec.pairs + j) * spec.key_width + k] : T(__builtin_inf());
      }
    laid_out_ = true;
  }

  void look_up(const T* x, int64_t* found) {
    if (!laid_out_) lay_out();
    affine(rows_.data, no_bias_.data, x, heads_.data, spec.books * spec.key_width, spec.width);
    for (int64_t c = 0; c < spec.books; ++c)
      found[c] = nearest(heads_.data + c * spec.key_width, columns_.data + c * spec.key_width * padded_);
  }

  int64_t nearest(const T* head, const T* columns) {
    T* const distances = distances_.data;
    Vector least = Vector{} + T(__builtin_inf());
    for (int64_t j = 0; j < padded_; j += kWidth) {
      Vector sum{};
      for (int64_t k = 0; k < spec.key_width; ++k) {
        const Vector off = Wide<T>::load(columns + k * padded_ + j) - head[k];
        sum += off * off;
      }
      Wide<T>::store(distances + j, sum);
      least = sum < least ? sum : least;
    }
    T best = least[0];
    for (int64_t l = 1; l < kWidth; ++l) best = least[l] < best ? least[l] : best;
    for (int64_t j = 0; j < spec.pairs; ++j)
      if (distances[j] == best) return j;
    return 0;  // none is a number, where an observation is beyond what its precision can square
  }

  const T *projection_, *keys_;
  T* waiting_;
  const int64_t padded_;
  Array<T> rows_, columns_, heads_, no_bias_, distances_;
  Sight sights_[2];
  int newest_ = 0;
  bool laid_out_ = false;
};

// What one look leaves behind for its backward pass.
template <class T>
struct Look {
  Array<int64_t> rows;  // where the values begin that were found, one row a book
  int64_t count = 0;    // of such rows; none while the keys move
};

// y = 1 / books * the sum of the values that are found; the weights are these, [books, pairs, outputs].
template <class T>
class Table {
 public:
  void prepare(const LayerSpec& layer, Books<T>& books) {
    outputs_ = layer.outputs, books_ = &books;
    share_.allocate(outputs_);
    piece_.allocate(kPiece);
  }

  void prepare(Look<T>& look) const { look.rows.allocate(books_->spec.books); }

  int64_t parameter_count() const { return books_->spec.books * books_->spec.pairs * outputs_; }

  void forward(const T* values, const T* x, T* y, Look<T>& look) const {
    zero(y, outputs_);
    look.count = books_->are_frozen() ? books_->spec.books : 0;
    if (look.count == 0) return;
    const int64_t* const found = books_->find(x);
    for (int64_t c = 0; c < look.count; ++c) {
      look.rows[c] = (c * books_->spec.pairs + found[c]) * outputs_;
      const T* const row = values + look.rows[c];
      for (int64_t o = 0; o < outputs_; ++o) y[o] += row[o];
    }
    for (int64_t o = 0; o < outputs_; ++o) y[o] /= T(look.count);
  }

  // What each row that was found gets of d objective / d y; the others get nothing.
  void backward(const T* dy) {
    for (int64_t o = 0; o < outputs_; ++o) share_[o] = dy[o] / T(books_->spec.books);
  }

  // Call visit(first, gradient, n) for all of the gradient, in pieces that stay in the nearest cache: there is more of
  // it than of anything else, and nearly all is zero.
  template <class Visit>
  void each_piece(const Look<T>& look, Visit visit) const {
    const int64_t size = parameter_count();
    int64_t next = 0;  // the first row that ends within this piece or beyond; rows are in order
    for (int64_t first = 0; first < size; first += kPiece) {
      const int64_t end = size - first < kPiece ? size : first + kPiece;
      auto write = [&](bool shares) {
        for (int64_t c = next; c < look.count && look.rows[c] < end; ++c) {
          const int64_t row = look.rows[c], start = row > first ? row : first;
          for (int64_t i = start; i < row + outputs_ && i < end; ++i)
            piece_.data[i - first] = shares ? share_[i - row] : T(0);
        }
      };
      write(true);
      visit(first, static_cast<const T*>(piece_.data), end - first);
      write(false);
      while (next < look.count && look.rows[next] + outputs_ <= end) ++next;
    }
  }

 private:
  int64_t outputs_ = 0;
  Books<T>* books_ = nullptr;
  Array<T> share_, piece_;
};
