// Vectors, and the functions that the compiler has no vector code for. Nothing here includes a header.

template <class T>
static T sum_of(const T* lanes) {
  T total = 0;
  for (int j = 0; j < 16; ++j) total += lanes[j];
  return total;
}

// n is a multiple of 16, here and where nothing else is said.
template <class T>
static T dot(const T* a, const T* b, int64_t n) {
  T lanes[16] = {};
  for (int64_t i = 0; i < n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] += a[i + j] * b[i + j];
  return sum_of(lanes);
}

template <class T>
static void add_scaled(T* out, T scale, const T* x, int64_t n) {  // any n
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] += scale * x[i];
}

// out[n] += x[m] W, W: [m, n] in rows of `stride`. Blocks of outputs stay in registers.
template <int block, class T>
static void multiply_block(T* out, const T* x, int64_t m, const T* weight, int64_t stride) {
  T lanes[block];
  for (int j = 0; j < block; ++j) lanes[j] = out[j];
  for (int64_t i = 0; i < m; ++i) {
    const T scale = x[i];
    const T* row = weight + i * stride;
    for (int j = 0; j < block; ++j) lanes[j] += scale * row[j];
  }
  for (int j = 0; j < block; ++j) out[j] = lanes[j];
}

template <class T>
static void multiply(T* out, const T* x, int64_t m, const T* weight, int64_t n) {
  int64_t j = 0;
  for (; j + 64 <= n; j += 64) multiply_block<64>(out + j, x, m, weight + j, n);
  for (; j + 16 <= n; j += 16) multiply_block<16>(out + j, x, m, weight + j, n);
  for (; j < n; ++j)
    for (int64_t i = 0; i < m; ++i) out[j] += x[i] * weight[i * n + j];
}

// The gradient of out = x W for a gradient g of out: gW += x g, and gx += W g unless it is null. Any n.
template <class T>
static void multiply_back(T* gx, const T* x, int64_t m, const T* weight, T* gradient, const T* g, int64_t n) {
  const int64_t whole = n / 16 * 16;
  for (int64_t i = 0; i < m; ++i) {
    const T* row = weight + i * n;
    T* to = gradient + i * n;
    const T scale = x[i];
    T lanes[16] = {};
    if (gx != nullptr) {
      for (int64_t k = 0; k < whole; k += 16)
        for (int j = 0; j < 16; ++j) lanes[j] += row[k + j] * g[k + j];
      T total = sum_of(lanes);
      for (int64_t k = whole; k < n; ++k) total += row[k] * g[k];
      gx[i] += total;
    }
    if (scale != T(0)) add_scaled(to, scale, g, n);
  }
}

static inline double exp_of(double x) { return __builtin_exp(x); }

// To two units in the last place, over all that is neither zero nor infinite (Cody and Waite's reduction).
static inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float shifted = x * 1.44269504f + 12582912.0f;  // rounded to a whole number, in the lowest bits
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const unsigned bits = unsigned(int(n) + 127) << 23;  // of what is no number, anything
  return p * __builtin_bit_cast(float, bits);
}

template <class T>
static inline T sigmoid(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

static inline double tanh_of(double x) { return __builtin_tanh(x); }
static inline float tanh_of(float x) { return 1.0f - 2.0f / (1.0f + exp_of(2.0f * x)); }

static inline double log1p_of(double x) { return __builtin_log1p(x); }

// For x >= 0, to two units in the last place: the logarithm of 1 + x, and what rounding took from that sum.
static inline float log1p_of(float x) {
  const float u = 1.0f + x, lost = (x - (u - 1.0f)) / u;
  const int bits = __builtin_bit_cast(int, u), whole = (bits - 0x3f3504f3) >> 23;  // mantissas from sqrt(1/2) on
  const float f = __builtin_bit_cast(float, unsigned(bits) - (unsigned(whole) << 23)) - 1.0f, square = f * f;
  const float n = float(whole);
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  p = p * f * square - n * 2.12194440e-4f - 0.5f * square;
  return f + p + (n * 0.693359375f + lost);
}

// SplitMix64's mixing of key + n * golden, as agents/generator.py: draw n of [0, 1).
static inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}
static inline double draw(uint64_t key, uint64_t n) {
  return double(mixed(key + n * 0x9E3779B97F4A7C15u) >> 11) * 0x1p-53;
}
