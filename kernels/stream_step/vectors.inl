// Memory, and vectors where the compiler's own code divides. STREAMWISE_LANES, if defined, is how many float32 numbers
// the set's vectors hold.

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

static inline float root(float x) { return __builtin_sqrtf(x); }
static inline double root(double x) { return __builtin_sqrt(x); }

template <class T>
static void zero(T* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = T(0);
}

#if defined(STREAMWISE_LANES)
constexpr int64_t kLanes = STREAMWISE_LANES;
#else
constexpr int64_t kLanes = 1;
#endif

// --- lanes: explicit vectors where the compiler's own code divides ---------------------------------------------
//
// A division and a square root per weight cost more than everything else in the adaptive rules. For float32 the
// processor's estimates, refined by one Newton step, are right to the last digit or two at a fifth of the cost.

#if defined(STREAMWISE_LANES)
// The sums of four vectors' elements, in order.
static inline __m128 sums_of_halves(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

#if STREAMWISE_LANES == 16
struct Lanes {
  using Vector = __m512;
  static constexpr int64_t kWidth = 16;
  static Vector load(const float* x) { return _mm512_loadu_ps(x); }
  static void store(float* x, Vector v) { _mm512_storeu_ps(x, v); }
  static Vector all(float x) { return _mm512_set1_ps(x); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector fused(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }    // a b + c
  static Vector negated(Vector a, Vector b, Vector c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
  static Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static Vector magnitude(Vector a) { return _mm512_abs_ps(a); }
  static Vector estimate_inverse_root(Vector a) { return _mm512_rsqrt14_ps(a); }
  static Vector estimate_inverse(Vector a) { return _mm512_rcp14_ps(a); }
  static float sum(Vector a) { return _mm512_reduce_add_ps(a); }
  static __m128 sums(Vector a, Vector b, Vector c, Vector d) {
    return sums_of_halves(halved(a), halved(b), halved(c), halved(d));
  }
  static __mmask16 first(int64_t n) { return __mmask16((1u << n) - 1u); }
  static Vector load_first(const float* x, int64_t n) { return _mm512_maskz_loadu_ps(first(n), x); }
  static void store_first(float* x, Vector v, int64_t n) { _mm512_mask_storeu_ps(x, first(n), v); }

 private:
  static __m256 halved(Vector a) {
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  }
};
#elif STREAMWISE_LANES == 8
struct Lanes {
  using Vector = __m256;
  static constexpr int64_t kWidth = 8;
  static Vector load(const float* x) { return _mm256_loadu_ps(x); }
  static void store(float* x, Vector v) { _mm256_storeu_ps(x, v); }
  static Vector all(float x) { return _mm256_set1_ps(x); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector fused(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector negated(Vector a, Vector b, Vector c) { return _mm256_fnmadd_ps(a, b, c); }
  static Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static Vector magnitude(Vector a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static Vector root(Vector a) { return _mm256_sqrt_ps(a); }
  static Vector estimate_inverse_root(Vector a) { return _mm256_rsqrt_ps(a); }
  static Vector estimate_inverse(Vector a) { return _mm256_rcp_ps(a); }
  static float sum(Vector a) {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
  }
  static __m128 sums(Vector a, Vector b, Vector c, Vector d) { return sums_of_halves(a, b, c, d); }
  static __m256i first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vector load_first(const float* x, int64_t n) { return _mm256_maskload_ps(x, first(n)); }
  static void store_first(float* x, Vector v, int64_t n) { _mm256_maskstore_ps(x, first(n), v); }
};
#endif

using Vector = Lanes::Vector;

// How a loop reads and writes: whole vectors, and at last the `count` numbers that a row has beyond them.
struct Whole {
  Vector load(const float* at) const { return Lanes::load(at); }
  void store(float* at, Vector v) const { Lanes::store(at, v); }
};
struct Rest {
  int64_t count;
  Vector load(const float* at) const { return Lanes::load_first(at, count); }
  void store(float* at, Vector v) const { Lanes::store_first(at, v, count); }
};

// Call step(i, part) for every vector of n numbers from index i on.
template <class Step>
static inline void each_part(int64_t n, Step step) {
  const int64_t whole = n - n % Lanes::kWidth;
  for (int64_t i = 0; i < whole; i += Lanes::kWidth) step(i, Whole{});
  if (whole < n) step(whole, Rest{n - whole});
}

// 1 / sqrt(x), for x of at least 1e-36: below, the estimate would overflow when squared.
static inline Vector inverse_root(Vector x) {
  x = Lanes::larger(x, Lanes::all(1e-36f));
  const Vector y = Lanes::estimate_inverse_root(x);
  const Vector half_x = Lanes::multiply(Lanes::all(0.5f), x), square = Lanes::multiply(y, y);
  return Lanes::fused(Lanes::negated(half_x, square, Lanes::all(0.5f)), y, y);
}

// 1 / (sqrt(x) + epsilon).
static inline Vector inverse_root_plus(Vector x, Vector epsilon) {
#if STREAMWISE_LANES == 16
  // The root r refined by r + (x - r^2) y / 2 with y the estimate of 1 / r.
  x = Lanes::larger(x, Lanes::all(1e-36f));
  const Vector y = Lanes::estimate_inverse_root(x);
  const Vector r = Lanes::multiply(x, y);
  const Vector root_plus =
      Lanes::fused(Lanes::negated(r, r, x), Lanes::multiply(Lanes::all(0.5f), y), Lanes::add(r, epsilon));
#else
  // Of eight numbers the processor's own root takes less time than its refined estimate, of sixteen it takes more.
  const Vector root_plus = Lanes::add(Lanes::root(x), epsilon);
#endif
  const Vector inverse = Lanes::estimate_inverse(root_plus);
  return Lanes::multiply(inverse, Lanes::negated(root_plus, inverse, Lanes::all(2.0f)));
}
#endif

// --- wide: vectors of either precision, by the compiler's own types, for products of matrices -----------------

#if defined(STREAMWISE_LANES)
constexpr int64_t kVectorBytes = 4 * STREAMWISE_LANES;
#else
constexpr int64_t kVectorBytes = 16;
#endif

template <class T>
struct Wide {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  static constexpr int64_t kWidth = kVectorBytes / int64_t(sizeof(T));
  static Vector load(const T* x) { return *reinterpret_cast<const Unaligned*>(x); }
  static void store(T* x, Vector v) { *reinterpret_cast<Unaligned*>(x) = v; }
  // v, to stay in a register: for AVX-512 GCC would load it again for each product, and with more loads than products
  // the loads take longer. AVX2 has no registers to spare, and GCC knows.
  static Vector held(Vector v) {
#if defined(STREAMWISE_LANES) && STREAMWISE_LANES == 16
    __asm__("" : "+v"(v));
#endif
    return v;
  }
  // to[i] = start + the sum of v[i], for kCount of them.
  template <int kCount>
  static void store_sums(T* to, const Vector* v, T start) {
#if defined(STREAMWISE_LANES)
    if constexpr (sizeof(T) == sizeof(float)) {
      if constexpr (kCount == 4) _mm_storeu_ps(to, _mm_add_ps(_mm_set1_ps(start), Lanes::sums(v[0], v[1], v[2], v[3])));
      else for (int i = 0; i < kCount; ++i) to[i] = start + Lanes::sum(v[i]);
      return;
    }
#endif
    for (int i = 0; i < kCount; ++i) {
      T total = v[i][0];
      for (int64_t l = 1; l < kWidth; ++l) total += v[i][l];
      to[i] = start + total;
    }
  }
};

// term(0) + ... + term(n - 1), as several sums side by side: each addition waits for the one before it.
template <class T, class Term>
static T sum_of(int64_t n, Term term) {
  constexpr int64_t kSums = 4 * Wide<T>::kWidth;
  T total = 0;
  int64_t i = 0;
  if (n >= kSums) {
    T sums[kSums] = {};
    for (; i + kSums <= n; i += kSums)
#pragma omp simd
      for (int64_t j = 0; j < kSums; ++j) sums[j] += term(i + j);
    for (int64_t j = 0; j < kSums; ++j) total += sums[j];
  }
  for (; i < n; ++i) total += term(i);
  return total;
}
