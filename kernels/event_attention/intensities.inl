// The decoder that says an intensity of every type at any moment, integrated by quadrature.
// Members of LiveAttention.

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
