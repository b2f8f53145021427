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

  // --- times -----------------------------------------------------------------------------------------------------

  static double part_of(double x) { return x - __builtin_floor(x); }

  void embed_time(T* out, double gap, double time) const {
    turn(out, gap);
    if (!s.calendar) return;
    const double day_angle = kTurn * part_of(time / 86400.0), week_angle = kTurn * part_of(time / 604800.0);
    T* calendar = out + s.time_width;
    calendar[0] = T(__builtin_sin(day_angle)), calendar[1] = T(__builtin_cos(day_angle));
    calendar[2] = T(__builtin_sin(week_angle)), calendar[3] = T(__builtin_cos(week_angle));
  }

  void turn(T* out, double gap) const {
    const double u = log1p_of(gap * 1e3);
    for (int64_t p = 0; p < s.time_width / 2; ++p) {
      const double angle = u * s.rates[p];
      out[2 * p] = T(__builtin_sin(angle));
      out[2 * p + 1] = T(__builtin_cos(angle));
    }
  }

  void make_token(T* token, int64_t type, double gap, double time) const {
    const T* row = embedding.at + type * D;
    for (int64_t d = 0; d < D; ++d) token[d] = tanh_of(row[d]);
    embed_time(token + D, gap, time);
  }

  int64_t slot(int64_t i) const { return (first_event + i) % W; }  // of the key's i-th event that is remembered

  // --- prompts ---------------------------------------------------------------------------------------------------

  void retrieve() {
    if (s.prompts == 0) return;
    double norm = 0.0;
    for (int64_t i = 0; i < I; ++i) norm += key.query[i] * key.query[i];
    norm = __builtin_sqrt(norm) > kSmallestNorm ? __builtin_sqrt(norm) : kSmallestNorm;
    for (int64_t i = 0; i < I; ++i) query_[i] = T(key.query[i] / norm);
    for (int64_t m = 0; m < s.prompts; ++m) {
      const T* of = prompt_keys.at + m * I;
      T inner = 0, square = 0;
      for (int64_t i = 0; i < I; ++i) inner += of[i] * query_[i], square += of[i] * of[i];
      const T length = T(__builtin_sqrt(double(square)));
      cosine[m] = inner / (length > T(kSmallestNorm) ? length : T(kSmallestNorm));
      const double share = s.usage[2 * m] > 1e-6 ? s.usage[2 * m] : 1e-6;
      merit[m] = double(cosine[m]) - s.usage_balance * __builtin_log(share);
      if (s.random_prompts) merit[m] = draw(s.seed + 1, uint64_t(s.progress[kEvents]) * uint64_t(s.prompts) + uint64_t(m));
    }
    for (int64_t n = 0; n < s.selected; ++n) {
      int64_t best = -1;
      for (int64_t m = 0; m < s.prompts; ++m)
        if (merit[m] > -1e299 && (best < 0 || merit[m] > merit[best])) best = m;
      ids[n] = best;
      merit[best] = -1e300;
    }
    embed_time(prompt_time, __builtin_exp(key.mean_log_gap), key.last_time);
    const int64_t rows = s.prompts * s.rows;
    T added[2 * kMostInputs];
    for (int64_t hl = 0; hl < H * Y; ++hl) {
      for (int64_t d = 0; d < 2 * D; ++d) added[d] = T(0);
      for (int64_t i = 0; i < Z; ++i) add_scaled(added, prompt_time[i], projection.at + (hl * I + D + i) * 3 * D + D, 2 * D);
      for (int64_t kv = 0; kv < 2; ++kv)
        for (int64_t p = 0; p < P; ++p) {
          const T* from = projected + ((hl * 2 + kv) * rows + ids[p / s.rows] * s.rows + p % s.rows) * D;
          T* to = selected_rows + ((hl * 2 + kv) * P + p) * D;
          for (int64_t d = 0; d < D; ++d) to[d] = from[d] + added[kv * D + d];
        }
    }
  }

  void prompts_back() {
    if (s.prompts == 0) return;
    const int64_t rows = s.prompts * s.rows;
    T* pending = static_cast<T*>(s.prompt_gradients);
    T added[2 * kMostInputs];
    for (int64_t hl = 0; hl < H * Y; ++hl) {
      for (int64_t d = 0; d < 2 * D; ++d) added[d] = T(0);
      for (int64_t kv = 0; kv < 2; ++kv)
        for (int64_t p = 0; p < P; ++p) {
          const T* from = selected_gradient + ((hl * 2 + kv) * P + p) * D;
          add_scaled(pending + ((hl * 2 + kv) * rows + ids[p / s.rows] * s.rows + p % s.rows) * D, T(1), from, D);
          add_scaled(added + kv * D, T(1), from, D);
        }
      for (int64_t i = 0; i < Z; ++i)
        add_scaled(projection.gradient + (hl * I + D + i) * 3 * D + D, prompt_time[i], added, 2 * D);
    }
    // The matching loss: matching * (1 - mean cosine), through the keys alone.
    double mean = 0.0;
    for (int64_t n = 0; n < s.selected; ++n) {
      const T* of = prompt_keys.at + ids[n] * I;
      T* to = prompt_keys.gradient + ids[n] * I;
      T square = 0;
      for (int64_t i = 0; i < I; ++i) square += of[i] * of[i];
      const T length = T(__builtin_sqrt(double(square)));
      mean += double(cosine[ids[n]]) / double(s.selected);
      if (length <= T(kSmallestNorm)) continue;
      const T scale = -T(s.matching) / T(s.selected) / length;
      for (int64_t i = 0; i < I; ++i) to[i] += scale * (query_[i] - cosine[ids[n]] * of[i] / length);
    }
    s.progress[kMeanCosine] = kUsageFading * s.progress[kMeanCosine] + (1.0 - kUsageFading) * mean;
    for (int64_t m = 0; m < s.prompts; ++m) s.usage[2 * m] *= kUsageFading;
    for (int64_t n = 0; n < s.selected; ++n) {
      s.usage[2 * ids[n]] += (1.0 - kUsageFading) / double(s.selected);
      s.usage[2 * ids[n] + 1] = s.progress[kEvents];
    }
    if (s.reuse_after > 0.0) reuse();
  }

  // A prompt that nothing has found for long is put where the present query is.
  void reuse() {
    for (int64_t m = 0; m < s.prompts; ++m) {
      if (s.progress[kEvents] - s.usage[2 * m + 1] <= s.reuse_after) continue;
      const int64_t at = prompt_keys.at - static_cast<T*>(s.weights) + m * I;
      for (int64_t i = 0; i < I; ++i) {
        prompt_keys.at[m * I + i] = query_[i];
        prompt_keys.gradient[m * I + i] = static_cast<T*>(s.first)[at + i] = static_cast<T*>(s.second)[at + i] = T(0);
      }
      s.usage[2 * m + 1] = s.progress[kEvents];
      s.progress[kReused] += 1.0;
      return;  // one at a time: two in the same place would be one
    }
  }

  // --- attention -------------------------------------------------------------------------------------------------

  T* cache_of(int64_t hl, int64_t kv) const { return cache + (hl * 2 + kv) * W * D; }
  T* cache_gradient_of(int64_t hl, int64_t kv) const { return cache_gradient + (hl * 2 + kv) * W * D; }

  void logs_of(T* logs, double time, int64_t count) const {  // of the seconds since each event
    for (int64_t i = 0; i < count; ++i) logs[i] = T(log1p_of(time - key.times[slot(i)]));
  }

  // Attend to the first `count` remembered events, to the prompts and to oneself.
  void attend(int64_t hl, const T* qkv, int64_t count, const T* logs, T* weights, T* out) const {
    const T scale = T(1.0 / __builtin_sqrt(double(D)));
    const T *keys = cache_of(hl, 0), *values = cache_of(hl, 1);
    const T* nearer = recency.at + hl * W;
    const T fading = decay.at[hl];
    for (int64_t i = 0; i < count; ++i)
      weights[i] = dot(qkv, keys + slot(i) * D, D) * scale + (s.recency ? nearer[count - 1 - i] - fading * logs[i] : T(0));
    const T* prompts = selected_rows + hl * 2 * P * D;
    for (int64_t p = 0; p < P; ++p) weights[count + p] = dot(qkv, prompts + p * D, D) * scale;
    const int64_t total = count + P + 1;
    weights[total - 1] = dot(qkv, qkv + D, D) * scale;
    normalise(weights, total);
    for (int64_t d = 0; d < D; ++d) out[d] = weights[total - 1] * qkv[2 * D + d];
    for (int64_t i = 0; i < count; ++i) add_scaled(out, weights[i], values + slot(i) * D, D);
    for (int64_t p = 0; p < P; ++p) add_scaled(out, weights[count + p], prompts + (P + p) * D, D);
  }

  static void normalise(T* x, int64_t n) {
    T highest = x[0];
    for (int64_t i = 1; i < n; ++i) highest = x[i] > highest ? x[i] : highest;
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) {
      x[i] = exp_of(x[i] - highest);
      total += x[i];
    }
    const T scale = T(1) / total;
    for (int64_t i = 0; i < n; ++i) x[i] *= scale;
  }

  // g: gradient of `out`. Adds to the gradients of q, k and v of oneself, of the events from `live` on, of prompts.
  void attend_back(int64_t hl, const T* qkv, int64_t count, const T* logs, const T* weights, const T* g, int64_t live,
                   T* g_own) {
    const T scale = T(1.0 / __builtin_sqrt(double(D)));
    const T *keys = cache_of(hl, 0), *values = cache_of(hl, 1);
    T *key_gradient = cache_gradient_of(hl, 0), *value_gradient = cache_gradient_of(hl, 1);
    const T* prompts = selected_rows + hl * 2 * P * D;
    T* prompt_gradient = selected_gradient + hl * 2 * P * D;
    const int64_t total = count + P + 1;
    T mean = 0;
    for (int64_t i = 0; i < count; ++i) g_scores[i] = dot(g, values + slot(i) * D, D);
    for (int64_t p = 0; p < P; ++p) g_scores[count + p] = dot(g, prompts + (P + p) * D, D);
    g_scores[total - 1] = dot(g, qkv + 2 * D, D);
    for (int64_t i = 0; i < total; ++i) mean += weights[i] * g_scores[i];
    for (int64_t i = 0; i < total; ++i) g_scores[i] = weights[i] * (g_scores[i] - mean);
    if (s.recency) {
      T* nearer = recency.gradient + hl * W;
      T faded = 0;
      for (int64_t i = 0; i < count; ++i) nearer[count - 1 - i] += g_scores[i], faded -= g_scores[i] * logs[i];
      decay.gradient[hl] += faded;
    }
    for (int64_t i = 0; i < total; ++i) g_scores[i] *= scale;
    for (int64_t i = 0; i < count; ++i) {
      add_scaled(g_own, g_scores[i], keys + slot(i) * D, D);
      if (i < live) continue;
      add_scaled(key_gradient + slot(i) * D, g_scores[i], qkv, D);
      add_scaled(value_gradient + slot(i) * D, weights[i], g, D);
    }
    for (int64_t p = 0; p < P; ++p) {
      add_scaled(g_own, g_scores[count + p], prompts + p * D, D);
      add_scaled(prompt_gradient + p * D, g_scores[count + p], qkv, D);
      add_scaled(prompt_gradient + (P + p) * D, weights[count + p], g, D);
    }
    add_scaled(g_own, g_scores[total - 1], qkv + D, D);
    add_scaled(g_own + D, g_scores[total - 1], qkv, D);
    add_scaled(g_own + 2 * D, weights[total - 1], g, D);
  }

  void project(int64_t hl, const T* x, T* qkv) const {
    const T* bias = projection_bias.at + hl * 3 * D;
    for (int64_t d = 0; d < 3 * D; ++d) qkv[d] = bias[d];
    multiply(qkv, x, I, projection.at + hl * I * 3 * D, 3 * D);
  }

  void project_back(int64_t hl, const T* x, const T* g_qkv, T* gx) {
    add_scaled(projection_bias.gradient + hl * 3 * D, T(1), g_qkv, 3 * D);
    multiply_back(gx, x, I, projection.at + hl * I * 3 * D, projection.gradient + hl * I * 3 * D, g_qkv, 3 * D);
  }

  // --- events ----------------------------------------------------------------------------------------------------

  // What is kept of an event whose gradient is taken: inputs [H, Y, I], qkv [H, Y, 3 D], weights [H, Y, columns].
  T* event_inputs(int64_t e) const { return events_ + e * H * Y * (I + 3 * D + columns); }
  T* event_qkv(int64_t e) const { return event_inputs(e) + H * Y * I; }
  T* event_weights(int64_t e) const { return event_qkv(e) + H * Y * 3 * D; }
  T* event_logs(int64_t e) const { return logs_ + (most_rows + 1 + e) * W; }

  void encode_one(int64_t i, int64_t e) {
    T* logs = event_logs(e);
    const int64_t at = slot(i);
    logs_of(logs, key.times[at], i);
    T token[kMostInputs];
    make_token(token, key.kinds[at], key.gaps[at], key.times[at]);
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t l = 0; l < Y; ++l) {
        const int64_t hl = h * Y + l;
        T *x = event_inputs(e) + hl * I, *qkv = event_qkv(e) + hl * 3 * D;
        if (l == 0)
          for (int64_t d = 0; d < I; ++d) x[d] = token[d];
        project(hl, x, qkv);
        for (int64_t d = 0; d < D; ++d) cache_of(hl, 0)[at * D + d] = qkv[D + d], cache_of(hl, 1)[at * D + d] = qkv[2 * D + d];
        if (l + 1 == Y) continue;  // nothing asks what the last layer's events attend to
        T* next = x + I;
        attend(hl, qkv, i, logs, event_weights(e) + hl * columns, next);
        for (int64_t d = 0; d < Z; ++d) next[D + d] = token[D + d];
      }
    }
  }

  void encode_back(int64_t i, int64_t e) {
    const int64_t at = slot(i), live = visible - event_rows_used;
    T *gx = g_inputs, *g = g_attended;
    T* row = embedding.gradient + key.kinds[at] * D;
    const T* token = event_inputs(e);
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t l = Y - 1; l >= 0; --l) {
        const int64_t hl = h * Y + l;
        const T *x = event_inputs(e) + hl * I, *qkv = event_qkv(e) + hl * 3 * D;
        for (int64_t d = 0; d < D; ++d) {
          g_qkv[d] = T(0);
          g_qkv[D + d] = cache_gradient_of(hl, 0)[at * D + d];
          g_qkv[2 * D + d] = cache_gradient_of(hl, 1)[at * D + d];
        }
        if (l + 1 < Y) attend_back(hl, qkv, i, event_logs(e), event_weights(e) + hl * columns, g, live, g_qkv.data);
        for (int64_t d = 0; d < I; ++d) gx[d] = T(0);
        project_back(hl, x, g_qkv.data, gx);
        for (int64_t d = 0; d < D; ++d) g[d] = gx[d];
      }
      for (int64_t d = 0; d < D; ++d) row[d] += g[d] * (T(1) - token[d] * token[d]);
    }
    if (i + 1 == visible && s.decoder == int64_t(Decoder::bins))  // the decoder sees the newest token itself
      for (int64_t d = 0; d < D; ++d) row[d] += token_gradient[d] * (T(1) - newest[d] * newest[d]);
  }

  // Bring the keys and values of the remembered events into `cache`, the newest with what its gradient needs.
  void encode() {
    event_rows_used = s.exact ? visible : 1;
    make_token(newest, key.kinds[slot(visible - 1)], key.gaps[slot(visible - 1)], key.times[slot(visible - 1)]);
    if (H == 0) return;
    if (s.exact) {
      cache = own_cache;
      for (int64_t i = 0; i < visible; ++i) encode_one(i, i);
      return;
    }
    // An 8-way cache of keys: the place of the least recently used goes to whoever has none.
    const int64_t sets = s.hot / 8, set = int64_t(mixed(uint64_t(key.serial)) % uint64_t(sets)) * 8;
    int64_t found = -1, oldest = set;
    for (int64_t c = set; c < set + 8; ++c) {
      if (s.cached[4 * c] == key.serial) found = c;
      if (s.cached[4 * c + 1] < s.cached[4 * oldest + 1]) oldest = c;
    }
    const int64_t place = found >= 0 ? found : oldest;
    int64_t* entry = s.cached + 4 * place;
    cache = static_cast<T*>(s.cache) + place * H * Y * 2 * W * D;
    const int64_t events = int64_t(key.events), updates = int64_t(s.progress[kUpdates]);
    const bool kept = found >= 0 && events - entry[3] <= 1 && updates - entry[2] <= s.cache_age;
    s.progress[kLookups] += 1.0;
    s.progress[kHits] += double(kept);
    if (!kept) {
      entry[0] = key.serial, entry[2] = updates;
      s.progress[kRebuilds] += double(visible > 1);
      for (int64_t i = 0; i + 1 < visible; ++i) encode_one(i, 0);
    }
    entry[1] = int64_t(s.progress[kLookups]);
    entry[3] = events;
    encode_one(visible - 1, 0);
  }

  // --- history: events before the window, in chunks, each as its type and the bin of its gap -------------------------

  // Prepare what reads the history; returns how many parameters that has.
  int64_t open_history() {
    const int64_t slots = s.history + 1, row = D + s.time_width;  // one more than are used: none is being written to
    past_contents.allocate(slots * s.history_length * row);
    past_summaries.allocate(slots * row);
    past_types.allocate(K * D);
    past_gaps.allocate(B * s.time_width);
    past_steps.allocate(slots);
    for (int64_t b = 0; b < B; ++b) turn(past_gaps.data + b * s.time_width, s.middles[b]);
    MemorySpec spec{};
    spec.contents = past_contents.data, spec.summaries = past_summaries.data, spec.steps = past_steps.data;
    spec.counters = past_counters, spec.slots = spec.own = slots, spec.length = s.history_length, spec.row = row;
    spec.of_float = s.of_float, spec.of_double = s.of_double;
    past = Memory<T>(spec);
    LayerSpec layer{};
    layer.kind = LayerKind::read;
    layer.inputs = 2 * I, layer.features = F, layer.heads = s.history_heads, layer.k = s.history_reads;
    reader.prepare(layer, past, static_cast<const T*>(s.history_positions));
    reader.prepare(reading);
    asks.allocate(2 * I);
    found_gradient.allocate(F);
    return reader.parameter_count();
  }

  // Spell the key's history out: [chunks, length, row], the mean of each chunk, and how many events it has.
  void spell_history() {
    const int64_t C = s.history_length, row = D + s.time_width;
    const int64_t older = key.events > double(W) ? int64_t(key.events) - W : 0, chunks = (older + C - 1) / C;
    const int64_t used = chunks < s.history ? chunks : s.history;
    past_counters[0] = used;
    for (int64_t m = 0; m < used; ++m) past_steps[m] = C;
    if (older % C != 0) past_steps[(older / C) % s.history] = older % C;
    for (int64_t m = 0; m < used; ++m) {
      T* const mean = past_summaries.data + m * row;
      zero(mean, row);
      for (int64_t c = 0; c < past_steps[m]; ++c) {
        const int16_t* event = key.history + (m * C + c) * 2;
        T* const to = past_contents.data + (m * C + c) * row;
        __builtin_memcpy(to, past_types.data + event[0] * D, sizeof(T) * size_t(D));
        __builtin_memcpy(to + D, past_gaps.data + event[1] * s.time_width, sizeof(T) * size_t(s.time_width));
        for (int64_t d = 0; d < row; ++d) mean[d] += to[d];
      }
      for (int64_t d = 0; d < row; ++d) mean[d] /= T(past_steps[m]);
    }
  }

  // The query is the newest event and the fading mean of all; neither learns from what it finds.
  void recall_history() {
    if (F == 0) return;
    spell_history();
    for (int64_t i = 0; i < I; ++i) asks[i] = newest[i], asks[I + i] = T(key.query[i]);
    reader.forward(recall.at, asks.data, shared_features.data + I + K + 1, reading);
  }

  void recall_back() {
    if (F == 0) return;
    reader.backward(recall.at, asks.data, found_gradient.data, reading);
    add_scaled(recall.gradient, T(1), reader.gradient.data, recall.size);
  }

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

  // --- decoder: a distribution over bins of gaps, and one over types, beside those of the floors -------------------

  // What all moments of a key share: its newest event, how often each type came, how many events there were.
  void describe() {
    if (s.decoder != int64_t(Decoder::bins)) return;
    for (int64_t i = 0; i < I; ++i) shared_features[i] = newest[i], token_gradient[i] = T(0);
    for (int64_t k = 0; k < K; ++k)
      shared_features[I + k] = input.type_counts[k] == 0.0 ? T(0) : T(log1p_of(input.type_counts[k]));
    shared_features[I + K] = T(log1p_of(key.events) / 4.0);
    recall_history();
    for (int64_t u = 0; u < U; ++u) shared_hidden[u] = hidden_bias.at[u];
    multiply(shared_hidden.data, shared_features.data, I, hidden.at + state * U, U);
    for (int64_t k = I; k < shared; ++k)
      if (shared_features[k] != T(0)) add_scaled(shared_hidden.data, shared_features[k], hidden.at + (state + k) * U, U);
  }

  void hide(T* row) const {
    T *before = row_hidden(row), *after = before + U;
    for (int64_t u = 0; u < U; ++u) before[u] = shared_hidden[u];
    multiply(before, row_state(row), state, hidden.at, U);
#pragma omp simd
    for (int64_t u = 0; u < U; ++u) after[u] = before[u] * sigmoid(before[u]);
  }

  // g: gradient of the hidden layer after its activation; leaves that of the state in g_state [state].
  void hide_back(T* row, const T* g) {
    const T* before = row_hidden(row);
    for (int64_t u = 0; u < U; ++u) {
      const T on = sigmoid(before[u]);
      g_before[u] = g[u] * on * (T(1) + before[u] * (T(1) - on));
    }
    add_scaled(hidden_bias.gradient, T(1), g_before.data, U);
    for (int64_t i = 0; i < state; ++i) g_state[i] = T(0);
    multiply_back(g_state.data, row_state(row), state, hidden.at, hidden.gradient, g_before.data, U);
    multiply_back(token_gradient, shared_features.data, I, hidden.at + state * U,
                  hidden.gradient + state * U, g_before.data, U);
    for (int64_t k = I; k < shared; ++k)
      if (shared_features[k] != T(0)) add_scaled(hidden.gradient + (state + k) * U, shared_features[k], g_before.data, U);
    for (int64_t f = 0; f < F; ++f) found_gradient[f] += dot(hidden.at + (state + I + K + 1 + f) * U, g_before.data, U);
  }

  int64_t landings() const { return s.calendar ? 2 * kCycles : 0; }

  // A gap of each length ends at some hour of some day: sines and cosines of that, averaged over the bin, add to its
  // logit. turns: sine and cosine of the last event's own time in each cycle.
  void gap_logits(T* row) {
    for (int64_t b = 0; b < B; ++b) logits[b] = gap_bias.at[b];
    multiply(logits.data, row_hidden(row) + U, U, gap_out.at, B);
    if (!s.calendar) return;
    T strength[2 * kCycles];
    for (int64_t f = 0; f < 2 * kCycles; ++f) strength[f] = landing_bias.at[f];
    multiply(strength, row_hidden(row) + U, U, landing.at, 2 * kCycles);
    for (int64_t f = 0; f < kCycles; ++f) {
      const double angle = kTurn * part_of(key.last_time / kPeriods[f]);
      turns[2 * f] = T(__builtin_sin(angle)), turns[2 * f + 1] = T(__builtin_cos(angle));
      const T sine = turns[2 * f], cosine_ = turns[2 * f + 1];
      add_scaled(logits.data, strength[2 * f] * sine + strength[2 * f + 1] * cosine_, ends + 2 * f * B, B);
      add_scaled(logits.data, strength[2 * f] * cosine_ - strength[2 * f + 1] * sine, ends + (2 * f + 1) * B, B);
    }
  }

  // g: gradient of the logits of bins; adds to that of the hidden layer.
  void gap_logits_back(T* row, const T* g) {
    const T* after = row_hidden(row) + U;
    add_scaled(gap_bias.gradient, T(1), g, B);
    multiply_back(g_hidden.data, after, U, gap_out.at, gap_out.gradient, g, B);
    if (!s.calendar) return;
    T g_strength[2 * kCycles];
    for (int64_t f = 0; f < kCycles; ++f) {
      const T along = dot(g, ends + 2 * f * B, B), across = dot(g, ends + (2 * f + 1) * B, B);
      g_strength[2 * f] = along * turns[2 * f] + across * turns[2 * f + 1];
      g_strength[2 * f + 1] = along * turns[2 * f + 1] - across * turns[2 * f];
    }
    add_scaled(landing_bias.gradient, T(1), g_strength, 2 * kCycles);
    multiply_back(g_hidden.data, after, U, landing.at, landing.gradient, g_strength, 2 * kCycles);
  }

  void type_logits(T* row) {
    for (int64_t k = 0; k < K; ++k) logits[k] = type_bias.at[k];
    multiply(logits.data, row_hidden(row) + U, U, type_out.at, K);
  }

  static void softmax_over(const double* floor, const T* logits, T* out, int64_t n) {
    T highest = logits[0], total = 0;
    for (int64_t i = 1; i < n; ++i) highest = logits[i] > highest ? logits[i] : highest;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; ++i) {
      out[i] = T(floor[i]) * exp_of(logits[i] - highest);
      total += out[i];
    }
    const T scale = T(1) / total;
    for (int64_t i = 0; i < n; ++i) out[i] *= scale;
  }

  int64_t bin_of(double gap) const {
    int64_t low = 0, high = B;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (gap >= s.edges[middle] ? low : high) = middle;
    }
    return low;
  }

  // The logarithm of the probability of a longer gap; in the last bin, which has no end, gaps are exponential.
  template <class M>
  double log_survival(const M* mass_of, double gap) const {
    const int64_t bin = bin_of(gap);
    double longer = 0.0, shorter = 0.0;
    for (int64_t b = B - 1; b > bin; --b) longer += double(mass_of[b]);
    for (int64_t b = 0; b < bin; ++b) shorter += double(mass_of[b]);
    const double mass = double(mass_of[bin]) > 1e-30 ? double(mass_of[bin]) : 1e-30;
    if (bin == B - 1) return __builtin_log(mass) - (gap - s.edges[bin]) / s.edges[bin];
    const double left = (s.edges[bin + 1] - gap) / (s.edges[bin + 1] - s.edges[bin]);
    shorter += mass * (1.0 - left);
    if (shorter < 0.5) return __builtin_log1p(-shorter);  // exact to the last digits of a small compensator
    const double total = longer + mass * left;
    return __builtin_log(total > 1e-30 ? total : 1e-30);
  }

  template <class M>
  double log_density(const M* mass_of, double gap) const {
    const int64_t bin = bin_of(gap);
    const double mass = double(mass_of[bin]) > 1e-30 ? double(mass_of[bin]) : 1e-30;
    if (bin == B - 1) return __builtin_log(mass / s.edges[bin]) - (gap - s.edges[bin]) / s.edges[bin];
    return __builtin_log(mass / (s.edges[bin + 1] - s.edges[bin]));
  }

  template <class M>
  void predict_gap(const M* mass_of, AttentionOutput& out) const {
    constexpr double kAt[kQuantiles] = {0.05, 0.25, 0.5, 0.75, 0.95};
    double below = 0.0;
    int64_t q = 0;
    out.predicted_gap = 0.0;
    for (int64_t b = 0; b < B; ++b) {
      const double mass = double(mass_of[b]), last = b == B - 1;
      out.predicted_gap += mass * (last ? 2.0 * s.edges[b] : 0.5 * (s.edges[b] + s.edges[b + 1]));
      while (q < kQuantiles && (below + mass >= kAt[q] || last)) {
        const double share = (kAt[q] - below) / (mass > 1e-30 ? mass : 1e-30);
        out.quantiles[q++] = last ? s.edges[b] * (1.0 - __builtin_log1p(-(share < 0.999 ? share : 0.999)))
                                  : s.edges[b] + share * (s.edges[b + 1] - s.edges[b]);
      }
      below += mass;
    }
  }

  void score_bins(AttentionOutput& out) {
    ask(0, 0.0);
    gap_logits(query_row(0));
    softmax_over(input.gap_floor, logits.data, masses.data, B);
    const double survival = log_survival(masses.data, input.gap);
    out.silence = survival - log_survival(masses.data, input.charged);
    out.compensator = -survival;
    if (input.type < 0) return;
    // A forecast is what was said right after the last event. What the present parameters say in hindsight is not: they
    // have just been trained on events that all came now.
    out.at_arrival = log_density(masses.data, input.gap);
    out.time_log_density = log_density(input.issued, input.gap);
    out.compensator = -log_survival(input.issued, input.gap);
    predict_gap(input.issued, out);
    ask(1, input.gap);
    type_logits(query_row(1));
    softmax_over(input.type_floor, logits.data, shares.data, input.classes);
  }

  // Add factor times the gradient of log_survival(gap) with respect to the logits of the bins.
  void survival_gradient(T* g, double gap, double factor) const {
    const int64_t bin = bin_of(gap);
    const double survival = __builtin_exp(log_survival(masses.data, gap));
    double into = 1.0;
    if (bin < B - 1) into = (s.edges[bin + 1] - gap) / (s.edges[bin + 1] - s.edges[bin]);
    else if (gap > s.edges[bin]) into = __builtin_exp(-(gap - s.edges[bin]) / s.edges[bin]);
    for (int64_t b = 0; b < B; ++b) {
      const double beyond = b < bin ? 0.0 : (b == bin ? into : 1.0);
      g[b] += T(factor * double(masses[b]) * (beyond / (survival > 1e-30 ? survival : 1e-30) - 1.0));
    }
  }

  void train_bins() {
    T* g_logits = logits;
    if (input.type >= 0) {
      for (int64_t b = 0; b < B; ++b) g_logits[b] = masses[b];
      g_logits[bin_of(input.gap)] -= T(1);
      if (input.charged > 0.0) survival_gradient(g_logits, input.charged, 1.0);
    } else {
      for (int64_t b = 0; b < B; ++b) g_logits[b] = T(0);
      survival_gradient(g_logits, input.gap, -1.0);
      if (input.charged > 0.0) survival_gradient(g_logits, input.charged, 1.0);
    }
    for (int64_t u = 0; u < U; ++u) g_hidden[u] = T(0);
    gap_logits_back(query_row(0), g_logits);
    hide_back(query_row(0), g_hidden);
    ask_back(0, g_state);
    if (input.type < 0) return;
    for (int64_t k = 0; k < K; ++k) g_logits[k] = k < input.classes ? T(shares[k]) : T(0);
    g_logits[input.type] -= T(1);
    add_scaled(type_bias.gradient, T(1), g_logits, K);
    for (int64_t u = 0; u < U; ++u) g_hidden[u] = T(0);
    multiply_back(g_hidden.data, row_hidden(query_row(1)) + U, U, type_out.at, type_out.gradient, g_logits, K);
    hide_back(query_row(1), g_hidden);
    ask_back(1, g_state);
  }

  // --- decoder: an intensity of every type at any moment, integrated by quadrature ---------------------------------

  void intensities(T* row) {
    T* a = activations;
    for (int64_t k = 0; k < K; ++k) a[k] = head_bias.at[k];
    multiply(a, row_state(row), H * D, head.at, K);
    for (int64_t k = 0; k < K; ++k) {
      const T beta = exp_of(sharpness.at[k]), scaled = beta * a[k];
      const T soft = scaled > T(20) ? scaled : T(__builtin_log1p(double(exp_of(scaled))));
      rates[k] = soft / beta / T(s.unit);
    }
  }

  // g: gradient of the intensities [classes] at a moment.
  void intensities_back(int64_t r, const T* g) {
    T* row = query_row(r);
    T* a = activations;
    for (int64_t k = 0; k < K; ++k) a[k] = head_bias.at[k];
    multiply(a, row_state(row), H * D, head.at, K);
    for (int64_t k = 0; k < K; ++k) {
      if (k >= input.classes) {
        a[k] = T(0);
        continue;
      }
      const T beta = exp_of(sharpness.at[k]), scaled = beta * a[k], on = sigmoid(scaled);
      const T soft = scaled > T(20) ? scaled : T(__builtin_log1p(double(exp_of(scaled))));
      sharpness.gradient[k] += g[k] * (on * a[k] - soft / beta) / T(s.unit);
      a[k] = g[k] * on / T(s.unit);
    }
    add_scaled(head_bias.gradient, T(1), a, K);
    for (int64_t i = 0; i < H * D; ++i) g_state[i] = T(0);
    multiply_back(g_state.data, row_state(row), H * D, head.at, head.gradient, a, K);
    ask_back(r, g_state);
  }

  // Cells [0, 10^-c] ... [0.1, 1] of a gap, with nodes in each.
  double cell_end(int64_t c) const { return c < 0 ? 0.0 : __builtin_pow(10.0, double(c + 1 - s.node_cells)); }

  double total_at(int64_t r, double gap) {
    ask(r, gap);
    intensities(query_row(r));
    T total = 0;
    for (int64_t k = 0; k < input.classes; ++k) total += rates[k];
    return double(total);
  }

  double integral(double from, double to) {  // of the intensity, by Gauss-Legendre in every cell of the gap's length
    double sum = 0.0;
    for (int64_t c = 0; c < s.node_cells; ++c) {
      const double low = from + cell_end(c - 1) * (to - from), width = (cell_end(c) - cell_end(c - 1)) * (to - from);
      for (int64_t n = 0; n < s.node_count; ++n)
        sum += s.node_weight[n] * width * total_at(most_rows, low + s.node_at[n] * width);
    }
    return sum;
  }

  void score_intensity(AttentionOutput& out) {
    out.silence = -integral(input.charged, input.gap);
    if (input.type < 0) {
      out.compensator = -out.silence;
      return;
    }
    out.compensator = input.charged > 0.0 ? integral(0.0, input.gap) : -out.silence;
    // The distribution of the gap, from the intensity in the middle of every bin.
    double survival = 1.0;
    for (int64_t b = 0; b < B; ++b) {
      masses[b] = T(0);
      if (b == B - 1 || survival < 1e-6) {
        masses[b] = T(survival);
        survival = 0.0;
        continue;
      }
      const double rise = (s.edges[b + 1] - s.edges[b]) * total_at(most_rows, 0.5 * (s.edges[b] + s.edges[b + 1]));
      masses[b] = T(-survival * __builtin_expm1(-rise));
      survival -= double(masses[b]);
    }
    predict_gap(masses.data, out);
    ask(0, input.gap);
    intensities(query_row(0));
    T total = 0;
    for (int64_t k = 0; k < input.classes; ++k) total += rates[k];
    s.progress[kFloored] += double(double(total) * s.unit < kFloor);
    const double rate = double(total) * s.unit < kFloor ? kFloor / s.unit : double(total);
    out.time_log_density = out.at_arrival = __builtin_log(rate) - out.compensator;
    for (int64_t k = 0; k < input.classes; ++k) shares[k] = rates[k] / total;
  }

  void train_intensity() {
    // One draw in every stratum of every cell: unbiased.
    T* g = logits;
    const uint64_t from = uint64_t(s.progress[kEvents] + s.progress[kCharged]) * 64;
    const double length = input.gap - input.charged;
    for (int64_t c = 0; c < s.node_cells; ++c)
      for (int64_t n = 0; n < s.node_count; ++n) {
        const int64_t i = c * s.node_count + n;
        const double width = (cell_end(c) - cell_end(c - 1)) * length;
        const double at = (double(n) + draw(s.seed, from + uint64_t(i))) / double(s.node_count);
        ask(1 + i, input.charged + cell_end(c - 1) * length + at * width);
        for (int64_t k = 0; k < K; ++k) g[k] = T(width / double(s.node_count));
        intensities_back(1 + i, g);
      }
    if (input.type < 0) return;
    intensities(query_row(0));
    const T least = T(kFloor / s.unit);
    for (int64_t k = 0; k < K; ++k) g[k] = T(0);
    g[input.type] = T(-1) / (rates[input.type] > least ? rates[input.type] : least);
    intensities_back(0, g);
  }

  // --- steps -----------------------------------------------------------------------------------------------------

  // Page and Hinkley's test of the standardised loss. An alarm raises the step size for a while.
  void watch(double loss) {
    if (s.drift_boost <= 1.0) return;
    double* p = s.progress;
    const double known = p[kDriftCount] > 1.0 ? p[kDriftCount] : 1.0;
    const double mean = p[kDriftSum] / known, variance = p[kDriftSquares] / known - mean * mean;
    double z = (loss - mean) / __builtin_sqrt(variance > 1e-12 ? variance : 1e-12);
    z = (z < -kDriftClip ? -kDriftClip : (z > kDriftClip ? kDriftClip : z)) - kDriftSlack;
    p[kDriftCount] += 1.0, p[kDriftSum] += loss, p[kDriftSquares] += loss * loss;
    if (p[kDriftCount] <= kDriftWarmUp) return;
    p[kDriftWalk] += z;
    if (p[kDriftWalk] < p[kDriftLow]) p[kDriftLow] = p[kDriftWalk];
    if (p[kDriftWalk] - p[kDriftLow] <= kDriftThreshold) return;
    p[kDriftAlarms] += 1.0;
    p[kBoostUntil] = p[kEvents] + kBoostEvents;
    p[kDriftCount] = p[kDriftSum] = p[kDriftSquares] = p[kDriftWalk] = p[kDriftLow] = 0.0;
  }

  void step() {
    double* p = s.progress;
    p[kUpdates] += 1.0, p[kPoolPending] += 1.0, p[kInGroup] = 0.0;
    const double boost = p[kEvents] < p[kBoostUntil] ? s.drift_boost : 1.0;
    fold_prompts();
    if (s.pool_only) {
      for (int64_t i = 0; i < base_size; ++i) static_cast<T*>(s.gradients)[i] = T(0);
    } else {
      p[kGradientNorm] = move(0, base_size, 1.0 / double(s.group), p[kUpdates], boost);
      p[kClipped] += double(p[kGradientNorm] > s.clip);
    }
    if (s.prompts > 0 && p[kPoolPending] >= double(s.refresh_every)) {
      const double steps = p[kUpdates] / double(s.refresh_every);
      move(base_size, size, 1.0 / double(s.group * s.refresh_every), steps, boost);
      p[kPoolPending] = 0.0;
    }
    refresh();
  }

  // Chain the gradients of projected prompts to their rows and to the projections, which are still those used.
  void fold_prompts() {
    const int64_t rows = s.prompts * s.rows;
    T* pending = static_cast<T*>(s.prompt_gradients);
    for (int64_t hl = 0; hl < H * Y; ++hl)
      for (int64_t kv = 0; kv < 2; ++kv)
        for (int64_t r = 0; r < rows; ++r) {
          T* g = pending + ((hl * 2 + kv) * rows + r) * D;
          const T* x = prompt_rows.at + (r * 2 + kv) * D;
          T* gx = prompt_rows.gradient + (r * 2 + kv) * D;
          add_scaled(projection_bias.gradient + hl * 3 * D + (1 + kv) * D, T(1), g, D);
          for (int64_t i = 0; i < D; ++i) {
            const int64_t at = (hl * I + i) * 3 * D + (1 + kv) * D;
            gx[i] += dot(projection.at + at, g, D);
            add_scaled(projection.gradient + at, x[i], g, D);
          }
          for (int64_t d = 0; d < D; ++d) g[d] = T(0);
        }
  }

  // AdamW on a part of the parameters, its gradient clipped by norm; returns the norm.
  double move(int64_t from, int64_t to, double scale, double steps, double boost) {
    T* weights = static_cast<T*>(s.weights);
    T *g = static_cast<T*>(s.gradients), *m = static_cast<T*>(s.first), *v = static_cast<T*>(s.second);
    double square = 0.0;
#pragma omp simd reduction(+ : square)
    for (int64_t i = from; i < to; ++i) square += double(g[i]) * double(g[i]);
    const double norm = __builtin_sqrt(square) * scale;
    const T factor = T(scale * (norm > s.clip ? s.clip / norm : 1.0));
    const double rate = s.learning_rate * boost;
    const T step_size = T(rate / (1.0 - __builtin_pow(kBeta1, steps)));
    const T correction = T(1.0 / __builtin_sqrt(1.0 - __builtin_pow(kBeta2, steps)));
    const T keep = T(1.0 - rate * s.weight_decay), epsilon = T(kEpsilon);
    const T one = T(kBeta1), two = T(kBeta2);
#pragma omp simd
    for (int64_t i = from; i < to; ++i) {
      const T x = g[i] * factor;
      m[i] = one * m[i] + (T(1) - one) * x;
      v[i] = two * v[i] + (T(1) - two) * x * x;
      weights[i] = keep * weights[i] - step_size * m[i] / (root(v[i]) * correction + epsilon);
      g[i] = T(0);
    }
    return norm;
  }

  static inline float root(float x) { return __builtin_sqrtf(x); }
  static inline double root(double x) { return __builtin_sqrt(x); }

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
