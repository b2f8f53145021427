// Looking chunks up, for each instruction set again. Nothing here includes a header; reference.py is the definition.

constexpr int64_t kLanes = 16;   // queries that go through the scan side by side
constexpr int64_t kFew = 4;      // queries that go through it one by one
constexpr int64_t kBlock = 128;  // summaries that stay in the cache for all queries
constexpr int64_t kAhead = 4;    // blocks of rows that are asked of the memory before they are needed
constexpr int64_t kRows = STREAMWISE_SCAN_ROWS;  // summaries at a time: chains of additions that overlap, in registers

template <class T>
static inline T as(T x) { return x; }
template <class T>
static inline T as(uint16_t x) {  // bfloat16 is the upper half of a float32
  return T(__builtin_bit_cast(float, uint32_t(x) << 16));
}
template <class T>
static inline T as(int8_t x) { return T(x); }
template <class T, class S>
static inline T value(S x) {
  if constexpr (sizeof(S) == sizeof(T)) return x;
  else return as<T>(x);
}

template <class T, class S>
static inline T product(const T* a, const S* b, int64_t n) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += a[i + j] * value<T, S>(b[i + j]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)  // in pairs, not one after the other
    for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  T total = lanes[0];
  for (; i < n; ++i) total += a[i] * value<T, S>(b[i]);
  return total;
}

// The sums of the lanes of 1, 2 or 4 vectors: halves of two are added side by side.
template <int64_t several, class T, class Lanes>
static inline void sum_lanes(const Lanes* v, T* totals) {
  Lanes four;  // four lanes of each, or eight of each of two
  if constexpr (several == 4) {
    const Lanes a = __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                    __builtin_shufflevector(v[0], v[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const Lanes b = __builtin_shufflevector(v[2], v[3], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                    __builtin_shufflevector(v[2], v[3], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    four = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  } else {
    const Lanes other = v[several - 1];
    const Lanes a = __builtin_shufflevector(v[0], other, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                    __builtin_shufflevector(v[0], other, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    four = a + __builtin_shufflevector(a, a, 4, 5, 6, 7, 4, 5, 6, 7, 12, 13, 14, 15, 12, 13, 14, 15);
  }
  four += __builtin_shufflevector(four, four, 2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15);
  four += __builtin_shufflevector(four, four, 1, 1, 1, 1, 5, 5, 5, 5, 9, 9, 9, 9, 13, 13, 13, 13);
  for (int64_t h = 0; h < several; ++h) totals[h] = four[several == 4 ? 4 * h : 8 * h];
}

// out[h * stride] = u_h x, u: [H, D]. Several at once: additions to one sum wait for each other.
template <int64_t several, class T>
[[gnu::always_inline]] static inline void products_of(const T* u, const T* x, int64_t D, T* out, int64_t stride) {
  typedef T Lanes __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
  Lanes sums[several] = {};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    const Lanes at = *reinterpret_cast<const Lanes*>(x + d);
#pragma GCC unroll 4
    for (int64_t h = 0; h < several; ++h) sums[h] += *reinterpret_cast<const Lanes*>(u + h * D + d) * at;
  }
  T totals[several];
  sum_lanes<several>(sums, totals);
  if (d < D)
    for (int64_t h = 0; h < several; ++h)
      for (int64_t i = d; i < D; ++i) totals[h] += u[h * D + i] * x[i];
#pragma GCC unroll 4
  for (int64_t h = 0; h < several; ++h) out[h * stride] = totals[h];
}

template <class T>
static inline void products(const T* u, const T* x, int64_t H, int64_t D, T* out, int64_t stride) {
  int64_t h = 0;
  for (; h + 4 <= H; h += 4) products_of<4>(u + h * D, x, D, out + h * stride, stride);
  for (; h + 2 <= H; h += 2) products_of<2>(u + h * D, x, D, out + h * stride, stride);
  for (; h < H; ++h) products_of<1>(u + h * D, x, D, out + h * stride, stride);
}

template <class T, class S>
static inline void add(T* out, T scale, const S* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] += scale * value<T, S>(x[i]);
}

// out[h, D] += Σ_c shares_hc x_c, x: [n, D], for some heads. Blocks of the sums stay in registers.
template <int64_t heads, int64_t vectors, class T>
static inline void pool_block(T* out, const T* shares, int64_t stride, const T* x, int64_t n, int64_t D) {
  typedef T Lanes __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
  Lanes sums[heads * vectors];
#pragma GCC unroll 16
  for (int64_t i = 0; i < heads * vectors; ++i)
    sums[i] = *reinterpret_cast<const Lanes*>(out + i / vectors * D + i % vectors * kLanes);
  for (int64_t c = 0; c < n; ++c) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < heads * vectors; ++i)
      sums[i] += shares[i / vectors * stride + c] * *reinterpret_cast<const Lanes*>(x + c * D + i % vectors * kLanes);
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < heads * vectors; ++i)
    *reinterpret_cast<Lanes*>(out + i / vectors * D + i % vectors * kLanes) = sums[i];
}

template <int64_t heads, class T>
static inline void pool_of(T* out, const T* shares, int64_t stride, const T* x, int64_t n, int64_t D) {
  int64_t d = 0;
  for (; d + 4 * kLanes <= D; d += 4 * kLanes) pool_block<heads, 4>(out + d, shares, stride, x + d, n, D);
  for (; d + kLanes <= D; d += kLanes) pool_block<heads, 1>(out + d, shares, stride, x + d, n, D);
  for (; d < D; ++d)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t c = 0; c < n; ++c) out[h * D + d] += shares[h * stride + c] * x[c * D + d];
}

template <class T>
static inline void pool(T* out, const T* shares, int64_t stride, int64_t H, const T* x, int64_t n, int64_t D) {
  int64_t h = 0;
  for (; h + 4 <= H; h += 4) pool_of<4>(out + h * D, shares + h * stride, stride, x, n, D);
  for (; h + 2 <= H; h += 2) pool_of<2>(out + h * D, shares + h * stride, stride, x, n, D);
  for (; h < H; ++h) pool_of<1>(out + h * D, shares + h * stride, stride, x, n, D);
}

// The products of some summaries with 16 queries side by side, [D, lanes]; true if any is above the least that its
// query looks for. Sums stay in registers. scales: of these summaries, or null. next: summaries that are asked of the
// memory meanwhile, a line now and a line then; all at once, they would wait for each other.
template <int64_t rows, class T, class S>
static inline bool multiply(T (*sums)[kLanes], const S* x, const float* scales, const T* queries, const T* least, int64_t D,
                            const S* next) {
  constexpr int64_t kLine = 64 / int64_t(rows * sizeof(S)) > 0 ? 64 / int64_t(rows * sizeof(S)) : 1;
  typedef T Lanes __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
  Lanes total[rows] = {};
  for (int64_t d = 0; d < D; ++d) {
    const Lanes query = *reinterpret_cast<const Lanes*>(queries + d * kLanes);
    if (d % kLine == 0) __builtin_prefetch(next + d * rows);
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r) total[r] += value<T, S>(x[r * D + d]) * query;
  }
  const Lanes limit = *reinterpret_cast<const Lanes*>(least);
  auto above = limit > limit;
#pragma GCC unroll 8
  for (int64_t r = 0; r < rows; ++r) {
    if (scales != nullptr) total[r] *= T(scales[r]);
    above |= total[r] > limit;
    *reinterpret_cast<Lanes*>(sums[r]) = total[r];
  }
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) above[j] |= above[j + half];
  return above[0] != 0;
}

// The best so far of one query, best first; of equal ones the first found is kept, and stands first.
template <class T>
struct Best {
  T* scores;
  int64_t* chunks;
  int64_t k, size;

  T least() const { return size < k ? -T(__builtin_inf()) : scores[k - 1]; }
  void offer(T score, int64_t chunk) {
    int64_t at = size < k ? size++ : k - 1;
    for (; at > 0 && scores[at - 1] < score; --at) scores[at] = scores[at - 1], chunks[at] = chunks[at - 1];
    scores[at] = score, chunks[at] = chunk;
  }
};

template <class T, class S>
static void scan_as(const ScanTask& task, T* logits, int64_t* chunks, T* scratch) {
  const int64_t D = task.width, M = task.count, Q = task.queries, K = task.k;
  const S* summaries = static_cast<const S*>(task.summaries);
  const T* select = static_cast<const T*>(task.select);
  const int64_t groups = Q <= kFew ? 0 : (Q + kLanes - 1) / kLanes;
  T* turned = scratch;                             // [groups, D, lanes]: queries side by side
  T* least = turned + groups * D * kLanes;         // [queries, padded]: what a chunk must exceed
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t d = 0; d < D; ++d)
      for (int64_t j = 0; j < kLanes; ++j) {
        const int64_t q = g * kLanes + j;
        turned[(g * D + d) * kLanes + j] = q < Q ? select[q * D + d] : T(0);
      }
  for (int64_t q = 0; q < (groups ? groups * kLanes : Q); ++q)
    least[q] = q < Q ? -T(__builtin_inf()) : T(__builtin_inf());
  for (int64_t i = 0; i < Q * K; ++i) logits[i] = -T(__builtin_inf()), chunks[i] = -1;
  int64_t* sizes = task.sizes;
  for (int64_t q = 0; q < Q; ++q) sizes[q] = 0;
  if (K == 0) return;

  auto offer = [&](int64_t q, int64_t chunk, T score) {
    if (task.visible != nullptr && !task.visible[q * task.visible_stride + chunk]) return;
    Best<T> best{logits + q * K, chunks + q * K, K, sizes[q]};
    best.offer(score, chunk);
    sizes[q] = best.size, least[q] = best.least();
  };
  for (int64_t start = 0; start < M; start += kBlock) {
    const int64_t end = start + kBlock < M ? start + kBlock : M;
    if (groups == 0)
      for (int64_t q = 0; q < Q; ++q)
        for (int64_t i = start; i < end; ++i) {
          T score = product<T, S>(select + q * D, summaries + i * D, D);
          if (task.scales != nullptr) score *= T(task.scales[i]);
          if (score > least[q]) offer(q, i, score);
        }
    for (int64_t g = 0; g < groups; ++g) {
      const T* queries = turned + g * D * kLanes;
      int64_t i = start;
      for (; i < end; i += kRows) {
        T sums[kRows][kLanes];
        const int64_t rows = end - i < kRows ? end - i : kRows;
        const float* scales = task.scales == nullptr ? nullptr : task.scales + i;
        bool above = false;
        if (rows == kRows) {
          const S* next = summaries + (i + kAhead * kRows) * D;
          above = multiply<kRows, T, S>(sums, summaries + i * D, scales, queries, least + g * kLanes, D, next);
        } else {
          for (int64_t r = 0; r < rows; ++r)
            above |= multiply<1, T, S>(sums + r, summaries + (i + r) * D, scales ? scales + r : nullptr, queries,
                                       least + g * kLanes, D, summaries + (i + r) * D);
        }
        if (!above) continue;
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t j = 0; j < kLanes; ++j)
            if (sums[r][j] > least[g * kLanes + j]) offer(g * kLanes + j, i + r, sums[r][j]);
      }
    }
  }
}

template <class T>
static void scan_of(const ScanTask& task, T* logits, int64_t* chunks, T* scratch) {
  switch (task.storage) {
    case Storage::same: return scan_as<T, T>(task, logits, chunks, scratch);
    case Storage::bfloat16: return scan_as<T, uint16_t>(task, logits, chunks, scratch);
    case Storage::int8: return scan_as<T, int8_t>(task, logits, chunks, scratch);
  }
}

// Σ_j g_j κ_j of the chunks that were found.
template <class T>
static void scan_back_of(const ScanTask& task, const T* gradient, const int64_t* chunks, T* out) {
  const int64_t D = task.width;
  for (int64_t q = 0; q < task.queries; ++q)
    for (int64_t j = 0; j < task.k; ++j) {
      const int64_t chunk = chunks[q * task.k + j];
      if (chunk < 0) continue;
      T scale = gradient[q * task.k + j];
      if (task.scales != nullptr) scale *= T(task.scales[chunk]);
      if (task.storage == Storage::same) add(out + q * D, scale, static_cast<const T*>(task.summaries) + chunk * D, D);
      else if (task.storage == Storage::bfloat16)
        add(out + q * D, scale, static_cast<const uint16_t*>(task.summaries) + chunk * D, D);
      else add(out + q * D, scale, static_cast<const int8_t*>(task.summaries) + chunk * D, D);
    }
}

static inline double exp_of(double x) { return __builtin_exp(x); }

// Of x <= 0, to two units in the last place (Cody and Waite's reduction).
static inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x;
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
  return p * __builtin_bit_cast(float, (int(n) + 127) << 23);
}

// at[i] = exp(at[i] - most); returns their sum.
template <class T>
static inline T exps(T* at, int64_t n, T most) {
  T sum = 0;
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(float)) {  // the function above, for lanes: GCC would go one by one
    typedef float Lanes __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
    typedef int Whole __attribute__((vector_size(kLanes * 4)));
    Lanes sums = {};
    for (; i + kLanes <= n; i += kLanes) {
      Lanes x = *reinterpret_cast<const Lanes*>(at + i) - most;
      x = x < -87.0f ? Lanes{} - 87.0f : x;
      const Lanes shifted = x * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
      const Lanes r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
      Lanes p = 1.9875691500e-4f * r + 1.3981999507e-3f;
      p = p * r + 8.3334519073e-3f;
      p = p * r + 4.1665795894e-2f;
      p = p * r + 1.6666665459e-1f;
      p = p * r + 5.0000001201e-1f;
      p = p * r * r + r + 1.0f;
      p *= (Lanes)((__builtin_convertvector(whole, Whole) + 127) << 23);
      *reinterpret_cast<Lanes*>(at + i) = p;
      sums += p;
    }
    if (i > 0) sum_lanes<1>(&sums, &sum);
  }
  for (; i < n; ++i) sum += at[i] = exp_of(at[i] - most);
  return sum;
}

// weights[k] = softmax of logits, 0 where there is no chunk.
template <class T>
static void weigh(const T* logits, const int64_t* chunks, int64_t k, T* weights) {
  T most = -T(__builtin_inf()), sum = 0;
  for (int64_t j = 0; j < k; ++j)
    if (chunks[j] >= 0 && logits[j] > most) most = logits[j];
  for (int64_t j = 0; j < k; ++j) {
    weights[j] = chunks[j] >= 0 ? exp_of(logits[j] - most) : T(0);
    sum += weights[j];
  }
  if (sum > 0)
    for (int64_t j = 0; j < k; ++j) weights[j] /= sum;
}

// Turn the scores of the steps of some chunks, [chunks, C], into one softmax.
template <class T>
static void normalize(T* scores, const int64_t* real, int64_t chunks, int64_t C) {
  T most = -T(__builtin_inf()), sum = 0;
  for (int64_t j = 0; j < chunks; ++j) {
    const T* const at = scores + j * C;
    T of_four[4] = {most, most, most, most};  // comparisons of one wait for each other
    int64_t c = 0;
    for (; c + 4 <= real[j]; c += 4)
      for (int64_t i = 0; i < 4; ++i) of_four[i] = at[c + i] > of_four[i] ? at[c + i] : of_four[i];
    for (; c < real[j]; ++c) of_four[0] = at[c] > of_four[0] ? at[c] : of_four[0];
    for (const T one : of_four) most = one > most ? one : most;
  }
  for (int64_t j = 0; j < chunks; ++j) sum += exps(scores + j * C, real[j], most);
  for (int64_t j = 0; j < chunks; ++j) {
    T* const at = scores + j * C;
    const int64_t n = real[j];
    for (int64_t c = 0; c < n; ++c) at[c] /= sum;
  }
}

// out[h, D] += Σ_jc shares_hjc p_c, where p_c is told from the end of the real steps: one sum for all chunks. of_position:
// scratch [H, C].
template <class T>
static inline void pool_positions(T* out, const T* shares, const int64_t* real, T* of_position, const T* positions, int64_t H,
                                  int64_t K, int64_t C, int64_t D) {
  for (int64_t i = 0; i < H * C; ++i) of_position[i] = T(0);
  for (int64_t h = 0; h < H; ++h)
    for (int64_t j = 0; j < K; ++j) add(of_position + h * C + C - real[j], T(1), shares + (h * K + j) * C, real[j]);
  pool(out, of_position, C, H, positions, C, D);
}

// shares [H, K, C] is kept for the way back.
template <class T>
static void attend_of(const AttendTask& task, int64_t q, T* pooled, T* shares, T* scratch) {
  const int64_t H = task.heads, K = task.k, C = task.length, D = task.width;
  const T* ask = static_cast<const T*>(task.ask) + q * H * D;
  const T* logits = static_cast<const T*>(task.logits) + q * K;
  const T* contents = static_cast<const T*>(task.contents);
  const T* positions = static_cast<const T*>(task.positions);
  const int64_t* chunks = task.chunks + q * K;
  int64_t* real = task.sizes;  // [K]
  T* weights = scratch;        // [K]
  T* of_position = weights + K;  // [H, C]
  for (int64_t j = 0; j < K; ++j) real[j] = chunks[j] < 0 ? 0 : (task.steps != nullptr ? task.steps[chunks[j]] : C);
  weigh(logits, chunks, K, weights);
  for (int64_t i = 0; i < H * K * C; ++i) shares[i] = T(0);
  if (positions != nullptr)
    for (int64_t c = 0; c < C; ++c) products(ask, positions + c * D, H, D, of_position + c, C);
  for (int64_t j = 0; j < K; ++j) {
    const T* const next = contents + (j + 1 < K && chunks[j + 1] >= 0 ? chunks[j + 1] : 0) * C * D;  // to be asked for
    for (int64_t c = 0; c < real[j]; ++c) {
      for (int64_t d = 0; d < D; d += 64 / int64_t(sizeof(T))) __builtin_prefetch(next + c * D + d);
      products(ask, contents + (chunks[j] * C + c) * D, H, D, shares + j * C + c, K * C);
    }
  }
  for (int64_t h = 0; h < H; ++h) {
    T* a = shares + h * K * C;
    if (positions != nullptr)
      for (int64_t j = 0; j < K; ++j)
        for (int64_t c = 0; c < real[j]; ++c) a[j * C + c] += of_position[h * C + C - real[j] + c];
    if (task.joint) {
      normalize(a, real, K, C);
    } else {
      for (int64_t j = 0; j < K; ++j) {
        normalize(a + j * C, real + j, 1, C);
        for (int64_t c = 0; c < real[j]; ++c) a[j * C + c] *= weights[j];
      }
    }
  }
  for (int64_t i = 0; i < H * D; ++i) pooled[i] = T(0);
  for (int64_t j = 0; j < K; ++j)
    if (real[j] > 0) pool(pooled, shares + j * C, K * C, H, contents + chunks[j] * C * D, real[j], D);
  if (positions != nullptr) pool_positions(pooled, shares, real, of_position, positions, H, K, C, D);
}

template <class T>
static void attend_back_of(const AttendTask& task, int64_t q, const T* gradient, const T* shares, T* of_ask, T* of_logits,
                           T* scratch) {
  const int64_t H = task.heads, K = task.k, C = task.length, D = task.width;
  const T* logits = static_cast<const T*>(task.logits) + q * K;
  const T* contents = static_cast<const T*>(task.contents);
  const T* positions = static_cast<const T*>(task.positions);
  const int64_t* chunks = task.chunks + q * K;
  T* weights = scratch;            // [K]
  T* of_position = weights + K;      // [H, C]
  T* of_steps = of_position + H * C; // [H, K, C]: products of the gradient with a step
  T* means = of_steps + H * K * C;   // [K]: of the products inside a chunk
  T* of_weights = means + K;         // [K]
  weigh(logits, chunks, K, weights);
  for (int64_t j = 0; j < K; ++j) of_weights[j] = T(0);
  if (positions != nullptr)
    for (int64_t c = 0; c < C; ++c) products(gradient, positions + c * D, H, D, of_position + c, C);
  for (int64_t j = 0; j < K; ++j) {
    if (chunks[j] < 0) continue;
    const int64_t real = task.steps != nullptr ? task.steps[chunks[j]] : C;
    for (int64_t c = 0; c < real; ++c)
      products(gradient, contents + (chunks[j] * C + c) * D, H, D, of_steps + j * C + c, K * C);
  }
  for (int64_t h = 0; h < H; ++h) {
    const T* a = shares + h * K * C;
    T all = 0;
    for (int64_t j = 0; j < K; ++j) {
      means[j] = T(0);
      if (chunks[j] < 0) continue;
      const int64_t real = task.steps != nullptr ? task.steps[chunks[j]] : C;
      for (int64_t c = 0; c < real; ++c) {
        T& e = of_steps[(h * K + j) * C + c];
        if (positions != nullptr) e += of_position[h * C + C - real + c];
        means[j] += a[j * C + c] * e;
      }
      all += means[j];
      means[j] = weights[j] > T(0) ? means[j] / weights[j] : T(0);
      of_weights[j] += means[j];
    }
    for (int64_t j = 0; j < K; ++j) {
      if (chunks[j] < 0) continue;
      const int64_t real = task.steps != nullptr ? task.steps[chunks[j]] : C;
      T* of_scores = of_steps + (h * K + j) * C;
      for (int64_t c = 0; c < real; ++c) of_scores[c] = a[j * C + c] * (of_scores[c] - (task.joint ? all : means[j]));
    }
  }
  for (int64_t i = 0; i < H * D; ++i) of_ask[i] = T(0);
  int64_t* real = task.sizes;  // [K]
  for (int64_t j = 0; j < K; ++j) {
    real[j] = chunks[j] < 0 ? 0 : (task.steps != nullptr ? task.steps[chunks[j]] : C);
    if (real[j] > 0) pool(of_ask, of_steps + j * C, K * C, H, contents + chunks[j] * C * D, real[j], D);
  }
  if (positions != nullptr) pool_positions(of_ask, of_steps, real, of_position, positions, H, K, C, D);
  T mean = 0;
  for (int64_t j = 0; j < K; ++j) mean += weights[j] * of_weights[j];
  for (int64_t j = 0; j < K; ++j) of_logits[j] = task.joint ? T(0) : weights[j] * (of_weights[j] - mean);
}

template <class T>
static Functions<T> functions() {
  return {scan_of<T>, scan_back_of<T>, attend_of<T>, attend_back_of<T>};
}
