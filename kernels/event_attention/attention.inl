// One live step of the attentive event model, for each instruction set again. Nothing here includes a header.
//
// A key's newest events are projected to keys and values once; a moment in time is a query of them. The definition,
// with the reasons, is agents/prompt_tpp.py, and the names are the names there.

template <class T>
struct Scratch {  // zeroed memory that is allocated once
  T* data = nullptr;
  ~Scratch() { delete[] data; }
  T* allocate(int64_t count) {
    delete[] data;
    return data = new T[size_t(count < 1 ? 1 : count)]();
  }
  operator T*() const { return data; }
};

template <class T>
class LiveAttention final : public Attention {
 public:
  explicit LiveAttention(const AttentionSpec& spec) : s(spec) {
    Z = s.time_width + (s.calendar ? 4 : 0);
    I = s.width + Z;
    D = s.width, H = s.heads, Y = s.layers, W = s.window, K = s.types, B = s.bins, U = s.hidden;
    P = s.selected * s.rows;
    state = H * D + Z;
    F = s.history_features;
    shared = I + K + 1 + F;
    T* at = static_cast<T*>(s.weights);
    auto take = [&](Block& block, int64_t size) {
      block = {at, static_cast<T*>(s.gradients) + (at - static_cast<T*>(s.weights)), size};
      at += size;
    };
    take(embedding, K * D);
    take(projection, H * Y * I * 3 * D);
    take(projection_bias, H * Y * 3 * D);
    take(recency, H * Y * W);
    take(decay, H * Y);
    if (s.decoder == int64_t(Decoder::bins)) {
      take(hidden, (state + shared) * U);
      take(hidden_bias, U);
      take(gap_out, U * B);
      take(gap_bias, B);
      take(landing, U * landings());
      take(landing_bias, landings());
      take(type_out, U * K);
      take(type_bias, K);
      if (F > 0) take(recall, open_history());
    } else {
      take(head, H * D * K);
      take(head_bias, K);
      take(sharpness, K);
    }
    base_size = at - static_cast<T*>(s.weights);
    take(prompt_keys, s.prompts * I);
    take(prompt_rows, s.prompts * s.rows * 2 * D);
    size = at - static_cast<T*>(s.weights);

    columns = W + P + 1;
    const int64_t nodes = s.node_cells * s.node_count;
    most_rows = s.decoder == int64_t(Decoder::bins) ? 2 : 1 + nodes;
    event_rows = s.exact ? W : 1;
    row_size = H * Y * (I + 3 * D + columns + D) + H * D + 2 * U + Z;
    rows_.allocate((most_rows + 1) * row_size);  // the last is for questions that nothing is learned from
    logs_.allocate((most_rows + 1 + event_rows) * W);
    events_.allocate(event_rows * H * Y * (I + 3 * D + columns));
    cache_gradient.allocate(H * Y * 2 * W * D);
    own_cache.allocate(H * Y * 2 * W * D);
    projected.allocate(H * Y * 2 * s.prompts * s.rows * D);
    selected_rows.allocate(H * Y * 2 * P * D);
    selected_gradient.allocate(H * Y * 2 * P * D);
    g_qkv.allocate(3 * D), g_inputs.allocate(I), g_attended.allocate(D), g_scores.allocate(columns);
    g_before.allocate(U), g_hidden.allocate(U), g_state.allocate(state);
    logits.allocate(B > K ? B : K), rates.allocate(K), activations.allocate(K);
    ids.allocate(s.selected + 1);
    merit.allocate(s.prompts + 1);
    cosine.allocate(s.prompts + 1);
    query_.allocate(I);
    prompt_time.allocate(Z);
    masses.allocate(B);
    shares.allocate(K);
    shared_features.allocate(shared);
    shared_hidden.allocate(U);
    ends.allocate(2 * kCycles * B);
    for (int64_t f = 0; f < kCycles; ++f)
      for (int64_t b = 0; b + 1 < B; ++b) {
        const double middle = 0.5 * (s.edges[b] + s.edges[b + 1]), width = s.edges[b + 1] - s.edges[b];
        const double half = kPi * width / kPeriods[f], faded = __builtin_sin(half) / half;
        ends[2 * f * B + b] = T(faded * __builtin_cos(kTurn * part_of(middle / kPeriods[f])));
        ends[(2 * f + 1) * B + b] = T(faded * __builtin_sin(kTurn * part_of(middle / kPeriods[f])));
      }
    refresh();
  }

  // What depends on the parameters alone: the prompts' keys and values without what the expected time adds, and types as
  // they stand in the history.
  void refresh() override {
    for (int64_t i = 0; i < past_types.size; ++i) past_types[i] = tanh_of(embedding.at[i]);
    const int64_t rows = s.prompts * s.rows;
    for (int64_t hl = 0; hl < H * Y; ++hl)
      for (int64_t kv = 0; kv < 2; ++kv)
        for (int64_t r = 0; r < rows; ++r) {
          T* out = projected + ((hl * 2 + kv) * rows + r) * D;
          const T* bias = projection_bias.at + hl * 3 * D + (1 + kv) * D;
          for (int64_t d = 0; d < D; ++d) out[d] = bias[d];
          const T* x = prompt_rows.at + (r * 2 + kv) * D;
          for (int64_t i = 0; i < D; ++i)
            add_scaled(out, x[i], projection.at + (hl * I + i) * 3 * D + (1 + kv) * D, D);
        }
  }

  void score(const AttentionKey& given, const AttentionInput& given_input, AttentionOutput& out) override {
    prepare(given, given_input);
    if (s.decoder == int64_t(Decoder::bins)) score_bins(out);
    else score_intensity(out);
    if (input.type < 0) return;
    out.predicted_type = 0, out.rank = 0;
    for (int64_t k = 1; k < input.classes; ++k)
      if (shares[k] > shares[out.predicted_type]) out.predicted_type = k;
    out.confidence = double(shares[out.predicted_type]);
    const T own = shares[input.type];
    for (int64_t k = 0; k < input.classes; ++k) out.rank += shares[k] > own;
    out.type_log_probability = __builtin_log(double(own) > 1e-30 ? double(own) : 1e-30);
  }

  void forecast(const AttentionKey& given, const AttentionInput& given_input, float* out) override {
    prepare(given, given_input);
    ask(0, 0.0);
    gap_logits(query_row(0));
    softmax_over(input.gap_floor, logits.data, masses.data, B);
    for (int64_t b = 0; b < B; ++b) out[b] = float(masses[b]);
  }

  void types_after(double gap, const double* floor, double* out) override {
    T* row = query_row(most_rows);
    if (s.decoder == int64_t(Decoder::bins)) {
      ask(most_rows, gap);
      type_logits(row);
      softmax_over(floor, logits.data, logits.data, input.classes);
      for (int64_t k = 0; k < input.classes; ++k) out[k] = double(logits[k]);
    } else {
      T total = 0;
      ask(most_rows, gap);
      intensities(row);
      for (int64_t k = 0; k < input.classes; ++k) total += rates[k];
      for (int64_t k = 0; k < input.classes; ++k) out[k] = double(rates[k] / total);
    }
  }

  void train(const AttentionOutput& scored) override {
    const double loss = input.type < 0 ? -scored.silence : -scored.at_arrival - scored.type_log_probability;
    const FlushDenormals flush;
    for (int64_t block = 0; block < H * Y * 2; ++block)
      for (int64_t i = visible - event_rows_used; i < visible; ++i)
        for (int64_t d = 0; d < D; ++d) cache_gradient[(block * W + slot(i)) * D + d] = T(0);
    for (int64_t i = 0; i < H * Y * 2 * P * D; ++i) selected_gradient[i] = T(0);
    for (int64_t f = 0; f < F; ++f) found_gradient[f] = T(0);
    if (s.decoder == int64_t(Decoder::bins)) train_bins();
    else train_intensity();
    for (int64_t e = event_rows_used - 1; e >= 0; --e) encode_back(visible - event_rows_used + e, e);
    prompts_back();
    recall_back();
    if (input.type >= 0) watch(loss);
    s.progress[kInGroup] += 1.0;
    if (s.progress[kInGroup] >= double(s.group)) step();
  }

  void append(const AttentionKey& of, double time, double gap, int64_t type) override {
    T token[kMostInputs];
    make_token(token, type, gap, time);
    for (int64_t i = 0; i < I; ++i)
      of.query[i] = of.events > 0.0 ? kQueryFading * of.query[i] + (1.0 - kQueryFading) * double(token[i]) : double(token[i]);
    s.progress[kEvents] += 1.0;
  }

 private:
  struct Block {
    T *at = nullptr, *gradient = nullptr;
    int64_t size = 0;
  };

  void prepare(const AttentionKey& given, const AttentionInput& given_input) {
    key = given, input = given_input;
    visible = key.events < double(W) ? int64_t(key.events) : W;
    first_event = int64_t(key.events) - visible;
    retrieve();
    encode();
    describe();
  }

  static constexpr int64_t kMostInputs = 512;
  static constexpr double kQueryFading = 0.9, kUsageFading = 0.999, kSmallestNorm = 1e-12;
  static constexpr double kBeta1 = 0.9, kBeta2 = 0.999, kEpsilon = 1e-8;
  static constexpr double kDriftSlack = 0.1, kDriftThreshold = 100.0, kDriftClip = 5.0, kDriftWarmUp = 500.0;
  static constexpr double kBoostEvents = 2000.0, kFloor = 1e-9;
  static constexpr double kTurn = 6.283185307179586, kPi = 3.141592653589793;
  static constexpr int64_t kCycles = 4;
  static constexpr double kPeriods[kCycles] = {86400.0, 43200.0, 28800.0, 604800.0};  // seconds

  // The rest of its members, in the order in which an event goes through them.
#include "prompts.inl"
#include "encoder.inl"
#include "history.inl"

  // --- moments ---------------------------------------------------------------------------------------------------

  // What is kept of a moment: inputs [H, Y, I], qkv, weights [H, Y, columns], tanh [H, Y, D], state [H D + Z], then
  // the decoder's hidden layer before and after its activation [2, U].
  T* query_row(int64_t r) const { return rows_ + r * row_size; }
  T* row_qkv(T* row) const { return row + H * Y * I; }
  T* row_weights(T* row) const { return row_qkv(row) + H * Y * 3 * D; }
  T* row_tanh(T* row) const { return row_weights(row) + H * Y * columns; }
  T* row_state(T* row) const { return row_tanh(row) + H * Y * D; }
  T* row_hidden(T* row) const { return row_state(row) + state; }

  void ask(int64_t r, double gap) {
    T* row = query_row(r);
    T* logs = logs_ + r * W;
    const double time = key.last_time + gap;
    T* at = row_state(row) + H * D;
    embed_time(at, gap, time);
    if (s.recency) logs_of(logs, time, visible);
    for (int64_t h = 0; h < H; ++h) {
      T* sum = row_state(row) + h * D;
      for (int64_t d = 0; d < D; ++d) sum[d] = T(0);
      for (int64_t l = 0; l < Y; ++l) {
        const int64_t hl = h * Y + l;
        T *y = row + hl * I, *qkv = row_qkv(row) + hl * 3 * D, *bent = row_tanh(row) + hl * D;
        for (int64_t d = 0; d < D; ++d) y[d] = sum[d];
        for (int64_t d = 0; d < Z; ++d) y[D + d] = at[d];
        project(hl, y, qkv);
        attend(hl, qkv, visible, logs, row_weights(row) + hl * columns, bent);
#pragma omp simd
        for (int64_t d = 0; d < D; ++d) bent[d] = tanh_of(bent[d]);
        for (int64_t d = 0; d < D; ++d) sum[d] += bent[d];
      }
    }
    if (s.decoder == int64_t(Decoder::bins)) hide(row);
  }

  // g: gradient of the state [H D]; it is used up.
  void ask_back(int64_t r, T* g) {
    T* row = query_row(r);
    T *gy = g_inputs, *g_out = g_attended;
    for (int64_t h = 0; h < H; ++h) {
      T* sum = g + h * D;
      for (int64_t l = Y - 1; l >= 0; --l) {
        const int64_t hl = h * Y + l;
        const T *y = row + hl * I, *qkv = row_qkv(row) + hl * 3 * D, *bent = row_tanh(row) + hl * D;
        for (int64_t d = 0; d < D; ++d) g_out[d] = sum[d] * (T(1) - bent[d] * bent[d]);
        for (int64_t d = 0; d < 3 * D; ++d) g_qkv[d] = T(0);
        attend_back(hl, qkv, visible, logs_ + r * W, row_weights(row) + hl * columns, g_out, visible - event_rows_used,
                    g_qkv.data);
        for (int64_t d = 0; d < I; ++d) gy[d] = T(0);
        project_back(hl, y, g_qkv, gy);
        for (int64_t d = 0; d < D; ++d) sum[d] += gy[d];
      }
    }
  }

#include "bins.inl"
#include "intensities.inl"
#include "steps.inl"

  AttentionSpec s;
  int64_t Z, I, D, H, Y, W, K, B, U, P, F, state, shared, base_size, size, columns, most_rows, event_rows, row_size;
  Block embedding, projection, projection_bias, recency, decay;
  Block hidden, hidden_bias, gap_out, gap_bias, landing, landing_bias, type_out, type_bias;
  Block head, head_bias, sharpness;
  Block recall, prompt_keys, prompt_rows;
  Scratch<T> rows_, logs_, events_, cache_gradient, own_cache, projected, selected_rows, selected_gradient;
  Scratch<T> g_qkv, g_inputs, g_attended, g_scores, g_before, g_hidden, g_state, logits, rates, activations;
  Scratch<T> query_, prompt_time, masses, shares, shared_features, shared_hidden, cosine;
  Scratch<T> ends;  // [cycles, 2, bins]: cosine and sine of how far a gap of each bin goes round
  Scratch<double> merit;
  T turns[2 * kCycles];
  Scratch<int64_t> ids;
  Array<T> past_contents, past_summaries, past_types, past_gaps, asks, found_gradient;
  Array<int64_t> past_steps;
  int64_t past_counters[4] = {};
  Memory<T> past{MemorySpec{}};
  Read<T> reader;
  Reading<T> reading;
  T newest[kMostInputs], token_gradient[kMostInputs];
  T* cache = nullptr;
  AttentionKey key;
  AttentionInput input;
  int64_t visible = 0, first_event = 0, event_rows_used = 0;
};

static Attention* make_attention(const AttentionSpec& spec, bool is_double) {
  if (is_double) return new LiveAttention<double>(spec);
  return new LiveAttention<float>(spec);
}
