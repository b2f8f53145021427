// The engine: forward, backward straight into the traces, step-size rule and normalizers, for one sample.
//
// Included once per instruction set, inside a namespace of its own and under that set's target pragma: there is
// no include and no template of the standard library here, whose code could end up shared between the sets.
// The definition it must agree with is the torch back end in agents/; names follow it. STREAMWISE_LANES, if
// defined, is how many float32 numbers the set's vectors hold.

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
    data = nullptr;  // should there be no memory
    data = static_cast<T*>(::operator new[](sizeof(T) * static_cast<size_t>(count < 1 ? 1 : count), std::align_val_t(64)));
    size = count;
    for (int64_t i = 0; i < count; ++i) data[i] = T(0);
  }
  T& operator[](int64_t i) { return data[i]; }
  const T& operator[](int64_t i) const { return data[i]; }
};

// Old traces and second moments decay to denormal numbers, which x86 is a hundred times slower to compute with.
struct [[maybe_unused]] FlushDenormals {
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

// The same for two inputs at once: the weights, which are what takes time to read, are read once.
template <class T>
static void affine_pair(const T* __restrict weight, const T* __restrict bias, const T* __restrict x0,
                        const T* __restrict x1, T* __restrict y0, T* __restrict y1, int64_t outputs, int64_t inputs) {
  int64_t o = 0;
  for (; o + 2 <= outputs; o += 2) {
    const T *w0 = weight + o * inputs, *w1 = w0 + inputs;
    T s00 = 0, s01 = 0, s10 = 0, s11 = 0;
#pragma omp simd reduction(+ : s00, s01, s10, s11)
    for (int64_t i = 0; i < inputs; ++i) {
      s00 += w0[i] * x0[i];
      s01 += w0[i] * x1[i];
      s10 += w1[i] * x0[i];
      s11 += w1[i] * x1[i];
    }
    y0[o] = bias[o] + s00;
    y1[o] = bias[o] + s01;
    y0[o + 1] = bias[o + 1] + s10;
    y1[o + 1] = bias[o + 1] + s11;
  }
  if (o < outputs) {
    affine(weight + o * inputs, bias + o, x0, y0 + o, 1, inputs);
    affine(weight + o * inputs, bias + o, x1, y1 + o, 1, inputs);
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

// --- lanes: explicit vectors where the compiler's own code divides ---------------------------------------------
//
// A division and a square root per weight cost more than everything else in the adaptive rules. For float32 the
// processor's estimates, refined by one Newton step, are right to the last digit or two at a fifth of the cost.

#if defined(STREAMWISE_LANES)
#if STREAMWISE_LANES == 16
struct Lanes {
  using Vector = __m512;
  static constexpr int64_t kWidth = 16;
  static Vector load(const float* x) { return _mm512_loadu_ps(x); }
  static void store(float* x, Vector v) { _mm512_storeu_ps(x, v); }
  static Vector all(float x) { return _mm512_set1_ps(x); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector fused(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }    // a b + c
  static Vector negated(Vector a, Vector b, Vector c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
  static Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static Vector magnitude(Vector a) { return _mm512_abs_ps(a); }
  static Vector estimate_inverse_root(Vector a) { return _mm512_rsqrt14_ps(a); }
  static Vector estimate_inverse(Vector a) { return _mm512_rcp14_ps(a); }
  static float sum(Vector a) { return _mm512_reduce_add_ps(a); }
  static __mmask16 first(int64_t n) { return __mmask16((1u << n) - 1u); }
  static Vector load_first(const float* x, int64_t n) { return _mm512_maskz_loadu_ps(first(n), x); }
  static void store_first(float* x, Vector v, int64_t n) { _mm512_mask_storeu_ps(x, first(n), v); }
};
#elif STREAMWISE_LANES == 8
struct Lanes {
  using Vector = __m256;
  static constexpr int64_t kWidth = 8;
  static Vector load(const float* x) { return _mm256_loadu_ps(x); }
  static void store(float* x, Vector v) { _mm256_storeu_ps(x, v); }
  static Vector all(float x) { return _mm256_set1_ps(x); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector fused(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector negated(Vector a, Vector b, Vector c) { return _mm256_fnmadd_ps(a, b, c); }
  static Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static Vector magnitude(Vector a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Vector estimate_inverse_root(Vector a) { return _mm256_rsqrt_ps(a); }
  static Vector estimate_inverse(Vector a) { return _mm256_rcp_ps(a); }
  static float sum(Vector a) {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
  }
  static __m256i first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vector load_first(const float* x, int64_t n) { return _mm256_maskload_ps(x, first(n)); }
  static void store_first(float* x, Vector v, int64_t n) { _mm256_maskstore_ps(x, first(n), v); }
};
#endif

using Vector = Lanes::Vector;

// 1 / sqrt(x), for x of at least 1e-36: below, the estimate would overflow when squared.
static inline Vector inverse_root(Vector x) {
  x = Lanes::larger(x, Lanes::all(1e-36f));
  const Vector y = Lanes::estimate_inverse_root(x);
  const Vector half_x = Lanes::multiply(Lanes::all(0.5f), x), square = Lanes::multiply(y, y);
  return Lanes::fused(Lanes::negated(half_x, square, Lanes::all(0.5f)), y, y);
}

// 1 / (sqrt(x) + epsilon): the root r refined by r + (x - r^2) y / 2 with y the estimate of 1 / r.
static inline Vector inverse_root_plus(Vector x, Vector epsilon) {
  x = Lanes::larger(x, Lanes::all(1e-36f));
  const Vector y = Lanes::estimate_inverse_root(x);
  const Vector r = Lanes::multiply(x, y);
  const Vector root_plus =
      Lanes::fused(Lanes::negated(r, r, x), Lanes::multiply(Lanes::all(0.5f), y), Lanes::add(r, epsilon));
  const Vector inverse = Lanes::estimate_inverse(root_plus);
  return Lanes::multiply(inverse, Lanes::negated(root_plus, inverse, Lanes::all(2.0f)));
}
#endif

// --- step-size rules: the trace of one layer ------------------------------------------------------------------
//
// The gradient of row o of a linear layer is d[o] * x[0..n): it is made here and never stored. Norms are summed in
// the arrays' precision over a few rows, then in double.

constexpr int64_t kRowsPerSum = 8;
constexpr int64_t kPiece = 1024;  // of a convolution's gradient: a row of its own, for the same reason

template <class T>
struct Rows {
  T *z, *v, *scaled;  // [rows, n]; v and scaled are not used by obgd
  const T* x;         // [n]
  const T* squares;   // [n], of x; read by `intentional` in lanes
  const T* d;         // [rows], or null for ones
  int64_t rows, n;
  T decay, beta, weight, correction, epsilon;

  T slope(int64_t o) const { return d ? d[o] : T(1); }
};

struct Norms {
  double gradient = 0.0, trace = 0.0;
  double scale = 1.0;  // what `scaled` still has to be multiplied by
};

// z <- decay z + g. Returns the sum of |z|.
template <class T>
static double obgd(const Rows<T>& r) {
  double norm = 0.0;
  for (int64_t o = 0; o < r.rows; ++o) {
    T* __restrict z = r.z + o * r.n;
    const T* __restrict x = r.x;
    const T d = r.slope(o), decay = r.decay;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < r.n; ++i) {
      const T now = decay * z[i] + d * x[i];
      z[i] = now;
      sum += now < 0 ? -now : now;
    }
    norm += double(sum);
  }
  return norm;
}

// The same, then v <- beta v + weight z^2 and scaled = z / sqrt(v correction + epsilon). Returns the sum of |scaled|.
template <class T>
static double adaptive(const Rows<T>& r) {
  double norm = 0.0;
  for (int64_t o = 0; o < r.rows; ++o) {
    T *__restrict z = r.z + o * r.n, *__restrict v = r.v + o * r.n, *__restrict scaled = r.scaled + o * r.n;
    const T* __restrict x = r.x;
    const T d = r.slope(o), decay = r.decay, beta = r.beta, weight = r.weight;
    const T correction = r.correction, epsilon = r.epsilon;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < r.n; ++i) {
      const T now = decay * z[i] + d * x[i];
      z[i] = now;
      const T moment = beta * v[i] + weight * now * now;
      v[i] = moment;
      const T s = now / root(moment * correction + epsilon);
      scaled[i] = s;
      sum += s < 0 ? -s : s;
    }
    norm += double(sum);
  }
  return norm;
}

// v <- beta v + weight g^2, z <- decay z + g and scaled = z / (sqrt(v correction) + epsilon). Returns the norms of
// gradient and trace, each entry's square divided by the same root.
template <class T>
static Norms intentional(const Rows<T>& r) {
  Norms norms;
  for (int64_t o = 0; o < r.rows; ++o) {
    T *__restrict z = r.z + o * r.n, *__restrict v = r.v + o * r.n, *__restrict scaled = r.scaled + o * r.n;
    const T* __restrict x = r.x;
    const T d = r.slope(o), decay = r.decay, beta = r.beta, weight = r.weight;
    const T correction = r.correction, epsilon = r.epsilon;
    T gradient = 0, trace = 0;
#pragma omp simd reduction(+ : gradient, trace)
    for (int64_t i = 0; i < r.n; ++i) {
      const T g = d * x[i];
      const T square = g * g;
      const T moment = beta * v[i] + weight * square;
      v[i] = moment;
      const T inverse = T(1) / (root(moment * correction) + epsilon);
      const T now = decay * z[i] + g;
      z[i] = now;
      const T s = now * inverse;
      scaled[i] = s;
      gradient += square * inverse;
      trace += now * s;
    }
    norms.gradient += double(gradient);
    norms.trace += double(trace);
  }
  return norms;
}

#if defined(STREAMWISE_LANES)
// The same three for float32. Call step(at, d, x, load, store) for every vector of the rows: `at` counts from the
// first row's first weight, and `load` and `store` leave alone what lies beyond a row's end. sum() comes every few
// rows and after the last.
template <class Step, class Sum>
static inline void each_vector(const Rows<float>& r, Step step, Sum sum) {
  const float* const x = r.x;
  const int64_t n = r.n, rows = r.rows, whole = n - n % Lanes::kWidth;
  for (int64_t o = 0; o < rows; ++o) {
    const int64_t row = o * n;
    const Vector d = Lanes::all(r.slope(o));
    for (int64_t i = 0; i < whole; i += Lanes::kWidth)
      step(row + i, d, Lanes::load(x + i), [](const float* at) { return Lanes::load(at); },
           [](float* at, Vector v) { Lanes::store(at, v); });
    if (whole < n) {
      const int64_t count = n - whole;
      step(row + whole, d, Lanes::load_first(x + whole, count),
           [count](const float* at) { return Lanes::load_first(at, count); },
           [count](float* at, Vector v) { Lanes::store_first(at, v, count); });
    }
    if (o % kRowsPerSum == kRowsPerSum - 1) sum();
  }
  sum();
}

static double obgd(const Rows<float>& r) {
  float* const z = r.z;  // a copy: vector stores may alias anything reached by reference
  const Vector decay = Lanes::all(r.decay), none = Lanes::all(0.0f);
  Vector partial = none;
  double norm = 0.0;
  each_vector(
      r,
      [=, &partial](int64_t at, Vector d, Vector x, auto load, auto store) {
        const Vector now = Lanes::fused(decay, load(z + at), Lanes::multiply(d, x));
        store(z + at, now);
        partial = Lanes::add(partial, Lanes::magnitude(now));
      },
      [&] {
        norm += double(Lanes::sum(partial));
        partial = none;
      });
  return norm;
}

static double adaptive(const Rows<float>& r) {
  float *const z = r.z, *const v = r.v, *const scaled = r.scaled;
  const Vector decay = Lanes::all(r.decay), beta = Lanes::all(r.beta), weight = Lanes::all(r.weight);
  const Vector correction = Lanes::all(r.correction), epsilon = Lanes::all(r.epsilon), none = Lanes::all(0.0f);
  Vector partial = none;
  double norm = 0.0;
  each_vector(
      r,
      [=, &partial](int64_t at, Vector d, Vector x, auto load, auto store) {
        const Vector now = Lanes::fused(decay, load(z + at), Lanes::multiply(d, x));
        store(z + at, now);
        const Vector moment = Lanes::fused(beta, load(v + at), Lanes::multiply(weight, Lanes::multiply(now, now)));
        store(v + at, moment);
        const Vector s = Lanes::multiply(now, inverse_root(Lanes::fused(moment, correction, epsilon)));
        store(scaled + at, s);
        partial = Lanes::add(partial, Lanes::magnitude(s));
      },
      [&] {
        norm += double(Lanes::sum(partial));
        partial = none;
      });
  return norm;
}

static Norms intentional(const Rows<float>& r) {
  float *const z = r.z, *const v = r.v, *const scaled = r.scaled;
  const float *const x = r.x, *const squares = r.squares;
  const int64_t n = r.n, rows = r.rows, whole = n - n % Lanes::kWidth, rest = n - whole;
  const Vector decay = Lanes::all(r.decay), beta = Lanes::all(r.beta), none = Lanes::all(0.0f);
  // sqrt(v correction) + epsilon = (sqrt(v) + epsilon / root) root: one multiplication less for each weight.
  const float correction_root = root(r.correction);
  const Vector epsilon = Lanes::all(r.epsilon / correction_root);
  Vector gradient = none, trace = none;
  Norms norms;
  norms.scale = 1.0 / double(correction_root);
  for (int64_t o = 0; o < rows; ++o) {
    const float slope = r.slope(o);
    const Vector d = Lanes::all(slope), weight = Lanes::all(r.weight * slope * slope);
    Vector row_gradient = none;  // of x alone: d is the same along a row
    auto step = [&](float* z_at, float* v_at, float* scaled_at, Vector x_at, Vector square, auto load, auto store) {
      const Vector moment = Lanes::fused(weight, square, Lanes::multiply(beta, load(v_at)));
      const Vector now = Lanes::fused(d, x_at, Lanes::multiply(decay, load(z_at)));
      const Vector inverse = inverse_root_plus(moment, epsilon);
      const Vector s = Lanes::multiply(now, inverse);
      store(v_at, moment);
      store(z_at, now);
      store(scaled_at, s);
      row_gradient = Lanes::fused(square, inverse, row_gradient);
      trace = Lanes::fused(now, s, trace);
    };
    float *const z_row = z + o * n, *const v_row = v + o * n, *const scaled_row = scaled + o * n;
    for (int64_t i = 0; i < whole; i += Lanes::kWidth)
      step(z_row + i, v_row + i, scaled_row + i, Lanes::load(x + i), Lanes::load(squares + i),
           [](const float* at) { return Lanes::load(at); }, [](float* at, Vector value) { Lanes::store(at, value); });
    if (rest)
      step(z_row + whole, v_row + whole, scaled_row + whole, Lanes::load_first(x + whole, rest),
           Lanes::load_first(squares + whole, rest),
           [rest](const float* at) { return Lanes::load_first(at, rest); },
           [rest](float* at, Vector value) { Lanes::store_first(at, value, rest); });
    gradient = Lanes::fused(Lanes::all(slope * slope), row_gradient, gradient);
    if (o % kRowsPerSum == kRowsPerSum - 1 || o == rows - 1) {
      norms.gradient += double(Lanes::sum(gradient)) * norms.scale;
      norms.trace += double(Lanes::sum(trace)) * norms.scale;
      gradient = trace = none;
    }
  }
  return norms;
}
#endif

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
      : parameters_(static_cast<T*>(spec.parameters)),
        trace_(static_cast<T*>(spec.trace)),
        second_moment_(static_cast<T*>(spec.second_moment)),
        size_(spec.size),
        rule_(spec.rule),
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
    if (rule_.kind != RuleKind::obgd) scaled_.allocate(size_);
    if (rule_.kind == RuleKind::intentional) squares_.allocate(longest_row());
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

  // Forward passes of two inputs, together where neither is there already.
  void forward_pair(const T* x0, Activations<T>& a0, const T* x1, Activations<T>& a1) {
    if (a0.valid || a1.valid) {
      forward(x0, a0);
      forward(x1, a1);
      return;
    }
    const size_t bytes = sizeof(T) * static_cast<size_t>(inputs());
    __builtin_memcpy(a0.input.data, x0, bytes);
    __builtin_memcpy(a1.input.data, x1, bytes);
    const T *current0 = a0.input.data, *current1 = a1.input.data;
    for (int64_t l = 0; l < count_; ++l) {
      const LayerSpec& layer = layers_[l];
      if (layer.kind == LayerKind::linear) {
        const T* weight = parameters_ + offset_[l];
        affine_pair(weight, weight + layer.outputs * layer.inputs, current0, current1, a0.output[l].data,
                    a1.output[l].data, layer.outputs, layer.inputs);
      } else {
        forward_layer(l, current0, a0);
        forward_layer(l, current1, a1);
      }
      current0 = a0.output[l].data;
      current1 = a1.output[l].data;
    }
    a0.valid = a1.valid = true;
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
    switch (rule_.kind) {
      case RuleKind::obgd: {
        double norm = 0.0;
        each_layer(a, rows_of(decay, 0.0, 0.0, 0.0), [&](const Rows<T>& rows) { norm += obgd(rows); });
        const double step = bounded_step_size(td_error, norm);
        axpy(parameters_, trace_, T(step * td_error), size_);
        return step;
      }
      case RuleKind::adaptive_obgd: {
        state.updates += 1;
        const double beta = rule_.second_moment_decay;
        const double correction = 1.0 / (1.0 - __builtin_pow(beta, double(state.updates)));
        double norm = 0.0;
        each_layer(a, rows_of(decay, beta, (1.0 - beta) * td_error * td_error, correction),
                   [&](const Rows<T>& rows) { norm += adaptive(rows); });
        const double step = bounded_step_size(td_error, norm);
        axpy(parameters_, scaled_.data, T(step * td_error), size_);
        return step;
      }
      default: {
        state.updates += 1;
        state.decay_product *= decay;
        const double beta = rule_.second_moment_decay;
        const double correction = 1.0 / (1.0 - __builtin_pow(beta, double(state.updates)));
        double norm = 0.0, trace_norm = 0.0, scale = 1.0;
        each_layer(a, rows_of(decay, beta, 1.0 - beta, correction), [&](Rows<T> rows) {
          for (int64_t i = 0; i < rows.n; ++i) squares_[i] = rows.x[i] * rows.x[i];
          rows.squares = squares_.data;
          const Norms norms = intentional(rows);
          scale = norms.scale;
          norm += norms.gradient;
          trace_norm += norms.trace;
        });
        double sigma;
        if (decay < 1.0) {
          state.gradient_norm = decay * state.gradient_norm + (1.0 - decay) * norm;
          sigma = state.gradient_norm / (1.0 - state.decay_product);
        } else {
          state.gradient_norm += (norm - state.gradient_norm) / double(state.updates);
          sigma = state.gradient_norm;
        }
        const double reach = __builtin_sqrt(sigma * trace_norm);
        const double step = rule_.intended_change / (reach > 1e-8 ? reach : 1e-8);
        axpy(parameters_, scaled_.data, T(step * scale * tame(td_error, state)), size_);
        return step;
      }
    }
  }

  void clear_trace() { zero(trace_, size_); }
  void weights_changed() { ++weights_version_; }

 private:
  void forward_layer(int64_t l, const T* x, Activations<T>& a) {
    const LayerSpec& layer = layers_[l];
    T* y = a.output[l].data;
    switch (layer.kind) {
      case LayerKind::linear: {
        const T* weight = parameters_ + offset_[l];
        affine(weight, weight + layer.outputs * layer.inputs, x, y, layer.outputs, layer.inputs);
        break;
      }
      case LayerKind::convolution: {
        const int64_t patch = layer.channels_in * layer.kernel * layer.kernel;
        const int64_t positions = layer.height_out * layer.width_out;
        const T* bias = parameters_ + offset_[l] + layer.channels_out * patch;
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
        if (dx) affine_backward(parameters_ + offset_[l], dy, dx, layer.outputs, layer.inputs);
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
          multiply(dy, layer.channels_out, int64_t(1), parameters_ + offset_[l], patch_delta_[l].data, positions,
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

  Rows<T> rows_of(double decay, double beta, double weight, double correction) const {
    Rows<T> rows{};
    rows.decay = T(decay), rows.beta = T(beta), rows.weight = T(weight);
    rows.correction = T(correction), rows.epsilon = T(rule_.epsilon);
    return rows;
  }

  // Call visit for the weights and for the biases of every layer that has them.
  template <class Visit>
  void each_layer(const Activations<T>& a, Rows<T> rows, Visit visit) const {
    auto at = [&](int64_t offset, const T* x, const T* d, int64_t row_count, int64_t n) {
      rows.z = trace_ + offset;
      rows.v = second_moment_ ? second_moment_ + offset : nullptr;
      rows.scaled = scaled_.data + offset;
      rows.x = x, rows.d = d, rows.rows = row_count, rows.n = n;
      visit(rows);
    };
    for (int64_t l = 0; l < count_; ++l) {
      const LayerSpec& layer = layers_[l];
      const T* x = l > 0 ? a.output[l - 1].data : a.input.data;
      if (layer.kind == LayerKind::linear) {
        at(offset_[l], x, delta_[l].data, layer.outputs, layer.inputs);
        at(offset_[l] + layer.outputs * layer.inputs, delta_[l].data, nullptr, 1, layer.outputs);
      } else if (layer.kind == LayerKind::convolution) {
        const int64_t n = gradient_[l].size;
        for (int64_t first = 0; first < n; first += kPiece)
          at(offset_[l] + first, gradient_[l].data + first, nullptr, 1, n - first < kPiece ? n - first : kPiece);
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
    const T* weight = parameters_ + offset_[l];
    T* to = transposed_[l].data;
    const int64_t channels = layers_[l].channels_out;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t k = 0; k < patch; ++k) to[k * channels + c] = weight[c * patch + k];
  }

  int64_t longest_row() const {
    int64_t longest = kPiece;
    for (int64_t l = 0; l < count_; ++l) {
      const LayerSpec& layer = layers_[l];
      if (layer.kind == LayerKind::linear && layer.inputs > longest) longest = layer.inputs;
      if (layer.kind == LayerKind::linear && layer.outputs > longest) longest = layer.outputs;
    }
    return longest;
  }

  double bounded_step_size(double td_error, double norm) const {
    const double magnitude = __builtin_fabs(td_error) > 1.0 ? __builtin_fabs(td_error) : 1.0;
    const double overshoot = rule_.step_size * rule_.overshoot_margin * magnitude * norm;
    return overshoot > 1.0 ? rule_.step_size / overshoot : rule_.step_size;
  }

  double tame(double td_error, RuleState& state) const {
    const double beta = rule_.td_error_decay;
    const double correction = 1.0 - __builtin_pow(beta, double(state.updates));
    state.td_error_square = beta * state.td_error_square + (1.0 - beta) * td_error * td_error;
    const double cap = rule_.td_error_cap * __builtin_sqrt(state.td_error_square / correction);
    const double clipped = td_error > cap ? cap : td_error < -cap ? -cap : td_error;
    if (!rule_.normalize_td_error) return clipped;
    state.td_error_magnitude = beta * state.td_error_magnitude + (1.0 - beta) * __builtin_fabs(clipped);
    const double scale = state.td_error_magnitude / correction;
    return clipped / (scale > 1e-12 ? scale : 1e-12);
  }

  T *const parameters_, *const trace_, *const second_moment_;  // [size_]
  const int64_t size_;
  const RuleSpec rule_;
  const int64_t count_;
  LayerSpec layers_[kMaxLayers];
  int64_t offset_[kMaxLayers];
  Array<T> delta_[kMaxLayers];  // d objective / d output of each layer
  Array<T> gradient_[kMaxLayers], transposed_[kMaxLayers], patch_delta_[kMaxLayers];  // convolutions
  Array<T> squares_;
  Array<T> scaled_;  // trace / root mean square, kept between the norm and the step
  uint64_t weights_version_ = 1;
  uint64_t transposed_version_[kMaxLayers] = {};
};
