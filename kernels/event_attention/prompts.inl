// How times are told to the model, and the prompts that a key finds: the pool of the published model.
// Members of LiveAttention.

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
