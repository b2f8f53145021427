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

class Samples {
 public:
  explicit Samples(const LearnerSpec& spec)
      : size(spec.observation_size),
        features_(spec.observation_size - spec.passthrough),
        mean_(spec.mean),
        squared_deviation_(spec.squared_deviation),
        discount_(spec.discount) {
    raw_.allocate(size * 8);
    deviation_.allocate(features_);
  }

  static bool finite(const void* x, InputKind kind, int64_t n) {
    if (kind == InputKind::float32) return all_finite(static_cast<const float*>(x), n);
    if (kind == InputKind::float64) return all_finite(static_cast<const double*>(x), n);
    return true;
  }

  void count(const void* x, InputKind kind, LearnerState& state) {
    state.observation_count += 1;
    fresh_deviation_ = false;
    newest_valid_ = false;
    if (kind == InputKind::float32) welford(static_cast<const float*>(x), double(state.observation_count));
    if (kind == InputKind::float64) welford(static_cast<const double*>(x), double(state.observation_count));
    if (kind == InputKind::uint8) welford(static_cast<const uint8_t*>(x), double(state.observation_count));
  }

  template <class T>
  void normalize(const void* x, InputKind kind, T* out, const LearnerState& state) {
    refresh_deviation(state);
    if (kind == InputKind::float32) scale(static_cast<const float*>(x), out);
    if (kind == InputKind::float64) scale(static_cast<const double*>(x), out);
    if (kind == InputKind::uint8) scale(static_cast<const uint8_t*>(x), out);
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
  void forget() { newest_valid_ = fresh_deviation_ = false; }

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
  template <class S>
  void welford(const S* __restrict x, double count) {
    double *__restrict mean = mean_, *__restrict squares = squared_deviation_;
#pragma omp simd
    for (int64_t i = 0; i < features_; ++i) {
      const double value = double(x[i]), deviation = value - mean[i];
      mean[i] += deviation / count;
      squares[i] += deviation * (value - mean[i]);
    }
  }

  void refresh_deviation(const LearnerState& state) {
    if (fresh_deviation_) return;
    fresh_deviation_ = true;
    const double *__restrict squares = squared_deviation_;
    double* __restrict deviation = deviation_.data;
    if (state.observation_count < 2) {
      for (int64_t i = 0; i < features_; ++i) deviation[i] = __builtin_sqrt(1.0 + kStatisticsEpsilon);
      return;
    }
    const double count = double(state.observation_count - 1);
#pragma omp simd
    for (int64_t i = 0; i < features_; ++i) deviation[i] = __builtin_sqrt(squares[i] / count + kStatisticsEpsilon);
  }

  template <class S, class T>
  void scale(const S* __restrict x, T* __restrict out) const {
    const double *__restrict mean = mean_, *__restrict deviation = deviation_.data;
#pragma omp simd
    for (int64_t i = 0; i < features_; ++i) out[i] = T((double(x[i]) - mean[i]) / deviation[i]);
    for (int64_t i = features_; i < size; ++i) out[i] = T(x[i]);
  }

  const int64_t features_;
  double *mean_, *squared_deviation_;
  const double discount_;
  Array<double> deviation_;
  bool fresh_deviation_ = false;
  Array<unsigned char> raw_;
  InputKind raw_kind_ = InputKind::float32;
  bool newest_valid_ = false;
};
