// Convolutions by im2col: the patches of some positions gathered into rows, then products of matrices.
//
// Grids are [channel, position], patches and weights [channel, row, column], all as torch has them, so that weights
// and gradient are used where they lie.

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// Call visit(Count of numbers, the first of them) for pieces of kMost of the numbers from first to end, then, for what
// is left over, for smaller ones.
template <int kMost, class Visit>
static inline void in_pieces(int64_t first, int64_t end, Visit visit) {
  for (; first + kMost <= end; first += kMost) visit(Count<kMost>(), first);
  if constexpr (kMost > 1) in_pieces<(kMost + 1) / 2>(first, end, visit);
}

// c[m, n] = start[m] + sum_k a[m, k] b[n, k], with k_count a whole number of vectors.
template <class T>
static void multiply_rows(const T* a, const T* b, const T* start, T* c, int64_t c_stride, int64_t m_count,
                          int64_t n_count, int64_t k_count) {
  using V = Wide<T>;
  in_pieces<3>(0, m_count, [=](auto height, int64_t m) {
    in_pieces<4>(0, n_count, [=](auto width, int64_t n) {
      constexpr int kHeight = decltype(height)::value, kWidth = decltype(width)::value;
      const T *am = a + m * k_count, *bn = b + n * k_count;
      typename V::Vector sums[kHeight][kWidth] = {};
      for (int64_t k = 0; k < k_count; k += V::kWidth) {
        typename V::Vector bk[kWidth];
        for (int j = 0; j < kWidth; ++j) bk[j] = V::held(V::load(bn + j * k_count + k));
        for (int i = 0; i < kHeight; ++i) {
          const typename V::Vector ak = V::load(am + i * k_count + k);
          for (int j = 0; j < kWidth; ++j) sums[i][j] += ak * bk[j];
        }
      }
      for (int i = 0; i < kHeight; ++i)
        V::template store_sums<kWidth>(c + (m + i) * c_stride + n, sums[i], start[m + i]);
    });
  });
}

// c[m, n] = sum_k a(m, k) b[k, n], added to what c holds if `onto`; a(m, k) lies at a[m * row + k * column], and
// n_count is a whole number of vectors.
template <class T>
static void multiply(const T* a, int64_t row, int64_t column, const T* b, T* c, int64_t m_count, int64_t k_count,
                     int64_t n_count, bool onto) {
  using V = Wide<T>;
  in_pieces<4>(0, n_count / V::kWidth, [=](auto width, int64_t n) {
    in_pieces<3>(0, m_count, [=](auto height, int64_t m) {
      constexpr int kWidth = decltype(width)::value, kHeight = decltype(height)::value;
      const T *am = a + m * row, *bk = b + n * V::kWidth;
      typename V::Vector sums[kHeight][kWidth] = {};
      for (int64_t k = 0; k < k_count; ++k, am += column, bk += n_count) {
        T ak[kHeight];
        for (int i = 0; i < kHeight; ++i) ak[i] = am[i * row];
        for (int j = 0; j < kWidth; ++j) {
          const typename V::Vector bn = V::held(V::load(bk + j * V::kWidth));
          for (int i = 0; i < kHeight; ++i) sums[i][j] += ak[i] * bn;
        }
      }
      for (int i = 0; i < kHeight; ++i)
        for (int j = 0; j < kWidth; ++j) {
          T* at = c + (m + i) * n_count + (n + j) * V::kWidth;
          V::store(at, onto ? V::load(at) + sums[i][j] : sums[i][j]);
        }
    });
  });
}

// One convolution: its scratch memory, and the gradient of its parameters, which unlike a linear layer's is stored.
template <class T>
class Convolution {
 public:
  void prepare(const LayerSpec& layer) {
    layer_ = layer;
    patch_ = layer.channels_in * layer.kernel * layer.kernel;
    positions_ = layer.height_out * layer.width_out;
    row_ = (patch_ + Wide<T>::kWidth - 1) / Wide<T>::kWidth * Wide<T>::kWidth;
    together_ = kBytesTogether / int64_t(sizeof(T)) / row_ / 4 * 4;
    if (together_ < 4) together_ = 4;
    if (together_ > positions_) together_ = positions_;
    gradient.allocate(parameter_count());
    columns_.allocate((together_ + 3) * row_);
    patch_delta_.allocate((together_ + 3) * row_);
    if (row_ > patch_) {
      weights_.allocate(layer.channels_out * row_);
      weights_delta_.allocate(layer.channels_out * row_);
    }
    if (layer.channels_last) turned_.allocate(layer.inputs);
  }

  int64_t parameter_count() const { return layer_.channels_out * (patch_ + 1); }
  void weights_changed() { fresh_ = false; }

  void forward(const T* parameters, const T* x, T* y) {
    const T *weights = in_whole_vectors(parameters), *bias = parameters + layer_.channels_out * patch_;
    x = turned(x);
    each_piece([&](int64_t first, int64_t count) {
      gather(x, first, count);
      multiply_rows(weights, columns_.data, bias, y + first, positions_, layer_.channels_out, count, row_);
    });
  }

  // Fill `gradient`, and dx unless it is null.
  void backward(const T* parameters, const T* x, const T* dy, T* dx) {
    const T* weights = in_whole_vectors(parameters);
    T* weights_delta = row_ > patch_ ? weights_delta_.data : gradient.data;
    x = turned(x);
    if (dx) zero(dx, layer_.inputs);
    each_piece([&](int64_t first, int64_t count) {
      gather(x, first, count);
      multiply(dy + first, positions_, int64_t(1), columns_.data, weights_delta, layer_.channels_out, count, row_,
               first > 0);
      if (dx) {
        multiply(dy + first, int64_t(1), positions_, weights, patch_delta_.data, count, layer_.channels_out, row_,
                 false);
        scatter(first, count, dx);
      }
    });
    if (row_ > patch_) copy_rows(weights_delta, row_, gradient.data, patch_);
    T* bias = gradient.data + layer_.channels_out * patch_;
    for (int64_t c = 0; c < layer_.channels_out; ++c, dy += positions_)
      bias[c] = sum_of<T>(positions_, [=](int64_t p) { return dy[p]; });
  }

  Array<T> gradient;  // weights [channels_out, patch], then biases

 private:
  static constexpr int64_t kBytesTogether = 49152;  // of patches, few enough to stay in the fast caches

  // Call visit(first position, count) for pieces of about `together_` positions: a last one of fewer than 4, which
  // would read all weights for little, goes with the one before it.
  template <class Visit>
  void each_piece(Visit visit) const {
    for (int64_t first = 0; first < positions_;) {
      const int64_t left = positions_ - first, count = left < together_ + 4 ? left : together_;
      visit(first, count);
      first += count;
    }
  }

  // Call run(number in the patch, number in the grid) for every row of the kernel, at one position.
  template <class Run>
  void each_run(int64_t position, Run run) const {
    const int64_t corner = (position / layer_.width_out * layer_.width + position % layer_.width_out) * layer_.stride;
    int64_t at = 0;
    for (int64_t c = 0; c < layer_.channels_in; ++c)
      for (int64_t i = 0; i < layer_.kernel; ++i, at += layer_.kernel)
        run(at, corner + (c * layer_.height + i) * layer_.width);
  }

  // Call visit(kernel) with the kernel's width: a constant, where it is one of the usual ones, for short loops.
  template <class Visit>
  void with_kernel(Visit visit) const {
    if (layer_.kernel == 8) visit(Count<8>());
    else if (layer_.kernel == 4) visit(Count<4>());
    else if (layer_.kernel == 3) visit(Count<3>());
    else visit(Count<0>());
  }

  // Copy patches into the rows of columns_, where what lies beyond a patch stays zero.
  void gather(const T* __restrict x, int64_t first, int64_t count) {
    with_kernel([=](auto constant) {
      const int64_t kernel = constant.value ? constant.value : layer_.kernel;
      for (int64_t p = 0; p < count; ++p) {
        T* __restrict columns = columns_.data + p * row_;
        each_run(first + p, [=](int64_t to, int64_t from) {
          for (int64_t j = 0; j < kernel; ++j) columns[to + j] = x[from + j];
        });
      }
    });
  }

  // Add each row of patch_delta_ to where its patch came from.
  void scatter(int64_t first, int64_t count, T* __restrict dx) const {
    with_kernel([=](auto constant) {
      const int64_t kernel = constant.value ? constant.value : layer_.kernel;
      for (int64_t p = 0; p < count; ++p) {
        const T* __restrict delta = patch_delta_.data + p * row_;
        each_run(first + p, [=](int64_t from, int64_t to) {
          for (int64_t j = 0; j < kernel; ++j) dx[to + j] += delta[from + j];
        });
      }
    });
  }

  // The input as [channel, position].
  const T* turned(const T* x) {
    if (!layer_.channels_last) return x;
    const int64_t positions = layer_.height * layer_.width;
    for (int64_t c = 0; c < layer_.channels_in; ++c)
      for (int64_t p = 0; p < positions; ++p) turned_[c * positions + p] = x[p * layer_.channels_in + c];
    return turned_.data;
  }

  // The weights with zeros behind each row, if it isn't a whole number of vectors.
  const T* in_whole_vectors(const T* weights) {
    if (row_ == patch_) return weights;
    if (!fresh_) copy_rows(weights, patch_, weights_.data, row_);
    fresh_ = true;
    return weights_.data;
  }

  void copy_rows(const T* from, int64_t from_row, T* to, int64_t to_row) const {
    for (int64_t c = 0; c < layer_.channels_out; ++c)
      __builtin_memcpy(to + c * to_row, from + c * from_row, sizeof(T) * size_t(patch_));
  }

  LayerSpec layer_{};
  int64_t patch_ = 0, row_ = 0;           // numbers in a patch, and those made up to whole vectors
  int64_t positions_ = 0, together_ = 0;  // of the output, and those whose patches are gathered at a time
  Array<T> columns_, patch_delta_;    // [together_ + 3, row_]
  Array<T> weights_, weights_delta_;  // [channels_out, row_], only where a patch isn't whole vectors
  Array<T> turned_;                   // the input, only where it is [position, channel]
  bool fresh_ = false;                // weights_ holds the present weights
};
