// Convolutions by im2col: patches gathered into rows, then a blocked product of matrices.

// c[m, n] = sum_k a(m, k) b[k, n], with a(m, k) at a[m * row + k * column]; blocks of 4 rows by 64 columns stay in
// registers while k runs.
template <class T>
static void multiply(const T* __restrict a, int64_t row, int64_t column, const T* __restrict b, T* __restrict c,
                     int64_t m_count, int64_t k_count, int64_t n_count) {
  constexpr int64_t kWide = 128 / sizeof(T);
  int64_t n = 0;
  for (; n + kWide <= n_count; n += kWide) {
    int64_t m = 0;
    for (; m + 4 <= m_count; m += 4) {
      T s0[kWide] = {}, s1[kWide] = {}, s2[kWide] = {}, s3[kWide] = {};
      for (int64_t k = 0; k < k_count; ++k) {
        const T* bk = b + k * n_count + n;
        const T* ak = a + m * row + k * column;
        const T a0 = ak[0], a1 = ak[row], a2 = ak[2 * row], a3 = ak[3 * row];
#pragma omp simd
        for (int64_t i = 0; i < kWide; ++i) {
          s0[i] += a0 * bk[i];
          s1[i] += a1 * bk[i];
          s2[i] += a2 * bk[i];
          s3[i] += a3 * bk[i];
        }
      }
      for (int64_t i = 0; i < kWide; ++i) {
        c[m * n_count + n + i] = s0[i];
        c[(m + 1) * n_count + n + i] = s1[i];
        c[(m + 2) * n_count + n + i] = s2[i];
        c[(m + 3) * n_count + n + i] = s3[i];
      }
    }
    for (; m < m_count; ++m) {
      T s[kWide] = {};
      for (int64_t k = 0; k < k_count; ++k) {
        const T* bk = b + k * n_count + n;
        const T a0 = a[m * row + k * column];
#pragma omp simd
        for (int64_t i = 0; i < kWide; ++i) s[i] += a0 * bk[i];
      }
      for (int64_t i = 0; i < kWide; ++i) c[m * n_count + n + i] = s[i];
    }
  }
  if (n < n_count) {
    for (int64_t m = 0; m < m_count; ++m) {
      T* cm = c + m * n_count;
      for (int64_t i = n; i < n_count; ++i) cm[i] = 0;
      for (int64_t k = 0; k < k_count; ++k) {
        const T* bk = b + k * n_count;
        const T a0 = a[m * row + k * column];
#pragma omp simd
        for (int64_t i = n; i < n_count; ++i) cm[i] += a0 * bk[i];
      }
    }
  }
}

// One convolution: its scratch memory, and the gradient of its parameters, which unlike a linear layer's is stored.
// Grids are [position, channel]; only the network's input may be [channel, position].
template <class T>
class Convolution {
 public:
  void prepare(const LayerSpec& layer) {
    layer_ = layer;
    patch_ = layer.channels_in * layer.kernel * layer.kernel;
    positions_ = layer.height_out * layer.width_out;
    transposed_.allocate(patch_ * layer.channels_out);
    gradient.allocate(parameter_count());
    patch_delta_.allocate(columns_size());
  }

  int64_t parameter_count() const { return layer_.channels_out * (patch_ + 1); }
  int64_t columns_size() const { return positions_ * patch_; }
  void weights_changed() { fresh_ = false; }

  // columns: [columns_size()], left behind for `backward`.
  void forward(const T* parameters, const T* x, T* columns, T* y) {
    const T* bias = parameters + layer_.channels_out * patch_;
    gather(x, columns);
    transpose(parameters);
    multiply(columns, patch_, int64_t(1), transposed_.data, y, positions_, patch_, layer_.channels_out);
    for (int64_t p = 0; p < positions_; ++p)
      for (int64_t c = 0; c < layer_.channels_out; ++c) y[p * layer_.channels_out + c] += bias[c];
  }

  // Fill `gradient`, and dx unless it is null.
  void backward(const T* parameters, const T* dy, const T* columns, T* dx) {
    multiply(dy, int64_t(1), layer_.channels_out, columns, gradient.data, layer_.channels_out, positions_, patch_);
    T* bias = gradient.data + layer_.channels_out * patch_;
    zero(bias, layer_.channels_out);
    for (int64_t p = 0; p < positions_; ++p)
      for (int64_t c = 0; c < layer_.channels_out; ++c) bias[c] += dy[p * layer_.channels_out + c];
    if (dx) {
      multiply(dy, layer_.channels_out, int64_t(1), parameters, patch_delta_.data, positions_, layer_.channels_out, patch_);
      scatter(patch_delta_.data, dx);
    }
  }

  Array<T> gradient;  // weights [channels_out, patch], then biases

 private:
  void gather(const T* x, T* columns) const {
    const int64_t kernel = layer_.kernel, width = layer_.width, height = layer_.height, channels = layer_.channels_in;
    for (int64_t row = 0; row < layer_.height_out; ++row)
      for (int64_t column = 0; column < layer_.width_out; ++column)
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t i = 0; i < kernel; ++i) {
            const int64_t y = row * layer_.stride + i, first = column * layer_.stride;
            if (layer_.channels_first) {
              const T* from = x + (c * height + y) * width + first;
              for (int64_t j = 0; j < kernel; ++j) *columns++ = from[j];
            } else {
              const T* from = x + (y * width + first) * channels + c;
              for (int64_t j = 0; j < kernel; ++j) *columns++ = from[j * channels];
            }
          }
  }

  // Only layers behind the first are differentiated with respect to their input: [position, channel].
  void scatter(const T* columns, T* dx) const {
    const int64_t kernel = layer_.kernel, width = layer_.width, channels = layer_.channels_in;
    zero(dx, layer_.inputs);
    for (int64_t row = 0; row < layer_.height_out; ++row)
      for (int64_t column = 0; column < layer_.width_out; ++column)
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t i = 0; i < kernel; ++i) {
            T* to = dx + ((row * layer_.stride + i) * width + column * layer_.stride) * channels + c;
            for (int64_t j = 0; j < kernel; ++j) to[j * channels] += *columns++;
          }
  }

  void transpose(const T* weight) {
    if (fresh_) return;
    fresh_ = true;
    for (int64_t c = 0; c < layer_.channels_out; ++c)
      for (int64_t k = 0; k < patch_; ++k) transposed_[k * layer_.channels_out + c] = weight[c * patch_ + k];
  }

  LayerSpec layer_{};
  int64_t patch_ = 0, positions_ = 0;
  Array<T> transposed_, patch_delta_;
  bool fresh_ = false;  // transposed_ holds the present weights
};
