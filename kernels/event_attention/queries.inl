// Attention of times to events, to prompts and to themselves, and back, for each instruction set again. Nothing here
// includes a header; reference.py is the definition.
//
// The scores of a group are a row for each of its times: whole vectors of events that are seen, then of prompts, then one
// for the time itself. All else are products of small matrices, of which blocks of results stay in registers.

template <class T>
struct Pack {  // where registers are narrower the compiler takes several
  typedef T Vector __attribute__((vector_size(32)));
  typedef T Unaligned __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
};

// c = a b, or c += a b unless it is `fresh`, for kRows rows of a and kPacks vectors of b's columns.
template <int kRows, int kPacks, bool kTransposed, class T>
static inline void product_tile(T* c, int64_t c_row, const T* a, int64_t a_row, const T* b, int64_t b_row, int64_t depth,
                                bool fresh) {
  using Vector = typename Pack<T>::Vector;
  using Unaligned = typename Pack<T>::Unaligned;
  Vector sums[kRows][kPacks];
  for (int r = 0; r < kRows; ++r)
    for (int n = 0; n < kPacks; ++n) {
      if (fresh) sums[r][n] = Vector{};
      else sums[r][n] = reinterpret_cast<const Unaligned*>(c + r * c_row)[n];
    }
  for (int64_t k = 0; k < depth; ++k) {
    const Unaligned* row = reinterpret_cast<const Unaligned*>(b + k * b_row);
    Vector of_b[kPacks];
    for (int n = 0; n < kPacks; ++n) of_b[n] = row[n];
    for (int r = 0; r < kRows; ++r) {
      const T scale = kTransposed ? a[k * a_row + r] : a[r * a_row + k];
      for (int n = 0; n < kPacks; ++n) sums[r][n] += scale * of_b[n];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int n = 0; n < kPacks; ++n) reinterpret_cast<Unaligned*>(c + r * c_row)[n] = sums[r][n];
}

template <int kPacks, bool kTransposed, class T>
static void product_strip(T* c, int64_t c_row, const T* a, int64_t a_row, const T* b, int64_t b_row, int64_t rows,
                          int64_t depth, bool fresh) {
  const int64_t step = kTransposed ? 1 : a_row;
  int64_t r = 0;
  for (; r + 6 <= rows; r += 6)
    product_tile<6, kPacks, kTransposed>(c + r * c_row, c_row, a + r * step, a_row, b, b_row, depth, fresh);
  c += r * c_row, a += r * step;
  switch (rows - r) {
    case 5: return product_tile<5, kPacks, kTransposed>(c, c_row, a, a_row, b, b_row, depth, fresh);
    case 4: return product_tile<4, kPacks, kTransposed>(c, c_row, a, a_row, b, b_row, depth, fresh);
    case 3: return product_tile<3, kPacks, kTransposed>(c, c_row, a, a_row, b, b_row, depth, fresh);
    case 2: return product_tile<2, kPacks, kTransposed>(c, c_row, a, a_row, b, b_row, depth, fresh);
    case 1: return product_tile<1, kPacks, kTransposed>(c, c_row, a, a_row, b, b_row, depth, fresh);
    default: return;
  }
}

// c [rows, columns] = a [rows, depth] b [depth, columns], of whole vectors of columns. kTransposed: a is [depth, rows].
template <bool kTransposed, class T>
static void product(T* c, int64_t c_row, const T* a, int64_t a_row, const T* b, int64_t b_row, int64_t rows,
                    int64_t columns, int64_t depth, bool fresh) {
  constexpr int64_t kWidth = kPack<T>;
  int64_t n = 0;
  for (; n + 2 * kWidth <= columns; n += 2 * kWidth)
    product_strip<2, kTransposed>(c + n, c_row, a, a_row, b + n, b_row, rows, depth, fresh);
  if (n < columns) product_strip<1, kTransposed>(c + n, c_row, a, a_row, b + n, b_row, rows, depth, fresh);
}

// to [columns, whole vectors of rows], zeros in the rest.
template <class T>
static void transpose(T* to, int64_t to_row, const T* from, int64_t from_row, int64_t rows, int64_t columns) {
  for (int64_t d = 0; d < columns; ++d) {
    T* row = to + d * to_row;
    for (int64_t i = 0; i < rows; ++i) row[i] = from[i * from_row + d];
    for (int64_t i = rows; i < to_row; ++i) row[i] = T(0);
  }
}

// The sum of a vector's numbers, in pairs: one after the other they would wait for each other.
template <class T>
static inline T folded(const T* lanes) {
  T x[kPack<T>];
  for (int64_t j = 0; j < kPack<T>; ++j) x[j] = lanes[j];
  for (int64_t half = kPack<T> / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) x[j] += x[j + half];
  return x[0];
}

template <class T>
static inline T inner(const T* a, const T* b, int64_t n) {  // any n
  using Vector = typename Pack<T>::Vector;
  using Unaligned = typename Pack<T>::Unaligned;
  const int64_t packs = n / kPack<T>;
  const Unaligned *x = reinterpret_cast<const Unaligned*>(a), *y = reinterpret_cast<const Unaligned*>(b);
  Vector even{}, odd{};
  int64_t i = 0;
  for (; i + 2 <= packs; i += 2) even += x[i] * y[i], odd += x[i + 1] * y[i + 1];
  if (i < packs) even += x[i] * y[i];
  even += odd;
  T lanes[kPack<T>];
  *reinterpret_cast<Unaligned*>(lanes) = even;
  T total = folded(lanes);
  for (i = packs * kPack<T>; i < n; ++i) total += a[i] * b[i];
  return total;
}

// The hyperbolic tangent, to two units in the last place: a polynomial where the exponential would lose digits.
static inline float squashed(float x) {
  const float size = __builtin_fabsf(x), square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float near = p * square * x + x, far = 1.0f - 2.0f / (exp_of(2.0f * size) + 1.0f);
  return size < 0.625f ? near : __builtin_copysignf(far, x);
}
static inline double squashed(double x) { return __builtin_tanh(x); }

// In place: scores to shares, of whole vectors.
template <class T>
static void to_shares(T* x, int64_t n) {
  constexpr int64_t kWidth = kPack<T>;
  T lanes[kWidth];
  for (int64_t j = 0; j < kWidth; ++j) lanes[j] = x[j];
  for (int64_t i = kWidth; i < n; i += kWidth)
    for (int64_t j = 0; j < kWidth; ++j) lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
  for (int64_t half = kWidth / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) lanes[j] = lanes[j + half] > lanes[j] ? lanes[j + half] : lanes[j];
  const T top = lanes[0];
  for (int64_t j = 0; j < kWidth; ++j) lanes[j] = T(0);
  for (int64_t i = 0; i < n; i += kWidth)
    for (int64_t j = 0; j < kWidth; ++j) lanes[j] += x[i + j] = exp_of(x[i + j] - top);
  const T scale = T(1) / folded(lanes);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}

// log(1 + time since an event / unit) of those that are seen, [groups, times, row] of a sequence; zeros in the rest.
template <class T>
static void log_ages(const double* events, int64_t count, const double* asked, int64_t groups, int64_t times,
                     const int64_t* visible, double unit, T* out, int64_t row) {
  Array<double> padded;
  padded.allocate(row);
  for (int64_t i = 0; i < count; ++i) padded[i] = events[i];
  const double per_second = 1.0 / unit;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t s = 0; s < times; ++s) {
      const double at = asked[g * times + s];
      T* to = out + (g * times + s) * row;
      const int64_t seen = whole<T>(visible[g]);
#pragma omp simd
      for (int64_t i = 0; i < seen; ++i) {
        const double apart = at - padded[i];
        to[i] = T((apart > 0.0 ? apart : 0.0) * per_second);
      }
#pragma omp simd
      for (int64_t i = 0; i < seen; ++i) to[i] = log1p_of(to[i]);
      zero(to + seen, row - seen);
    }
}

// The prompts that a group selects, from a transposed table [width, prompts * rows]: to [width, whole vectors of them].
template <class T>
static void select_transposed(T* to, int64_t to_row, const T* table, int64_t table_row, const QueryTask<T>& t,
                              int64_t group, const T* added, int64_t width) {
  const int64_t* ids = t.ids + group * t.selected;
  for (int64_t d = 0; d < width; ++d)
    for (int64_t n = 0; n < t.selected; ++n)
      for (int64_t r = 0; r < t.rows; ++r)
        to[d * to_row + n * t.rows + r] = table[d * table_row + ids[n] * t.rows + r] + added[d];
}

// The same as they are, [prompts that are selected * rows, width].
template <class T>
static void select_rows(T* to, const OfEvents<const T>& table, int64_t head, const QueryTask<T>& t, int64_t group,
                        const T* added, int64_t width) {
  for (int64_t i = 0; i < t.selected * t.rows; ++i) {
    const int64_t id = t.ids[group * t.selected + i / t.rows];
    const T* from = table.at + head * table.head + id * table.sequence + i % t.rows * table.row;
    for (int64_t d = 0; d < width; ++d) to[i * width + d] = from[d] + added[d];
  }
}

// The way back: g, in rows that lie `g_row` apart, to a contiguous table and to what the group adds.
template <class T>
static void select_back(T* table, T* added, const T* g, int64_t g_row, const QueryTask<T>& t, int64_t group, int64_t width) {
  for (int64_t d = 0; d < width; ++d) added[d] = T(0);
  for (int64_t i = 0; i < t.selected * t.rows; ++i) {
    const int64_t id = t.ids[group * t.selected + i / t.rows];
    add_scaled(table + (id * t.rows + i % t.rows) * width, T(1), g + i * g_row, width);
    add_scaled(added, T(1), g + i * g_row, width);
  }
}

// A head's part of the table, transposed: to [width, whole vectors of prompts * rows].
template <class T>
static void transpose_table(T* to, int64_t to_row, const OfEvents<const T>& table, int64_t head, const QueryTask<T>& t,
                            int64_t width) {
  for (int64_t i = 0; i < t.table * t.rows; ++i) {
    const T* from = table.at + head * table.head + i / t.rows * table.sequence + i % t.rows * table.row;
    for (int64_t d = 0; d < width; ++d) to[d * to_row + i] = from[d];
  }
}

// out [heads, sequences, groups, times, values_width]; shares [heads, sequences, groups, times, columns] or null.
template <class T>
static void attend_events(const QueryTask<T>& t, T* out, T* shares) {
  const FlushDenormals flush;
  constexpr T kLowest = T(-1e30);
  const int64_t W = t.width, D = t.values_width, S = t.times, C = t.columns;
  const int64_t P = t.selected * t.rows, key_row = whole<T>(t.events), prompt_row = whole<T>(P);
  const int64_t table_row = t.table * t.rows;
  Array<T> keys, table, prompt_keys, prompt_values, scratch;
  keys.allocate(t.heads * W * key_row), table.allocate(t.heads * W * table_row);
  prompt_keys.allocate(W * prompt_row), prompt_values.allocate(P * D);
  if (shares == nullptr) scratch.allocate(S * C);
  for (int64_t h = 0; h < t.heads; ++h) transpose_table(table.data + h * W * table_row, table_row, t.prompts.keys, h, t, W);
  for (int64_t b = 0; b < t.sequences; ++b) {
    for (int64_t h = 0; h < t.heads; ++h)
      transpose(keys.data + h * W * key_row, key_row, t.keys.at + h * t.keys.head + b * t.keys.sequence, t.keys.row, t.events, W);
    for (int64_t g = 0; g < t.groups; ++g)  // all heads of a group, which need the same times
      for (int64_t h = 0; h < t.heads; ++h) {
        const T* values = t.values.at + h * t.values.head + b * t.values.sequence;
        const int64_t group = b * t.groups + g, of_head = h * t.sequences * t.groups + group;
        const int64_t seen = t.visible[group];
        const Columns<T> at(t, seen);
        const T* query = t.query.at + h * t.query.head + group * S * t.query.row;
        const T* own = t.own.at == nullptr ? nullptr : t.own.at + h * t.own.head + group * S * t.own.row;
        T* scores = shares == nullptr ? scratch.data : shares + of_head * S * C;
        product<false>(scores, C, query, t.query.row, keys.data + h * W * key_row, key_row, S, at.prompts, W, true);
        if (P > 0) {
          select_transposed(prompt_keys.data, prompt_row, table.data + h * W * table_row, table_row, t, group,
                            t.prompts.added_keys + of_head * W, W);
          product<false>(scores + at.prompts, C, query, t.query.row, prompt_keys.data, prompt_row, S, prompt_row, W, true);
        }
        for (int64_t s = 0; s < S; ++s) {
          T* row = scores + s * C;
          if (t.since != nullptr) add_scaled(row, -t.fall[h], t.since + (group * S + s) * t.since_row, at.prompts);
          for (int64_t i = seen; i < at.prompts; ++i) row[i] = kLowest;
          for (int64_t i = at.prompts + P; i < at.all; ++i) row[i] = kLowest;
          if (own != nullptr) row[at.own] = inner(query + s * t.query.row, own + s * t.own.row, W);
          to_shares(row, at.all);
          for (int64_t i = seen; i < at.prompts; ++i) row[i] = T(0);
          for (int64_t i = at.prompts + P; i < at.own; ++i) row[i] = T(0);
          for (int64_t i = at.own + 1; i < at.all; ++i) row[i] = T(0);
        }
        T* to = out + of_head * S * D;
        product<false>(to, D, scores, C, values, t.values.row, S, D, seen, true);
        if (P > 0) {
          select_rows(prompt_values.data, t.prompts.values, h, t, group, t.prompts.added_values + of_head * D, D);
          product<false>(to, D, scores + at.prompts, C, prompt_values.data, D, S, D, P, false);
        }
        if (own != nullptr)
          for (int64_t s = 0; s < S; ++s) add_scaled(to + s * D, scores[s * C + at.own], own + s * t.own.row + W, D);
        if (t.squash)
#pragma omp simd
          for (int64_t i = 0; i < S * D; ++i) to[i] = squashed(to[i]);
      }
  }
}

// gradient: of out. out, shares: what attend_events filled.
template <class T>
static void attend_events_back(const QueryTask<T>& t, const T* gradient, const T* out, const T* shares,
                               const QueryGradients<T>& to) {
  const FlushDenormals flush;
  const int64_t W = t.width, D = t.values_width, S = t.times, C = t.columns, L = t.events;
  const int64_t P = t.selected * t.rows, table_row = t.table * t.rows;
  const int64_t events = whole<T>(L), prompts = whole<T>(P), wide = whole<T>(W);
  Array<T> values, table, prompt_keys, prompt_values, of_scores, of_keys, of_values, of_prompts, queries, of_attended;
  values.allocate(t.heads * D * events), table.allocate(t.heads * D * table_row), of_scores.allocate(S * C);
  prompt_keys.allocate(P * W), prompt_values.allocate(D * prompts);
  of_keys.allocate(t.heads * L * wide), of_values.allocate(t.heads * L * D), queries.allocate(S * wide);
  of_attended.allocate(S * D);
  of_prompts.allocate(P * (wide > D ? wide : D));
  for (int64_t h = 0; h < t.heads; ++h) transpose_table(table.data + h * D * table_row, table_row, t.prompts.values, h, t, D);
  for (int64_t b = 0; b < t.sequences; ++b) {
    for (int64_t h = 0; h < t.heads; ++h)
      transpose(values.data + h * D * events, events, t.values.at + h * t.values.head + b * t.values.sequence, t.values.row, L, D);
    zero(of_keys.data, t.heads * L * wide), zero(of_values.data, t.heads * L * D);
    for (int64_t g = 0; g < t.groups; ++g)
      for (int64_t h = 0; h < t.heads; ++h) {
        const T* keys = t.keys.at + h * t.keys.head + b * t.keys.sequence;
        const int64_t group = b * t.groups + g, of_head = h * t.sequences * t.groups + group;
        const int64_t seen = t.visible[group];
        const Columns<T> at(t, seen);
        const T* query = t.query.at + h * t.query.head + group * S * t.query.row;
        const T* own = t.own.at == nullptr ? nullptr : t.own.at + h * t.own.head + group * S * t.own.row;
        T* to_own = to.own.at == nullptr ? nullptr : to.own.at + h * to.own.head + group * S * to.own.row;
        const T *g_out = gradient + of_head * S * D, *share = shares + of_head * S * C;
        if (t.squash) {
          const T* squashed_to = out + of_head * S * D;
          for (int64_t i = 0; i < S * D; ++i) of_attended[i] = g_out[i] * (T(1) - squashed_to[i] * squashed_to[i]);
          g_out = of_attended.data;
        }
        T* g_score = of_scores.data;

        product<false>(g_score, C, g_out, D, values.data + h * D * events, events, S, at.prompts, D, true);
        if (P > 0) {
          select_transposed(prompt_values.data, prompts, table.data + h * D * table_row, table_row, t, group,
                            t.prompts.added_values + of_head * D, D);
          product<false>(g_score + at.prompts, C, g_out, D, prompt_values.data, prompts, S, prompts, D, true);
        }
        for (int64_t s = 0; s < S; ++s) {
          T* row = g_score + s * C;
          const T* of = share + s * C;
          for (int64_t i = seen; i < at.prompts; ++i) row[i] = T(0);
          for (int64_t i = at.own; i < at.all; ++i) row[i] = T(0);
          if (own != nullptr) row[at.own] = inner(g_out + s * D, own + s * t.own.row + W, D);
          const T mean = inner(of, row, at.all);
#pragma omp simd
          for (int64_t i = 0; i < at.all; ++i) row[i] = of[i] * (row[i] - mean);
          if (t.since != nullptr) to.fall[h] -= inner(row, t.since + (group * S + s) * t.since_row, at.prompts);
        }

        const T* whole_query = query;
        int64_t query_row = t.query.row;
        if (W < wide) {
          for (int64_t s = 0; s < S; ++s)
            for (int64_t d = 0; d < W; ++d) queries[s * wide + d] = query[s * t.query.row + d];
          whole_query = queries.data, query_row = wide;
        }
        product<true>(of_values.data + h * L * D, D, share, C, g_out, D, seen, D, S, false);
        product<true>(of_keys.data + h * L * wide, wide, g_score, C, whole_query, query_row, seen, wide, S, false);
        if (P > 0) {
          product<true>(of_prompts.data, D, share + at.prompts, C, g_out, D, P, D, S, true);
          select_back(to.prompt_values + h * table_row * D, to.added_values + of_head * D, of_prompts.data, D, t, group, D);
          product<true>(of_prompts.data, wide, g_score + at.prompts, C, whole_query, query_row, P, wide, S, true);
          select_back(to.prompt_keys + h * table_row * W, to.added_keys + of_head * W, of_prompts.data, wide, t, group, W);
        }
        if (to.query.at != nullptr) {  // then W is of whole vectors
          T* g_query = to.query.at + h * to.query.head + group * S * to.query.row;
          product<false>(g_query, to.query.row, g_score, C, keys, t.keys.row, S, W, seen, true);
          if (P > 0) {
            select_rows(prompt_keys.data, t.prompts.keys, h, t, group, t.prompts.added_keys + of_head * W, W);
            product<false>(g_query, to.query.row, g_score + at.prompts, C, prompt_keys.data, W, S, W, P, false);
          }
          if (own != nullptr)
            for (int64_t s = 0; s < S; ++s)
              add_scaled(g_query + s * to.query.row, g_score[s * C + at.own], own + s * t.own.row, W);
        }
        if (to_own != nullptr)
          for (int64_t s = 0; s < S; ++s) {
            T* row = to_own + s * to.own.row;
            const T of_key = g_score[s * C + at.own], of_value = share[s * C + at.own];
#pragma omp simd
            for (int64_t d = 0; d < W; ++d) row[d] = of_key * query[s * t.query.row + d];
#pragma omp simd
            for (int64_t d = 0; d < D; ++d) row[W + d] = of_value * g_out[s * D + d];
          }
      }
    for (int64_t h = 0; h < t.heads; ++h) {
      T *to_keys = to.keys + (h * t.sequences + b) * L * W, *to_values = to.values + (h * t.sequences + b) * L * D;
      for (int64_t i = 0; i < L; ++i)
        for (int64_t d = 0; d < W; ++d) to_keys[i * W + d] = of_keys[(h * L + i) * wide + d];
      for (int64_t i = 0; i < L * D; ++i) to_values[i] = of_values[h * L * D + i];
    }
  }
}
