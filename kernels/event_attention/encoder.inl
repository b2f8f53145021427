// Attention, and the events of a key: what it does forth and back, and the cache of keys and values.
// Members of LiveAttention.

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
