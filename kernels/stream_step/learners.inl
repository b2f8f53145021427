// The four learners on top of the networks.

// --- random draws: agents/generator.py, bit for bit ----------------------------------------------------------

static double uniform(LearnerState& state) {
  state.counter += 1;
  return double(mix(state.key + state.counter * 0x9E3779B97F4A7C15ull) >> 11) * 0x1.0p-53;
}

static int64_t integer(LearnerState& state, int64_t below) {
  const int64_t drawn = int64_t(uniform(state) * double(below));
  return drawn < below ? drawn : below - 1;
}

static void normal(LearnerState& state, double* draws, int64_t count) {
  for (int64_t i = 0; i < count; i += 2) {
    const double radius = __builtin_sqrt(-2.0 * __builtin_log(1.0 - uniform(state)));
    const double angle = 2.0 * 3.141592653589793 * uniform(state);
    draws[i] = radius * __builtin_cos(angle);
    if (i + 1 < count) draws[i + 1] = radius * __builtin_sin(angle);
  }
}

// --- learners ------------------------------------------------------------------------------------------------

template <class T>
class NativeLearner : public Learner {
 public:
  explicit NativeLearner(const LearnerSpec& given)
      : spec(given),
        samples(given),
        memory(given.memory),
        books(given.books),
        value(given.value, memory, books, scratch),
        decay(given.discount * given.trace_decay) {
    now.allocate(samples.size);
    next.allocate(samples.size);
    looked_at.allocate(samples.size);
    value.prepare(value_now);
    value.prepare(value_next);
    value_delta.allocate(value.outputs());
  }

  void forget() override {
    samples.forget();
    books.keys_changed();
    value.weights_changed();
    value_now.valid = value_next.valid = false;
  }

  bool remember(const void* observation, InputKind kind) override {
    FlushDenormals flush;
    const T* x = observe(observation, kind, value_now);
    if (!x) return false;
    forget_reads();  // some may be of another observation that lay in the same place
    append(x);
    forget_reads();
    return true;
  }

  void end_episode() override {
    value.clear_trace();
    value.clear_state();
    if (memory.present()) memory.clear();
    state.episode_starts = true;
    state.next_action = -1;
    forget_reads();
  }

  bool predict(const void* observation, InputKind kind, double& predicted) override {
    FlushDenormals flush;
    const T* x = observe(observation, kind, value_next);
    if (!x) return false;
    predicted = double(value.forward(x, value_next)[0]);
    return true;
  }

 protected:
  // An observation to pass forward into `activations`, normalized; null if it is not finite. Changes no state.
  const T* observe(const void* observation, InputKind kind, Activations<T>& activations) {
    if (!Samples::finite(observation, kind, samples.size)) return nullptr;
    if (samples.is_newest(observation, kind)) return next.data;
    activations.valid = false;  // may be those of what was looked at before
    samples.normalize(observation, kind, looked_at.data, state);
    return looked_at.data;
  }

  // Take a transition into account: `now`, `next` and the scaled reward. False, changing nothing, if not finite.
  bool learn_from(const void* observation, InputKind kind, double raw_reward, const void* next_observation,
                  InputKind next_kind, bool terminated, bool truncated, double& reward) {
    if (!Samples::finite(observation, kind, samples.size) ||
        !Samples::finite(next_observation, next_kind, samples.size) || !all_finite(&raw_reward, 1))
      return false;
    state.steps += 1;
    if (!state.episode_starts && samples.is_newest(observation, kind)) {
      T* other = now.data;  // what was next is now
      now.data = next.data;
      next.data = other;
    } else if (state.episode_starts) {
      samples.count_and_normalize(observation, kind, now.data, state);
    } else {
      samples.normalize(observation, kind, now.data, state);
    }
    value_next.valid = false;  // it may be of `next` as it was
    samples.count_and_normalize(next_observation, next_kind, next.data, state);
    samples.remember(next_observation, next_kind);
    reward = samples.scale_reward(raw_reward, !bootstraps(terminated, truncated), state);
    state.episode_starts = terminated || truncated;
    return true;
  }

  double epsilon() const {
    const double left = spec.exploration_steps > 0 ? 1.0 - double(state.steps) / spec.exploration_steps : 0.0;
    return spec.epsilon_end + (spec.epsilon_start - spec.epsilon_end) * (left > 0.0 ? left : 0.0);
  }

  bool bootstraps(bool terminated, bool truncated) const {
    return !(terminated || (truncated && !spec.bootstrap_on_truncation));
  }

  int64_t greedy(const T* values) const {
    int64_t best = 0;
    for (int64_t i = 1; i < spec.actions; ++i)
      if (values[i] > values[best]) best = i;
    return best;
  }

  // Forward passes of `now`, and of `next` if what is there counts: it may look back at `now`.
  void forward_both(bool both) {
    if (both && !remembers()) return value.forward_pair(now.data, value_now, next.data, value_next);
    value.forward(now.data, value_now);
    append(now.data);
    if (both) value.forward(next.data, value_next);
  }

  // The critic's values now and next; 0 for what comes after an ending.
  void values(bool terminated, bool truncated, double& value_of, double& next_value) {
    const bool both = bootstraps(terminated, truncated);
    forward_both(both);
    value_of = double(value.forward(now.data, value_now)[0]);
    next_value = both ? double(value.forward(next.data, value_next)[0]) : 0.0;
  }

  bool remembers() const { return memory.present() || books.present() || value.is_recurrent(); }

  // Remember x. What was computed of it stays what it was then.
  virtual void append(const T* x) {
    if (memory.present()) memory.append(x, samples.size);
    if (books.present()) books.append(x);
    value.move_on(x, value_now);
  }

  // The memory is another than when these were computed.
  virtual void forget_reads() { value_now.valid = value_next.valid = false; }

  // One step of the value network towards td_error, along the trace of output `index`.
  double update_value(int64_t index, double td_error) {
    zero(value_delta.data, value_delta.size);
    value_delta[index] = T(1);
    value.backward(value_delta.data, value_now);
    const double step = value.update(value_now, td_error, decay, state.value);
    value_now.valid = value_next.valid = false;
    return step;
  }

  LearnerSpec spec;
  Samples samples;
  Scratch<T> scratch;
  Memory<T> memory;
  Books<T> books;
  Network<T> value;
  const double decay;
  Array<T> now, next, looked_at, value_delta;
  Activations<T> value_now, value_next;
};

template <class T>
class NativeAC final : public NativeLearner<T> {
 public:
  using Base = NativeLearner<T>;
  using Base::spec, Base::state, Base::decay, Base::value;

  explicit NativeAC(const LearnerSpec& given)
      : Base(given), policy(given.policy, this->memory, this->books, this->scratch) {
    policy.prepare(policy_now);
    policy_delta.allocate(policy.outputs());
    per_action.allocate(spec.actions);
  }

  void forget() override {
    Base::forget();
    policy.weights_changed();
    policy_now.valid = false;
  }

  bool act(const void* observation, InputKind kind, bool explore, double* action) override {
    FlushDenormals flush;
    const T* x = this->observe(observation, kind, policy_now);
    if (!x) return false;
    const T* outputs = policy.forward(x, policy_now);
    const int64_t n = spec.actions;
    if (spec.policy_kind == PolicyKind::gaussian) {
      if (explore) normal(state, per_action.data, n);
      for (int64_t i = 0; i < n; ++i)
        action[i] = double(outputs[i]) + (explore ? deviation_of(double(outputs[n + i])) * per_action[i] : 0.0);
    } else {
      action[0] = double(explore ? draw(outputs) : this->greedy(outputs));
    }
    return true;
  }

  bool learn_one(const void* observation, InputKind kind, const double* action, double raw_reward,
                 const void* next_observation, InputKind next_kind, bool terminated, bool truncated,
                 StepMetrics& metrics) override {
    FlushDenormals flush;
    if (spec.policy_kind == PolicyKind::gaussian && !all_finite(action, spec.actions)) return false;
    double reward;
    if (!this->learn_from(observation, kind, raw_reward, next_observation, next_kind, terminated, truncated, reward))
      return false;

    const T* outputs = policy.forward(this->now.data, policy_now);  // before `now` is remembered
    double value_of, next_value;
    this->values(terminated, truncated, value_of, next_value);
    const double td_error = reward + spec.discount * next_value - value_of;

    const double bonus = spec.entropy_coefficient * (td_error > 0.0 ? 1.0 : td_error < 0.0 ? -1.0 : 0.0);
    const double entropy =
        spec.policy_kind == PolicyKind::gaussian ? gaussian(outputs, action, bonus) : categorical(outputs, action, bonus);

    metrics.step_size = this->update_value(0, td_error);
    policy.backward(policy_delta.data, policy_now);
    metrics.policy_step_size = policy.update(policy_now, td_error, decay, state.policy);
    policy_now.valid = false;
    if (terminated || truncated) {
      end_episode();
    }
    metrics.value = value_of;
    metrics.td_error_magnitude = __builtin_fabs(td_error);
    metrics.entropy = entropy;
    return true;
  }

 private:
  static double deviation_of(double pre) {
    constexpr double kSmallest = 1e-3;  // agents/policies.py, SMALLEST_DEVIATION
    return kSmallest + (pre > 20.0 ? pre : __builtin_log1p(__builtin_exp(pre)));
  }

  // exp(outputs - highest), the softmax before it is normalized, into per_action; returns their sum.
  double exponentials(const T* outputs, double& highest) {
    double total = 0.0;
    highest = double(outputs[this->greedy(outputs)]);
    for (int64_t i = 0; i < spec.actions; ++i)
      total += per_action[i] = __builtin_exp(double(outputs[i]) - highest);
    return total;
  }

  int64_t draw(const T* outputs) {
    const int64_t n = spec.actions;
    double highest;
    const double target = uniform(state) * exponentials(outputs, highest);
    double cumulative = 0.0;
    for (int64_t i = 0; i < n; ++i)
      if ((cumulative += per_action[i]) > target) return i;
    return n - 1;
  }

  // d (log pi(action) + bonus * entropy) / d outputs into policy_delta; returns the entropy. So does `categorical`.
  double gaussian(const T* outputs, const double* action, double bonus) {
    const int64_t n = spec.actions;
    double entropy = double(n) * (0.5 + 0.9189385332046727);
    for (int64_t i = 0; i < n; ++i) {
      const double pre = double(outputs[n + i]);
      const double deviation = deviation_of(pre), slope = pre > 20.0 ? 1.0 : 1.0 / (1.0 + __builtin_exp(-pre));
      const double distance = (double(T(action[i])) - double(outputs[i])) / deviation;
      policy_delta[i] = T(distance / deviation);
      policy_delta[n + i] = T((distance * distance - 1.0 + bonus) / deviation * slope);
      entropy += __builtin_log(deviation);
    }
    return entropy;
  }

  double categorical(const T* outputs, const double* action, double bonus) {
    const int64_t n = spec.actions, taken = int64_t(action[0]);
    double highest, entropy = 0.0;
    const double total = exponentials(outputs, highest), log_total = __builtin_log(total);
    for (int64_t i = 0; i < n; ++i) {
      per_action[i] /= total;
      entropy -= per_action[i] * (double(outputs[i]) - highest - log_total);
    }
    for (int64_t i = 0; i < n; ++i) {
      const double probability = per_action[i], log_probability = double(outputs[i]) - highest - log_total;
      policy_delta[i] = T((i == taken ? 1.0 : 0.0) - probability - bonus * probability * (log_probability + entropy));
    }
    return entropy;
  }

  void forget_reads() override {
    Base::forget_reads();
    policy_now.valid = false;
  }

  void append(const T* x) override {
    Base::append(x);
    policy.move_on(x, policy_now);
  }

  void end_episode() override {
    policy.clear_trace();
    policy.clear_state();
    Base::end_episode();
  }

  Network<T> policy;
  Activations<T> policy_now;
  Array<T> policy_delta;
  Array<double> per_action;  // normal draws, or exponentials and then probabilities
};

template <class T>
class NativeQ final : public NativeLearner<T> {  // and SARSA
 public:
  using Base = NativeLearner<T>;
  using Base::spec, Base::state, Base::value;
  using Base::Base;

  bool act(const void* observation, InputKind kind, bool explore, double* action) override {
    FlushDenormals flush;
    if (is_sarsa() && explore && state.next_action >= 0) {
      action[0] = double(state.next_action);
      state.next_action = -1;
      return true;
    }
    const T* x = this->observe(observation, kind, this->value_now);
    if (!x) return false;
    if (explore && uniform(state) < this->epsilon())
      action[0] = double(integer(state, spec.actions));
    else
      action[0] = double(this->greedy(value.forward(x, this->value_now)));
    return true;
  }

  bool learn_one(const void* observation, InputKind kind, const double* action, double raw_reward,
                 const void* next_observation, InputKind next_kind, bool terminated, bool truncated,
                 StepMetrics& metrics) override {
    FlushDenormals flush;
    const int64_t taken = int64_t(action[0]);
    metrics.epsilon = this->epsilon();
    double reward;
    if (!this->learn_from(observation, kind, raw_reward, next_observation, next_kind, terminated, truncated, reward))
      return false;
    const bool ended = terminated || truncated;

    const bool bootstraps = this->bootstraps(terminated, truncated);
    this->forward_both(bootstraps);
    const T* values = value.forward(this->now.data, this->value_now);
    const double value_of = double(values[taken]);
    const bool greedy_taken = taken == this->greedy(values);
    double next_value = 0.0;
    state.next_action = -1;
    if (bootstraps) {
      const T* next_values = value.forward(this->next.data, this->value_next);
      int64_t following = this->greedy(next_values);
      if (is_sarsa()) {
        if (uniform(state) < this->epsilon()) following = integer(state, spec.actions);
        if (!ended) state.next_action = following;
      }
      next_value = double(next_values[following]);
    }
    const double td_error = reward + spec.discount * next_value - value_of;

    metrics.step_size = this->update_value(taken, td_error);
    if (ended) this->end_episode();
    else if (!is_sarsa() && !greedy_taken) value.clear_trace();
    metrics.value = value_of;
    metrics.td_error_magnitude = __builtin_fabs(td_error);
    return true;
  }

 private:
  bool is_sarsa() const { return spec.kind == LearnerKind::stream_sarsa; }
};

template <class T>
class NativeTD final : public NativeLearner<T> {
 public:
  using Base = NativeLearner<T>;
  using Base::spec, Base::state, Base::value;
  using Base::Base;

  bool act(const void*, InputKind, bool, double*) override { return false; }

  bool learn_one(const void* observation, InputKind kind, const double*, double raw_reward,
                 const void* next_observation, InputKind next_kind, bool terminated, bool truncated,
                 StepMetrics& metrics) override {
    FlushDenormals flush;
    const double deviation = Samples::reward_deviation(state);
    double reward;
    if (!this->learn_from(observation, kind, raw_reward, next_observation, next_kind, terminated, truncated, reward))
      return false;
    double value_of, next_value;
    this->values(terminated, truncated, value_of, next_value);
    const double td_error = reward + spec.discount * next_value - value_of;
    metrics.step_size = this->update_value(0, td_error);
    if (terminated || truncated) this->end_episode();
    metrics.prediction = value_of * deviation;
    metrics.td_error_magnitude = __builtin_fabs(td_error);
    return true;
  }
};

template <class T>
static Learner* make_learner_of(const LearnerSpec& spec) {
  switch (spec.kind) {
    case LearnerKind::stream_ac:
      return new NativeAC<T>(spec);
    case LearnerKind::stream_td:
      return new NativeTD<T>(spec);
    default:
      return new NativeQ<T>(spec);
  }
}

Learner* make_learner(const LearnerSpec& spec, bool is_double) {
  return is_double ? make_learner_of<double>(spec) : make_learner_of<float>(spec);
}
