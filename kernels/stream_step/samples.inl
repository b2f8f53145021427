// What a learner sees: observations and rewards in units of their running statistics, as agents/statistics.py.

constexpr double kStatisticsEpsilon = 1e-8;

template <class S>
static bool all_finite(const S* x, int64_t n) {
  // x - x is 0 for finite x, NaN otherwise; a sum of zeros is 0.
  S sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += x[i] - x[i];
  return sum == 0;
}

// out = x / sqrt(square).
static void divide_by_roots(const float* __restrict x, const float* __restrict square, float* __restrict out,
                            int64_t n) {
  int64_t i = 0;
#if defined(STREAMWISE_LANES)
  for (; i + Lanes::kWidth <= n; i += Lanes::kWidth)
    Lanes::store(out + i, Lanes::multiply(Lanes::load(x + i), inverse_root(Lanes::load(square + i))));
#endif
  for (; i < n; ++i) out[i] = x[i] / root(square[i]);
}

class Samples {
 public:
  explicit Samples(const LearnerSpec& spec)
      : size(spec.observation_size),
        features_(spec.observation_size - spec.passthrough),
        mean_(spec.mean),
        squared_deviation_(spec.squared_deviation),
        discount_(spec.discount) {
    raw_.allocate(size * 8);
  }

  static bool finite(const void* x, InputKind kind, int64_t n) {
    if (kind == InputKind::float32) return all_finite(static_cast<const float*>(x), n);
    if (kind == InputKind::float64) return all_finite(static_cast<const double*>(x), n);
    return true;
  }

  // Take x into account, then normalize it, in one pass: for pictures the statistics come from slow memory.
  template <class T>
  void count_and_normalize(const void* x, InputKind kind, T* out, LearnerState& state) {
    state.observation_count += 1;
    newest_valid_ = false;
    if (kind == InputKind::float32) learn(static_cast<const float*>(x), out, state.observation_count);
    if (kind == InputKind::float64) learn(static_cast<const double*>(x), out, state.observation_count);
    if (kind == InputKind::uint8) learn(static_cast<const uint8_t*>(x), out, state.observation_count);
  }

  template <class T>
  void normalize(const void* x, InputKind kind, T* out, const LearnerState& state) const {
    if (kind == InputKind::float32) scale(static_cast<const float*>(x), out, state.observation_count);
    if (kind == InputKind::float64) scale(static_cast<const double*>(x), out, state.observation_count);
    if (kind == InputKind::uint8) scale(static_cast<const uint8_t*>(x), out, state.observation_count);
  }

  // The newest observation was normalized when it arrived as the next one of its transition; while no other has
  // entered the statistics, that is what it still is.
  void remember(const void* x, InputKind kind) {
    __builtin_memcpy(raw_.data, x, size_t(size * bytes_of(kind)));
    raw_kind_ = kind;
    newest_valid_ = true;
  }
  bool is_newest(const void* x, InputKind kind) const {
    return newest_valid_ && kind == raw_kind_ && __builtin_memcmp(raw_.data, x, size_t(size * bytes_of(kind))) == 0;
  }
  void forget() { newest_valid_ = false; }

  double scale_reward(double reward, bool ended, LearnerState& state) const {
    state.discounted_return = (ended ? 0.0 : discount_ * state.discounted_return) + reward;
    state.reward_count += 1;
    const double deviation = state.discounted_return - state.reward_mean;
    state.reward_mean += deviation / double(state.reward_count);
    state.reward_squared_deviation += deviation * (state.discounted_return - state.reward_mean);
    return reward / reward_deviation(state);
  }
  static double reward_deviation(const LearnerState& state) {
    const double variance =
        state.reward_count < 2 ? 1.0 : state.reward_squared_deviation / double(state.reward_count - 1);
    return __builtin_sqrt(variance + kStatisticsEpsilon);
  }

  const int64_t size;

 private:
  // What a squared deviation is divided by and what is added then: until two are counted the variance is 1.
  struct Variance {
    double count, base;
    explicit Variance(int64_t observations)
        : count(observations < 2 ? __builtin_inf() : double(observations - 1)),
          base(observations < 2 ? 1.0 + kStatisticsEpsilon : kStatisticsEpsilon) {}
  };

  template <class S, class T>
  void learn(const S* __restrict x, T* __restrict out, int64_t observations) {
    double *__restrict mean = mean_, *__restrict squares = squared_deviation_;
    const double count = double(observations);
    const Variance variance(observations);
#pragma omp simd
    for (int64_t i = 0; i < features_; ++i) {
      const double value = double(x[i]), before = value - mean[i], now = mean[i] + before / count;
      const double square = squares[i] + before * (value - now);
      mean[i] = now;
      squares[i] = square;
      out[i] = T((value - now) / __builtin_sqrt(square / variance.count + variance.base));
    }
    pass_through(x, out);
  }

  // Of pixels, which are many and lie between 0 and 255, so that their variance fits float32: its root is taken there,
  // and nothing is divided. `scale` below gives the same bits, as a resumed run needs.
  void learn(const uint8_t* __restrict x, float* __restrict out, int64_t observations) {
    double *__restrict mean = mean_, *__restrict squares = squared_deviation_;
    const double share = 1.0 / double(observations);
    each_block(x, out, observations, [=](int64_t i, float pixel) {
      const double value = double(pixel), before = value - mean[i], now = mean[i] + before * share;
      squares[i] += before * (value - now);
      mean[i] = now;
    });
  }

  void scale(const uint8_t* __restrict x, float* __restrict out, int64_t observations) const {
    each_block(x, out, observations, [](int64_t, float) {});
  }

  // Call visit(number, pixel) for some hundred pixels, then normalize them, and so on.
  template <class Visit>
  void each_block(const uint8_t* __restrict x, float* __restrict out, int64_t observations, Visit visit) const {
    const double *__restrict mean = mean_, *__restrict squares = squared_deviation_;
    const Variance variance(observations);
    const double variance_share = 1.0 / variance.count;
    for (int64_t first = 0; first < features_; first += kPixels) {
      const int64_t n = features_ - first < kPixels ? features_ - first : kPixels;
      float values[kPixels], deviations[kPixels], variances[kPixels];
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) values[i] = float(x[first + i]);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) visit(first + i, values[i]);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        deviations[i] = float(double(values[i]) - mean[first + i]);
        variances[i] = float(squares[first + i] * variance_share + variance.base);
      }
      divide_by_roots(deviations, variances, out + first, n);
    }
    pass_through(x, out);
  }

  template <class S, class T>
  void scale(const S* __restrict x, T* __restrict out, int64_t observations) const {
    const double *__restrict mean = mean_, *__restrict squares = squared_deviation_;
    const Variance variance(observations);
#pragma omp simd
    for (int64_t i = 0; i < features_; ++i)
      out[i] = T((double(x[i]) - mean[i]) / __builtin_sqrt(squares[i] / variance.count + variance.base));
    pass_through(x, out);
  }

  template <class S, class T>
  void pass_through(const S* x, T* out) const {
    for (int64_t i = features_; i < size; ++i) out[i] = T(x[i]);
  }

  static constexpr int64_t kPixels = 256;

  const int64_t features_;
  double *mean_, *squared_deviation_;
  const double discount_;
  Array<unsigned char> raw_;
  InputKind raw_kind_ = InputKind::float32;
  bool newest_valid_ = false;
};
