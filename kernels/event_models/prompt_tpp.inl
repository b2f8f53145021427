// The live attentive model: floors that count and excite, attention beside them, and what each key leaves behind.
//
// The definition, with the reasons, is agents/prompt_tpp.py; the names here are the names there.

struct PromptScores : Scores {  // what the model's EXTRAS name, in their order
  double error_at_prediction, top3_error, confidence, key_events, log_gap_square, width_50, width_90;
  double counts_log_likelihood, counts_time_log_likelihood, counts_type_log_loss, counts_type_error;
  double hawkes_log_likelihood, hawkes_time_log_likelihood, hawkes_type_log_loss, hawkes_type_error;
  double repeat_last_type_error, at_arrival_time_log_likelihood;
};

struct PromptTPP {
  // Followed by double times [window], gaps [window], query [inputs], int32 kinds [window], float issued [3, bins],
  // int16 history [history, history_length, 2], then the rows of Hawkes and of Counts.
  struct Key : KeyClock {
    int64_t serial;
    double mean_log_gap, charged, silence;
  };
  Vocabulary types;
  Hawkes hawkes;
  CountsModel counts;
  std::unique_ptr<Attention> attention;
  AttentionSpec spec{};
  int64_t inputs = 0, floor = 3;   // floor: 0 none, 1 counts, 2 hawkes, 3 both
  double* floor_weights = nullptr;                // [2, 2]: of counts and hawkes, for types and for gaps
  double* forecast_weights = nullptr;             // [3]: of network, counts and hawkes, in forecasts of gaps
  std::vector<float> forecast;
  double known = 0.0;  // types seen before the present event: both floors are to be asked before either learns
  std::vector<double> gap_floor, type_floor, later_floor, later_types, marginal, type_counts, hawkes_gaps, hawkes_types;

  int64_t hawkes_at() const {
    return int64_t(sizeof(Key)) + (2 * spec.window + inputs) * 8 + (spec.window + 3 * spec.bins) * 4 +
           2 * spec.history * spec.history_length * 2;
  }
  int64_t key_bytes() const { return (hawkes_at() + hawkes.key_bytes() + counts.key_bytes() + 7) / 8 * 8; }

  struct View {
    Key* clock;
    double *times, *gaps, *query;
    int32_t* kinds;
    float* issued;  // of the gap after the last event, by the model, by counts, by hawkes
    int16_t* history;
    std::byte *hawkes, *counts;
  };

  View view(std::byte* row) const {
    View v;
    v.clock = reinterpret_cast<Key*>(row);
    v.times = reinterpret_cast<double*>(row + sizeof(Key));
    v.gaps = v.times + spec.window;
    v.query = v.gaps + spec.window;
    v.kinds = reinterpret_cast<int32_t*>(v.query + inputs);
    v.issued = reinterpret_cast<float*>(v.kinds + spec.window);
    v.history = reinterpret_cast<int16_t*>(v.issued + 3 * spec.bins);
    v.hawkes = row + hawkes_at();
    v.counts = v.hawkes + hawkes.key_bytes();
    return v;
  }

  AttentionKey attention_key(const View& v) const {
    return {v.clock->events, v.clock->last_time, v.clock->serial, v.clock->mean_log_gap, v.times, v.gaps, v.kinds, v.query,
            v.history};
  }

  void open_scratch() {
    const size_t k = size_t(types.capacity), b = size_t(spec.bins);
    gap_floor.resize(b), hawkes_gaps.resize(b), forecast.resize(b);
    for (auto* each : {&type_floor, &later_floor, &later_types, &marginal, &type_counts, &hawkes_types}) each->resize(k);
  }

  // What the floors say of the gap, from the survival at the edges of the bins.
  void predict_gap_floor() {
    const size_t b = size_t(spec.bins);
    for (size_t i = 0; i + 1 < b; ++i) {
      const double now = i == 0 ? 1.0 : hawkes.survival_at[i], then = hawkes.survival_at[i + 1];
      hawkes_gaps[i] = now > then ? now - then : 0.0;
    }
    hawkes_gaps[b - 1] = hawkes.survival_at[b - 1];
    const double w = floor_weights[2], v = floor_weights[3];
    for (size_t i = 0; i < b; ++i) {
      gap_floor[i] = (floor & 1 ? w * counts.gap_mixed[i] : 0.0) + (floor & 2 ? v * hawkes_gaps[i] : 0.0);
      if (floor == 0) gap_floor[i] = counts.gap_prior[i];
      gap_floor[i] = std::max(gap_floor[i], LEAST);
    }
  }

  void predict_type_floor(const double* rates, double total, double* out) const {
    const double w = floor_weights[0], v = floor_weights[1];
    for (int64_t k = 0; k < types.classes(); ++k) {
      out[k] = (floor & 1 ? w * counts.type_mixed[size_t(k)] : 0.0) + (floor & 2 ? v * rates[k] / total : 0.0);
      if (floor == 0) out[k] = 1.0;
      out[k] = std::max(out[k], LEAST);
    }
  }

  PromptScores learn(std::byte* row, double time, int64_t type) {
    const View v = view(row);
    Key& key = *v.clock;
    const bool first = key.events == 0.0;
    const double gap = first ? 0.0 : time - key.last_time;
    if (first) key.serial = int64_t(spec.progress[kSerials] += 1.0);
    const int64_t classes = types.classes();
    known = *types.seen;
    PromptScores s;
    std::fill_n(reinterpret_cast<double*>(&s), sizeof(s) / sizeof(double), NAN);
    counts.predict(v.counts);
    const double total = hawkes.rates_after(v.hawkes, gap, hawkes_types.data());
    predict_type_floor(hawkes_types.data(), total, type_floor.data());
    if (!first) {
      hawkes.survive(v.hawkes);
      predict_gap_floor();
      read_counts(v);
      for (int64_t b = 0; b < spec.bins; ++b) {
        forecast[size_t(b)] = 0.0f;
        for (int64_t c = 0; c < 3; ++c) forecast[size_t(b)] += float(forecast_weights[c]) * v.issued[c * spec.bins + b];
      }
      const AttentionInput input{time, gap, key.charged, type, classes, gap_floor.data(), type_floor.data(),
                                 type_counts.data(), forecast.data()};
      AttentionOutput out{};
      attention->score(attention_key(v), input, out);
      s.gap = gap;
      s.at_arrival_time_log_likelihood = out.at_arrival;
      s.time_log_density = out.time_log_density;
      s.type_log_probability = out.type_log_probability;
      s.compensator = out.compensator;
      s.predicted_type = double(out.predicted_type);
      s.predicted_gap = out.predicted_gap;
      describe(s, v, out, type, classes);
      attention->train(out);
      spec.progress[kSilence] -= key.silence;
      mix_floors(v, type, gap);
    } else {
      double sum = 0.0;
      for (int64_t k = 0; k < classes; ++k) sum += type_floor[size_t(k)];
      s.type_log_probability = std::log(type_floor[size_t(type)] / sum);
      s.predicted_type = double(argmax(type_floor, classes));
    }
    const Scores by_counts = counts.update(v.counts, time, type);
    known = *types.seen;  // counts has just added the type
    const Scores by_hawkes = hawkes.learn(v.hawkes, time, type);
    if (first) s.predicted_gap = by_counts.predicted_gap;
    const double of_counts = first ? NAN : log_density(v.issued + spec.bins, gap);
    const double of_hawkes = first ? NAN : log_density(v.issued + 2 * spec.bins, gap);
    compare(by_counts, of_counts, type, s.counts_log_likelihood, s.counts_time_log_likelihood, s.counts_type_log_loss, s.counts_type_error);
    compare(by_hawkes, of_hawkes, type, s.hawkes_log_likelihood, s.hawkes_time_log_likelihood, s.hawkes_type_log_loss, s.hawkes_type_error);
    if (!first) s.repeat_last_type_error = double(type != key.last_type);
    for (std::byte* part : {v.counts, v.hawkes}) {
      KeyClock& clock = *reinterpret_cast<KeyClock*>(part);
      clock = {time, clock.events + 1.0, int32_t(type), clock.last_type};
    }

    attention->append(attention_key(v), time, gap, type);
    const int64_t at = int64_t(key.events) % spec.window, older = int64_t(key.events) - spec.window;
    if (spec.history > 0 && older >= 0) {  // the oldest event leaves the window
      int16_t* const event = v.history + older % (spec.history * spec.history_length) * 2;
      event[0] = int16_t(v.kinds[at]), event[1] = int16_t(counts.bin_of(v.gaps[at]));
    }
    v.times[at] = time, v.gaps[at] = gap, v.kinds[at] = int32_t(type);
    if (!first) {
      const double log_gap = std::log(gap + SHORTEST);
      key.mean_log_gap = key.events == 1.0 ? log_gap : 0.8 * key.mean_log_gap + 0.2 * log_gap;
    }
    key.charged = key.silence = 0.0;
    types.add(type);
    issue(v, key.events + 1.0, time);
    return s;
  }

  // Charge a key for having been silent until `now`.
  void charge(std::byte* row, double now, bool train) {
    const View v = view(row);
    Key& key = *v.clock;
    const double silent = now - key.last_time;
    if (key.events == 0.0 || silent <= key.charged) return;
    known = *types.seen;
    counts.predict(v.counts);
    hawkes.survive(v.hawkes);
    predict_gap_floor();
    read_counts(v);
    const AttentionInput input{now, silent, key.charged, -1, types.classes(), gap_floor.data(), type_floor.data(), type_counts.data(), nullptr};
    AttentionOutput out{};
    attention->score(attention_key(v), input, out);
    spec.progress[kCharged] += 1.0;
    spec.progress[kSilence] += out.silence;
    key.silence += out.silence;
    if (train) attention->train(out);
    key.charged = silent;
  }

  // What a prediction before the event would have said, and what became of it.
  void describe(PromptScores& s, const View& v, const AttentionOutput& out, int64_t type, int64_t classes) {
    std::fill_n(marginal.begin(), classes, 0.0);
    constexpr int64_t kFrom[] = {1, 2, 3};  // the quartiles stand for the gap that is not known yet
    for (int64_t q : kFrom) {
      const double total = hawkes.rates_after(v.hawkes, out.quantiles[q], later_floor.data());
      predict_type_floor(later_floor.data(), total, later_floor.data());
      attention->types_after(out.quantiles[q], later_floor.data(), later_types.data());
      for (int64_t k = 0; k < classes; ++k) marginal[size_t(k)] += later_types[size_t(k)] / 3.0;
    }
    s.error_at_prediction = double(argmax(marginal, classes) != type);
    s.top3_error = double(out.rank >= 3);
    s.confidence = out.confidence;
    s.key_events = v.clock->events;
    const double miss = std::log((out.quantiles[2] + SHORTEST) / (s.gap + SHORTEST));
    s.log_gap_square = miss * miss;
    s.width_50 = out.quantiles[3] - out.quantiles[1];
    s.width_90 = out.quantiles[4] - out.quantiles[0];
  }

  // Expectation-maximisation for the weights of the floors, an event at a time.
  void mix_floors(const View& v, int64_t type, double gap) {
    if (floor == 0) return;
    const double pace = 1.0 / (200.0 + std::min(spec.progress[kEvents], 3e2));
    const int64_t at = counts.bin_of(gap);
    double caused[3], sum = 0.0;
    for (int64_t c = 0; c < 3; ++c) sum += caused[c] = forecast_weights[c] * double(v.issued[c * spec.bins + at]);
    if (sum > 0.0)
      for (int64_t c = 0; c < 3; ++c) forecast_weights[c] += pace * (caused[c] / sum - forecast_weights[c]);
    if (floor != 3) return;
    double rate = 0.0;
    for (int64_t k = 0; k < types.classes(); ++k) rate += hawkes_types[size_t(k)];
    const size_t bin = size_t(counts.bin_of(gap));
    const double says[4] = {counts.type_mixed[size_t(type)], hawkes_types[size_t(type)] / rate, counts.gap_mixed[bin],
                            hawkes_gaps[bin]};
    for (int64_t i = 0; i < 4; i += 2) {
      const double one = floor_weights[i] * says[i], two = floor_weights[i + 1] * says[i + 1];
      if (one + two <= 0.0) continue;
      floor_weights[i] += pace * (one / (one + two) - floor_weights[i]);
      floor_weights[i + 1] = 1.0 - floor_weights[i];
    }
  }

  double log_density(const float* bins, double gap) const {
    const int64_t bin = counts.bin_of(gap), last = spec.bins - 1;
    const double start = spec.edges[bin], mass = std::max(double(bins[bin]), 1e-30);
    return bin == last ? std::log(mass / start) - (gap - start) / start : std::log(mass / (spec.edges[bin + 1] - start));
  }

  // Say what is expected of the gap that begins now, to be scored when it ends.
  void issue(const View& v, double events, double time) {
    known = *types.seen;
    counts.predict(v.counts);
    hawkes.survive(v.hawkes);
    predict_gap_floor();
    for (int64_t b = 0; b < spec.bins; ++b) {
      v.issued[spec.bins + b] = float(counts.gap_mixed[size_t(b)]);
      v.issued[2 * spec.bins + b] = float(hawkes_gaps[size_t(b)]);
    }
    if (spec.decoder != int64_t(Decoder::bins)) return;
    read_counts(v);
    AttentionKey key = attention_key(v);
    key.events = events, key.last_time = time;
    const AttentionInput input{time, 0.0, 0.0, -1, types.classes(), gap_floor.data(), nullptr, type_counts.data(), nullptr};
    attention->forecast(key, input, v.issued);
  }

  void read_counts(const View& v) {
    const float* key_types = reinterpret_cast<const float*>(v.counts + sizeof(CountsModel::Key));
    for (int64_t k = 0; k < types.capacity; ++k) type_counts[size_t(k)] = double(key_types[k]);
  }

  static void compare(const Scores& by, double density, int64_t type, double& total, double& time, double& loss,
                      double& error) {
    time = density;
    loss = -by.type_log_probability;
    total = time - loss;
    error = double(int64_t(by.predicted_type) != type);
  }
};
