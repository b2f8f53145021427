// Steps of the parameters: AdamW in two groups, and a test for drift that lengthens them.
// Members of LiveAttention.

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
