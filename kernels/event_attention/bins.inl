// The decoder that says a distribution over bins of gaps, and one over types, beside those of the floors.
// Members of LiveAttention.

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
