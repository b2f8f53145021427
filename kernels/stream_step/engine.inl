// The engine: forward, backward straight into the traces, step-size rule and normalizers, for one sample.
//
// Included once per instruction set, inside a namespace of its own and under that set's target pragma: there is
// no include and no template of the standard library here, whose code could end up shared between the sets.
// The definition it must agree with is the torch back end in agents/; names follow it.

constexpr int64_t kMaxLayers = 32;

// --- memory and small loops ----------------------------------------------------------------------------------

template <class T>
struct Array {
  T* data = nullptr;
  int64_t size = 0;
  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { ::operator delete[](data, std::align_val_t(64)); }
  void allocate(int64_t count) {
    ::operator delete[](data, std::align_val_t(64));
    size = count;
    data = static_cast<T*>(::operator new[](sizeof(T) * static_cast<size_t>(count < 1 ? 1 : count), std::align_val_t(64)));
    for (int64_t i = 0; i < count; ++i) data[i] = T(0);
  }
  T& operator[](int64_t i) { return data[i]; }
  const T& operator[](int64_t i) const { return data[i]; }
};

// Old traces and second moments decay to denormal numbers, which are a hundred times slower to compute with.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned int before = __builtin_ia32_stmxcsr();
  FlushDenormals() { __builtin_ia32_ldmxcsr(before | 0x8040u); }
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(before); }
#endif
};

static inline float root(float x) { return __builtin_sqrtf(x); }
static inline double root(double x) { return __builtin_sqrt(x); }

template <class T>
static void zero(T* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = T(0);
}

// y[o] = bias[o] + sum_i weight[o, i] x[i], four rows at a time so that x is read once for four.
template <class T>
static void affine(const T* __restrict weight, const T* __restrict bias, const T* __restrict x, T* __restrict y,
                   int64_t outputs, int64_t inputs) {
  int64_t o = 0;
  for (; o + 4 <= outputs; o += 4) {
    const T *w0 = weight + o * inputs, *w1 = w0 + inputs, *w2 = w1 + inputs, *w3 = w2 + inputs;
    T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < inputs; ++i) {
      s0 += w0[i] * x[i];
      s1 += w1[i] * x[i];
      s2 += w2[i] * x[i];
      s3 += w3[i] * x[i];
    }
    y[o] = bias[o] + s0;
    y[o + 1] = bias[o + 1] + s1;
    y[o + 2] = bias[o + 2] + s2;
    y[o + 3] = bias[o + 3] + s3;
  }
  for (; o < outputs; ++o) {
    const T* w = weight + o * inputs;
    T s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < inputs; ++i) s += w[i] * x[i];
    y[o] = bias[o] + s;
  }
}

// dx[i] = sum_o weight[o, i] dy[o].
template <class T>
static void affine_backward(const T* __restrict weight, const T* __restrict dy, T* __restrict dx, int64_t outputs,
                            int64_t inputs) {
  zero(dx, inputs);
  int64_t o = 0;
  for (; o + 4 <= outputs; o += 4) {
    const T *w0 = weight + o * inputs, *w1 = w0 + inputs, *w2 = w1 + inputs, *w3 = w2 + inputs;
    const T d0 = dy[o], d1 = dy[o + 1], d2 = dy[o + 2], d3 = dy[o + 3];
#pragma omp simd
    for (int64_t i = 0; i < inputs; ++i) dx[i] += (w0[i] * d0 + w1[i] * d1) + (w2[i] * d2 + w3[i] * d3);
  }
  for (; o < outputs; ++o) {
    const T* w = weight + o * inputs;
    const T d = dy[o];
#pragma omp simd
    for (int64_t i = 0; i < inputs; ++i) dx[i] += w[i] * d;
  }
}

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

// --- step-size rules: one row of a trace ---------------------------------------------------------------------
//
// The gradient of row o of a linear layer is d * x, with d = dy[o]: it is made here, never stored.

template <class T>
static T obgd_row(T* __restrict z, const T* __restrict x, T d, int64_t n, T decay) {
  T norm = 0;
#pragma omp simd reduction(+ : norm)
  for (int64_t i = 0; i < n; ++i) {
    const T now = decay * z[i] + d * x[i];
    z[i] = now;
    norm += now < 0 ? -now : now;
  }
  return norm;
}

template <class T>
static T adaptive_row(T* __restrict z, T* __restrict v, T* __restrict scaled, const T* __restrict x, T d, int64_t n,
                      T decay, T beta, T weight, T correction, T epsilon) {
  T norm = 0;
#pragma omp simd reduction(+ : norm)
  for (int64_t i = 0; i < n; ++i) {
    const T now = decay * z[i] + d * x[i];
    z[i] = now;
    const T moment = beta * v[i] + weight * now * now;
    v[i] = moment;
    const T s = now / root(moment * correction + epsilon);
    scaled[i] = s;
    norm += s < 0 ? -s : s;
  }
  return norm;
}

template <class T>
struct IntentionalNorms {
  T gradient, trace;
};

template <class T>
static IntentionalNorms<T> intentional_row(T* __restrict z, T* __restrict v, T* __restrict scaled,
                                           const T* __restrict x, T d, int64_t n, T decay, T beta, T weight,
                                           T correction, T epsilon) {
  T gradient_norm = 0, trace_norm = 0;
#pragma omp simd reduction(+ : gradient_norm, trace_norm)
  for (int64_t i = 0; i < n; ++i) {
    const T g = d * x[i];
    const T square = g * g;
    const T moment = beta * v[i] + weight * square;
    v[i] = moment;
    const T inverse = T(1) / (root(moment * correction) + epsilon);
    const T now = decay * z[i] + g;
    z[i] = now;
    const T s = now * inverse;
    scaled[i] = s;
    gradient_norm += square * inverse;
    trace_norm += now * s;
  }
  return {gradient_norm, trace_norm};
}

template <class T>
static void axpy(T* __restrict w, const T* __restrict z, T factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) w[i] += factor * z[i];
}

// --- networks ------------------------------------------------------------------------------------------------

// What one forward pass leaves behind for a backward pass, and for whoever asks for the same input again.
template <class T>
struct Activations {
  Array<T> input;
  Array<T> output[kMaxLayers];
  Array<T> columns[kMaxLayers];  // convolution: the patches, [positions, channels_in * kernel * kernel]
  T deviation[kMaxLayers];       // layer_norm: 1 / sqrt(variance + eps)
  bool valid = false;
};

template <class T>
class Network {
 public:
  explicit Network(const NetworkSpec& spec)
      : parameters(static_cast<T*>(spec.parameters)),
        trace(static_cast<T*>(spec.trace)),
        second_moment(static_cast<T*>(spec.second_moment)),
        size(spec.size),
        rule(spec.rule),
        count_(spec.layer_count) {
    int64_t offset = 0;
    for (int64_t l = 0; l < count_; ++l) {
      const LayerSpec& layer = layers_[l] = spec.layers[l];
      offset_[l] = offset;
      if (layer.kind == LayerKind::linear) offset += layer.outputs * (layer.inputs + 1);
      if (layer.kind == LayerKind::convolution) {
        const int64_t patch = layer.channels_in * layer.kernel * layer.kernel;
        offset += layer.channels_out * (patch + 1);
        transposed_[l].allocate(patch * layer.channels_out);
        gradient_[l].allocate(layer.channels_out * (patch + 1));
        patch_delta_[l].allocate(layer.height_out * layer.width_out * patch);
      }
      delta_[l].allocate(layer.outputs);
    }
    input_delta_.allocate(layers_[0].inputs);
    if (rule.kind != RuleKind::obgd) scaled_.allocate(size);
  }

  int64_t outputs() const { return layers_[count_ - 1].outputs; }
  int64_t inputs() const { return layers_[0].inputs; }

  void prepare(Activations<T>& a) const {
    a.input.allocate(inputs());
    for (int64_t l = 0; l < count_; ++l) {
      const LayerSpec& layer = layers_[l];
      a.output[l].allocate(layer.outputs);
      if (layer.kind == LayerKind::convolution)
        a.columns[l].allocate(layer.height_out * layer.width_out * layer.channels_in * layer.kernel * layer.kernel);
    }
  }

  // Return the outputs for x, computing them only if `a` does not hold them already.
  const T* forward(const T* x, Activations<T>& a) {
    if (!(a.valid && __builtin_memcmp(a.input.data, x, sizeof(T) * static_cast<size_t>(inputs())) == 0)) {
      __builtin_memcpy(a.input.data, x, sizeof(T) * static_cast<size_t>(inputs()));
      const T* current = a.input.data;
      for (int64_t l = 0; l < count_; ++l) {
        forward_layer(l, current, a);
        current = a.output[l].data;
      }
      a.valid = true;
    }
    return a.output[count_ - 1].data;
  }

  // Turn d objective / d outputs into every layer's own, and the convolutions' gradients.
  void backward(const T* output_delta, const Activations<T>& a) {
    __builtin_memcpy(delta_[count_ - 1].data, output_delta, sizeof(T) * static_cast<size_t>(outputs()));
    for (int64_t l = count_ - 1; l >= 0; --l)
      backward_layer(l, l > 0 ? a.output[l - 1].data : a.input.data, l > 0 ? delta_[l - 1].data : nullptr, a);
  }

  // z <- decay z + gradient, then w <- w + step td_error z by the step-size rule. Returns the step.
  double update(const Activations<T>& a, double td_error, double decay, RuleState& state) {
    ++weights_version_;
    switch (rule.kind) {
      case RuleKind::obgd: {
        double norm = 0.0;
        each_row(a, [&](int64_t at, const T* x, T d, int64_t n) { norm += obgd_row(trace + at, x, d, n, T(decay)); });
        const double step = bounded_step_size(td_error, norm);
        axpy(parameters, trace, T(step * td_error), size);
        return step;
      }
      case RuleKind::adaptive_obgd: {
        state.updates += 1;
        const double beta = rule.second_moment_decay;
        const T weight = T((1.0 - beta) * td_error * td_error);
        const T correction = T(1.0 / (1.0 - __builtin_pow(beta, double(state.updates))));
        double norm = 0.0;
        each_row(a, [&](int64_t at, const T* x, T d, int64_t n) {
          norm += adaptive_row(trace + at, second_moment + at, scaled_.data + at, x, d, n, T(decay), T(beta), weight,
                               correction, T(rule.epsilon));
        });
        const double step = bounded_step_size(td_error, norm);
        axpy(parameters, scaled_.data, T(step * td_error), size);
        return step;
      }
      default: {
        state.updates += 1;
        state.decay_product *= decay;
        const double beta = rule.second_moment_decay;
        const T correction = T(1.0 / (1.0 - __builtin_pow(beta, double(state.updates))));
        double norm = 0.0, trace_norm = 0.0;
        each_row(a, [&](int64_t at, const T* x, T d, int64_t n) {
          const auto row = intentional_row(trace + at, second_moment + at, scaled_.data + at, x, d, n, T(decay), T(beta),
                                           T(1.0 - beta), correction, T(rule.epsilon));
          norm += row.gradient;
          trace_norm += row.trace;
        });
        double sigma;
        if (decay < 1.0) {
          state.gradient_norm += (1.0 - decay) * (norm - state.gradient_norm);
          sigma = state.gradient_norm / (1.0 - state.decay_product);
        } else {
          state.gradient_norm += (norm - state.gradient_norm) / double(state.updates);
          sigma = state.gradient_norm;
        }
        const double reach = __builtin_sqrt(sigma * trace_norm);
        const double step = rule.intended_change / (reach > 1e-8 ? reach : 1e-8);
        axpy(parameters, scaled_.data, T(step * tame(td_error, state)), size);
        return step;
      }
    }
  }

  void clear_trace() { zero(trace, size); }
  void weights_changed() { ++weights_version_; }

  T *parameters, *trace, *second_moment;
  int64_t size;
  RuleSpec rule;

 private:
  void forward_layer(int64_t l, const T* x, Activations<T>& a) {
    const LayerSpec& layer = layers_[l];
    T* y = a.output[l].data;
    switch (layer.kind) {
      case LayerKind::linear: {
        const T* weight = parameters + offset_[l];
        affine(weight, weight + layer.outputs * layer.inputs, x, y, layer.outputs, layer.inputs);
        break;
      }
      case LayerKind::convolution: {
        const int64_t patch = layer.channels_in * layer.kernel * layer.kernel;
        const int64_t positions = layer.height_out * layer.width_out;
        const T* bias = parameters + offset_[l] + layer.channels_out * patch;
        gather_patches(layer, x, a.columns[l].data);
        transpose_weights(l, patch);
        multiply(a.columns[l].data, patch, int64_t(1), transposed_[l].data, y, positions, patch, layer.channels_out);
        for (int64_t p = 0; p < positions; ++p)
          for (int64_t c = 0; c < layer.channels_out; ++c) y[p * layer.channels_out + c] += bias[c];
        break;
      }
      case LayerKind::layer_norm: {
        const int64_t n = layer.inputs;
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < n; ++i) sum += x[i];
        const T mean = sum / T(n);
        T squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
        const T inverse = T(1) / root(squares / T(n) + T(1e-5));
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * inverse;
        a.deviation[l] = inverse;
        break;
      }
      case LayerKind::leaky_relu: {
        const T slope = T(layer.slope);
#pragma omp simd
        for (int64_t i = 0; i < layer.inputs; ++i) y[i] = x[i] > 0 ? x[i] : slope * x[i];
        break;
      }
      case LayerKind::flatten: {  // [positions, channels] -> [channels, positions], as torch counts
        const int64_t channels = layer.inputs / layer.positions;
        for (int64_t p = 0; p < layer.positions; ++p)
          for (int64_t c = 0; c < channels; ++c) y[c * layer.positions + p] = x[p * channels + c];
        break;
      }
    }
  }

  void backward_layer(int64_t l, const T* x, T* dx, const Activations<T>& a) {
    const LayerSpec& layer = layers_[l];
    const T* dy = delta_[l].data;
    switch (layer.kind) {
      case LayerKind::linear:
        if (dx) affine_backward(parameters + offset_[l], dy, dx, layer.outputs, layer.inputs);
        break;
      case LayerKind::convolution: {
        const int64_t patch = layer.channels_in * layer.kernel * layer.kernel;
        const int64_t positions = layer.height_out * layer.width_out;
        T* gradient = gradient_[l].data;  // weights [channels_out, patch], then biases
        multiply(dy, int64_t(1), layer.channels_out, a.columns[l].data, gradient, layer.channels_out, positions, patch);
        T* bias = gradient + layer.channels_out * patch;
        zero(bias, layer.channels_out);
        for (int64_t p = 0; p < positions; ++p)
          for (int64_t c = 0; c < layer.channels_out; ++c) bias[c] += dy[p * layer.channels_out + c];
        if (dx) {
          multiply(dy, layer.channels_out, int64_t(1), parameters + offset_[l], patch_delta_[l].data, positions,
                   layer.channels_out, patch);
          scatter_patches(layer, patch_delta_[l].data, dx);
        }
        break;
      }
      case LayerKind::layer_norm: {
        const int64_t n = layer.inputs;
        const T* y = a.output[l].data;
        T sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
        for (int64_t i = 0; i < n; ++i) {
          sum += dy[i];
          along += dy[i] * y[i];
        }
        const T mean = sum / T(n), slope = along / T(n), inverse = a.deviation[l];
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) dx[i] = inverse * (dy[i] - mean - y[i] * slope);
        break;
      }
      case LayerKind::leaky_relu: {
        const T slope = T(layer.slope);
#pragma omp simd
        for (int64_t i = 0; i < layer.inputs; ++i) dx[i] = x[i] > 0 ? dy[i] : slope * dy[i];
        break;
      }
      case LayerKind::flatten: {
        const int64_t channels = layer.inputs / layer.positions;
        for (int64_t p = 0; p < layer.positions; ++p)
          for (int64_t c = 0; c < channels; ++c) dx[p * channels + c] = dy[c * layer.positions + p];
        break;
      }
    }
  }

  // Call visit(offset, x, d, n) for every row of parameters, whose gradient is d * x[0..n).
  template <class Visit>
  void each_row(const Activations<T>& a, Visit visit) const {
    for (int64_t l = 0; l < count_; ++l) {
      const LayerSpec& layer = layers_[l];
      const T* x = l > 0 ? a.output[l - 1].data : a.input.data;
      if (layer.kind == LayerKind::linear) {
        const T* d = delta_[l].data;
        for (int64_t o = 0; o < layer.outputs; ++o) visit(offset_[l] + o * layer.inputs, x, d[o], layer.inputs);
        visit(offset_[l] + layer.outputs * layer.inputs, d, T(1), layer.outputs);
      } else if (layer.kind == LayerKind::convolution) {
        const int64_t n = gradient_[l].size;
        for (int64_t at = 0; at < n; at += 512)  // short rows keep float32 sums accurate
          visit(offset_[l] + at, gradient_[l].data + at, T(1), n - at < 512 ? n - at : 512);
      }
    }
  }

  static void gather_patches(const LayerSpec& layer, const T* x, T* columns) {
    const int64_t kernel = layer.kernel, width = layer.width, height = layer.height, channels = layer.channels_in;
    for (int64_t row = 0; row < layer.height_out; ++row)
      for (int64_t column = 0; column < layer.width_out; ++column)
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t i = 0; i < kernel; ++i) {
            const int64_t y = row * layer.stride + i, first = column * layer.stride;
            if (layer.channels_first) {
              const T* from = x + (c * height + y) * width + first;
              for (int64_t j = 0; j < kernel; ++j) *columns++ = from[j];
            } else {
              const T* from = x + (y * width + first) * channels + c;
              for (int64_t j = 0; j < kernel; ++j) *columns++ = from[j * channels];
            }
          }
  }

  // Only layers behind the first are differentiated with respect to their input: [position, channel].
  static void scatter_patches(const LayerSpec& layer, const T* columns, T* dx) {
    const int64_t kernel = layer.kernel, width = layer.width, channels = layer.channels_in;
    zero(dx, layer.inputs);
    for (int64_t row = 0; row < layer.height_out; ++row)
      for (int64_t column = 0; column < layer.width_out; ++column)
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t i = 0; i < kernel; ++i) {
            T* to = dx + ((row * layer.stride + i) * width + column * layer.stride) * channels + c;
            for (int64_t j = 0; j < kernel; ++j) to[j * channels] += *columns++;
          }
  }

  void transpose_weights(int64_t l, int64_t patch) {
    if (transposed_version_[l] == weights_version_) return;
    transposed_version_[l] = weights_version_;
    const T* weight = parameters + offset_[l];
    T* to = transposed_[l].data;
    const int64_t channels = layers_[l].channels_out;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t k = 0; k < patch; ++k) to[k * channels + c] = weight[c * patch + k];
  }

  double bounded_step_size(double td_error, double norm) const {
    const double magnitude = __builtin_fabs(td_error) > 1.0 ? __builtin_fabs(td_error) : 1.0;
    const double overshoot = rule.step_size * rule.overshoot_margin * magnitude * norm;
    return overshoot > 1.0 ? rule.step_size / overshoot : rule.step_size;
  }

  double tame(double td_error, RuleState& state) const {
    const double beta = rule.td_error_decay;
    const double correction = 1.0 - __builtin_pow(beta, double(state.updates));
    state.td_error_square = beta * state.td_error_square + (1.0 - beta) * td_error * td_error;
    const double cap = rule.td_error_cap * __builtin_sqrt(state.td_error_square / correction);
    const double clipped = td_error > cap ? cap : td_error < -cap ? -cap : td_error;
    if (!rule.normalize_td_error) return clipped;
    state.td_error_magnitude = beta * state.td_error_magnitude + (1.0 - beta) * __builtin_fabs(clipped);
    const double scale = state.td_error_magnitude / correction;
    return clipped / (scale > 1e-12 ? scale : 1e-12);
  }

  int64_t count_;
  LayerSpec layers_[kMaxLayers];
  int64_t offset_[kMaxLayers];
  Array<T> delta_[kMaxLayers];  // d objective / d output of each layer
  Array<T> input_delta_;
  Array<T> gradient_[kMaxLayers], transposed_[kMaxLayers], patch_delta_[kMaxLayers];  // convolutions
  Array<T> scaled_;  // trace / root mean square, kept between the norm and the step
  uint64_t weights_version_ = 1;
  uint64_t transposed_version_[kMaxLayers] = {};
};
