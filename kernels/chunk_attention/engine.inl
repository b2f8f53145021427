// Looking chunks up, for each instruction set again. Nothing here includes a header; reference.py is the definition.

constexpr int64_t kFew = 4;   // queries that go through the scan one by one
constexpr int64_t kSums = 8;  // that grow in registers together: additions to one wait for each other

// Vectors as a register holds them: the compiler takes longer ones apart through memory.
template <class T>
struct Wide {
  static constexpr int64_t lanes = STREAMWISE_VECTOR_BYTES / sizeof(T);
  typedef T Lanes __attribute__((vector_size(STREAMWISE_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};
template <class T>
using Lanes = typename Wide<T>::Lanes;
template <class T>
constexpr int64_t kLanes = Wide<T>::lanes;

template <class T>
static inline const Lanes<T>& lanes_at(const T* x) { return *reinterpret_cast<const Lanes<T>*>(x); }
template <class T>
static inline Lanes<T>& lanes_at(T* x) { return *reinterpret_cast<Lanes<T>*>(x); }

template <class T>
static inline T as(T x) { return x; }
template <class T>
static inline T as(uint16_t x) {  // bfloat16 is the upper half of a float32
  return T(__builtin_bit_cast(float, uint32_t(x) << 16));
}
template <class T>
static inline T as(int8_t x) { return T(x); }

// Numbers that are stored in less, as they are computed with.
template <class T, class S>
static inline const T* widened(const S* x, int64_t n, T* room) {
  if constexpr (sizeof(S) == sizeof(T)) return x;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) room[i] = as<T>(x[i]);
  return room;
}

// Lanes by twos: of each 2t lanes the first t are sums of a's, the others of b's.
template <int64_t t, class T, int64_t... i>
static inline void fold(Lanes<T>& a, const Lanes<T>& b, std::integer_sequence<int64_t, i...>) {
  constexpr int64_t n = kLanes<T>;
  a = __builtin_shufflevector(a, b, (i / t % 2 == 0 ? i : n + i - t)...) +
      __builtin_shufflevector(a, b, (i / t % 2 == 0 ? i + t : n + i)...);
}

// The sums of the lanes of `several` vectors, side by side in the first. The order of additions is the same for each, and
// for any number of them: equal summaries have equal products.
template <int64_t t, int64_t several, class T>
static inline void sum_lanes(Lanes<T>* v) {
  if constexpr (t > 0) {
    constexpr int64_t left = several > t ? t : several;
#pragma GCC unroll 8
    for (int64_t i = 0; i < left; ++i)
      fold<t, T>(v[i], v[several > t ? i + t : i], std::make_integer_sequence<int64_t, kLanes<T>>());
    sum_lanes<t / 2, left, T>(v);
  }
}

// out[h * stride + r] = u_h x_r for some heads, u: [heads, D], and some rows, x: [rows, D].
template <int64_t heads, int64_t rows, class T>
static inline void products_of(const T* u, const T* x, int64_t D, T* out, int64_t stride) {
  Lanes<T> sums[heads * rows] = {};
  const int64_t whole = D - D % kLanes<T>;
  int64_t d = whole;
  if constexpr (heads == 1) {  // row by row, as they lie in memory: of eight rows side by side nothing is read ahead
#pragma GCC unroll 8
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t at = 0; at < whole; at += kLanes<T>) sums[r] += lanes_at(u + at) * lanes_at(x + r * D + at);
  } else {
    for (int64_t at = 0; at < whole; at += kLanes<T>) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < heads * rows; ++i) sums[i] += lanes_at(u + i / rows * D + at) * lanes_at(x + i % rows * D + at);
    }
  }
  T totals[heads * rows];
  constexpr int64_t together = heads * rows < kLanes<T> ? heads * rows : kLanes<T>;
#pragma GCC unroll 8
  for (int64_t i = 0; i < heads * rows; i += together) {
    sum_lanes<kLanes<T> / 2, together, T>(sums + i);
    __builtin_memcpy(totals + i, sums + i, together * sizeof(T));
  }
  for (; d < D; ++d)
    for (int64_t i = 0; i < heads * rows; ++i) totals[i] += u[i / rows * D + d] * x[i % rows * D + d];
#pragma GCC unroll 8
  for (int64_t i = 0; i < heads * rows; ++i) out[i / rows * stride + i % rows] = totals[i];
}

template <int64_t heads, class T>
static inline void products_for(const T* u, const T* x, int64_t n, int64_t D, T* out, int64_t stride) {
  constexpr int64_t rows = kSums / heads;
  int64_t c = 0;
  for (; c + rows <= n; c += rows) products_of<heads, rows>(u, x + c * D, D, out + c, stride);
  for (; c < n; ++c) products_of<heads, 1>(u, x + c * D, D, out + c, stride);
}

// out[h * stride + c] = u_h x_c, u: [H, D], x: [n, D].
template <class T>
static inline void products(const T* u, int64_t H, const T* x, int64_t n, int64_t D, T* out, int64_t stride) {
  int64_t h = 0;
  for (; h + 4 <= H; h += 4) products_for<4>(u + h * D, x, n, D, out + h * stride, stride);
  for (; h + 2 <= H; h += 2) products_for<2>(u + h * D, x, n, D, out + h * stride, stride);
  for (; h < H; ++h) products_for<1>(u + h * D, x, n, D, out + h * stride, stride);
}

template <class T, class S>
static inline void add(T* out, T scale, const S* x, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] += scale * as<T>(x[i]);
}

// out[h, D] += Σ_c shares_hc x_c, x: [n, D], for some heads. Blocks of the sums stay in registers.
template <int64_t heads, int64_t vectors, class T>
static inline void pool_block(T* out, const T* shares, int64_t stride, const T* x, int64_t n, int64_t D) {
  Lanes<T> sums[heads * vectors];
#pragma GCC unroll 8
  for (int64_t i = 0; i < heads * vectors; ++i) sums[i] = lanes_at(out + i / vectors * D + i % vectors * kLanes<T>);
  for (int64_t c = 0; c < n; ++c) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < heads * vectors; ++i)
      sums[i] += shares[i / vectors * stride + c] * lanes_at(x + c * D + i % vectors * kLanes<T>);
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < heads * vectors; ++i) lanes_at(out + i / vectors * D + i % vectors * kLanes<T>) = sums[i];
}

template <int64_t heads, class T>
static inline void pool_of(T* out, const T* shares, int64_t stride, const T* x, int64_t n, int64_t D) {
  constexpr int64_t vectors = kSums / heads;
  int64_t d = 0;
  for (; d + vectors * kLanes<T> <= D; d += vectors * kLanes<T>)
    pool_block<heads, vectors>(out + d, shares, stride, x + d, n, D);
  for (; d + kLanes<T> <= D; d += kLanes<T>) pool_block<heads, 1>(out + d, shares, stride, x + d, n, D);
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

// Whether any of 16 numbers is above its limit.
template <class T>
static inline bool any_above(const T* x, const T* limits) {
  auto above = lanes_at(x) > lanes_at(limits);
#pragma GCC unroll 8
  for (int64_t j = kLanes<T>; j < kQueries; j += kLanes<T>) above |= lanes_at(x + j) > lanes_at(limits + j);
  typedef uint64_t Words __attribute__((vector_size(STREAMWISE_VECTOR_BYTES)));
  const Words words = (Words)above;
  uint64_t any = 0;
#pragma GCC unroll 8
  for (int64_t j = 0; j < STREAMWISE_VECTOR_BYTES / 8; ++j) any |= words[j];
  return any != 0;
}

// out[r] = the products of summary r with 16 queries side by side, [D, queries]. Sums stay in registers.
template <int64_t rows, class T>
static inline void multiply(T (*out)[kQueries], const T* x, const T* queries, int64_t D) {
  constexpr int64_t vectors = kQueries / kLanes<T>;
  Lanes<T> sums[rows * vectors] = {};
  for (int64_t d = 0; d < D; ++d) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < rows * vectors; ++i)
      sums[i] += x[i / vectors * D + d] * lanes_at(queries + d * kQueries + i % vectors * kLanes<T>);
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < rows * vectors; ++i) lanes_at(out[i / vectors] + i % vectors * kLanes<T>) = sums[i];
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
  const int64_t groups = Q <= kFew ? 0 : (Q + kQueries - 1) / kQueries;
  T* least = scratch;                                   // [queries, padded]: what a chunk must exceed
  T* turned = least + (groups ? groups * kQueries : Q); // [groups, D, queries]: queries side by side
  T* room = turned + groups * D * kQueries;             // [block, D], for summaries that are stored in less
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t d = 0; d < D; ++d)
      for (int64_t j = 0; j < kQueries; ++j) {
        const int64_t q = g * kQueries + j;
        turned[(g * D + d) * kQueries + j] = q < Q ? select[q * D + d] : T(0);
      }
  for (int64_t q = 0; q < (groups ? groups * kQueries : Q); ++q)
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
  constexpr int64_t rows = kSums / (kQueries / kLanes<T>) > 0 ? kSums / (kQueries / kLanes<T>) : 1;
  for (int64_t start = 0; start < M; start += kBlock) {
    const int64_t n = M - start < kBlock ? M - start : kBlock;
    const T* x = widened(summaries + start * D, n * D, room);
    const float* scales = task.scales == nullptr ? nullptr : task.scales + start;
    if (groups == 0) {
      T scores[kFew * kBlock];
      products(select, Q, x, n, D, scores, kBlock);
      for (int64_t q = 0; q < Q; ++q)
        for (int64_t i = 0; i < n; ++i) {
          T& score = scores[q * kBlock + i];
          if (scales != nullptr) score *= T(scales[i]);
          if (score > least[q]) offer(q, start + i, score);
        }
    }
    for (int64_t g = 0; g < groups; ++g) {
      const T* queries = turned + g * D * kQueries;
      T scores[kBlock][kQueries];
      int64_t i = 0;
      for (; i + rows <= n; i += rows) multiply<rows>(scores + i, x + i * D, queries, D);
      for (; i < n; ++i) multiply<1>(scores + i, x + i * D, queries, D);
      for (i = 0; i < n; ++i) {
        if (scales != nullptr)
          for (T& score : scores[i]) score *= T(scales[i]);
        if (!any_above(scores[i], least + g * kQueries)) continue;
        for (int64_t j = 0; j < kQueries; ++j)
          if (scores[i][j] > least[g * kQueries + j]) offer(g * kQueries + j, start + i, scores[i][j]);
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

// exp of what is not above 0, to two units in the last place (Cody and Waite's reduction).
static inline void exp_of(Lanes<float>& x) {
  typedef int32_t Whole __attribute__((vector_size(STREAMWISE_VECTOR_BYTES)));
  x = x < -87.0f ? Lanes<float>{} - 87.0f : x;
  const Lanes<float> shifted = x * 1.44269504f + 12582912.0f;  // rounded to a whole number, in the lowest bits
  const Lanes<float> whole = shifted - 12582912.0f;
  const Lanes<float> r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Lanes<float> p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  x = p * (Lanes<float>)((__builtin_convertvector(whole, Whole) + 127) << 23);
}
static inline void exp_of(Lanes<double>& x) {
  for (int64_t j = 0; j < kLanes<double>; ++j) x[j] = __builtin_exp(x[j]);
}

// at[i] = exp(at[i] - most); returns their sum.
template <class T>
static inline T exps(T* at, int64_t n, T most) {
  Lanes<T> sums = {};
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    Lanes<T> x = lanes_at(at + i) - most;
    exp_of(x);
    sums += lanes_at(at + i) = x;
  }
  if (i < n) {
    Lanes<T> x = {};
    for (int64_t j = i; j < n; ++j) x[j - i] = at[j] - most;
    exp_of(x);
    for (int64_t j = i; j < n; ++j) sums[0] += at[j] = x[j - i];
  }
  sum_lanes<kLanes<T> / 2, 1, T>(&sums);
  return sums[0];
}

template <class T>
static inline T largest(const T* at, int64_t n, T most) {
  Lanes<T> of_lanes = Lanes<T>{} + most;
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) of_lanes = lanes_at(at + i) > of_lanes ? lanes_at(at + i) : of_lanes;
  for (; i < n; ++i) most = at[i] > most ? at[i] : most;
  for (int64_t j = 0; j < kLanes<T>; ++j) most = of_lanes[j] > most ? of_lanes[j] : most;
  return most;
}

// weights[k] = softmax of logits, 0 where there is no chunk.
template <class T>
static void weigh(const T* logits, const int64_t* chunks, int64_t k, T* weights) {
  for (int64_t j = 0; j < k; ++j) weights[j] = chunks[j] >= 0 ? logits[j] : -T(__builtin_inf());
  const T most = largest(weights, k, -T(__FLT_MAX__));
  exps(weights, k, most);
  T sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += weights[j] = chunks[j] >= 0 ? weights[j] : T(0);
  if (sum > 0)
    for (int64_t j = 0; j < k; ++j) weights[j] /= sum;
}

// Turn the scores of the steps of some chunks, [chunks, C], into one softmax, times a weight.
template <class T>
static void normalize(T* scores, const int64_t* real, int64_t chunks, int64_t C, T weight) {
  T most = -T(__builtin_inf()), sum = 0;
  for (int64_t j = 0; j < chunks; ++j) most = largest(scores + j * C, real[j], most);
  for (int64_t j = 0; j < chunks; ++j) sum += exps(scores + j * C, real[j], most);
  weight /= sum;
  for (int64_t j = 0; j < chunks; ++j)
    for (int64_t c = 0; c < real[j]; ++c) scores[j * C + c] *= weight;
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
  for (int64_t i = 0; i < H * D; ++i) pooled[i] = T(0);
  if (positions != nullptr) products(ask, H, positions, C, D, of_position, C);
  auto pool_chunk = [&](int64_t j) { pool(pooled, shares + j * C, K * C, H, contents + chunks[j] * C * D, real[j], D); };
  for (int64_t j = 0; j < K; ++j) {
    if (real[j] == 0) continue;
    const T* const next = contents + (j + 1 < K && chunks[j + 1] >= 0 ? chunks[j + 1] : 0) * C * D;  // to be asked for
    for (int64_t c = 0; c < real[j]; c += kSums) {
      const int64_t n = real[j] - c < kSums ? real[j] - c : kSums;
      for (int64_t i = c * D; i < (c + n) * D; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(next + i);
      products(ask, H, contents + (chunks[j] * C + c) * D, n, D, shares + j * C + c, K * C);
    }
    for (int64_t h = 0; h < H; ++h) {
      T* const a = shares + (h * K + j) * C;
      if (positions != nullptr) add(a, T(1), of_position + h * C + C - real[j], real[j]);
      if (!task.joint) normalize(a, real + j, 1, C, weights[j]);
    }
    if (!task.joint) pool_chunk(j);  // while it is in the cache
  }
  if (task.joint) {
    for (int64_t h = 0; h < H; ++h) normalize(shares + h * K * C, real, K, C, T(1));
    for (int64_t j = 0; j < K; ++j) pool_chunk(j);
  }
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
  if (positions != nullptr) products(gradient, H, positions, C, D, of_position, C);
  for (int64_t j = 0; j < K; ++j) {
    if (chunks[j] < 0) continue;
    const int64_t real = task.steps != nullptr ? task.steps[chunks[j]] : C;
    products(gradient, H, contents + chunks[j] * C * D, real, D, of_steps + j * C, K * C);
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
