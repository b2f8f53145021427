// The statistical models. Each scores an event with what it knew before, then learns from it.
//
// Their definitions, with the reasons, are the NumPy methods `_learn` of agents/poisson.py, agents/hawkes.py and
// agents/counts.py; the names here are the names there.

struct Scores {  // one row an event; NaN where the first event of a key has nothing to be scored
  double gap, time_log_density, type_log_probability, compensator, predicted_type, predicted_gap, type;
};

struct Vocabulary {  // how many types were seen, of how many there is room for
  double* seen;
  int64_t capacity;
  // Types that have a probability: those seen, and one for whatever is new.
  int64_t classes() const { return std::min(int64_t(*seen) + 1, capacity); }
  void add(int64_t type) const { *seen = std::max(*seen, double(type + 1)); }
};

inline void halve(double* counts, int64_t size) {
  for (int64_t i = 0; i < size; ++i) counts[i] *= 0.5;
}

// A table whose rows hold counts and, last, their sum. A row that reaches `memory` is halved, which bounds it and
// lets the past fade.
struct Counts {
  double* data;
  int64_t size;  // counts in a row
  double memory;
  double* row(int64_t i) const { return data + i * (size + 1); }
  double total(int64_t i) const { return row(i)[size]; }
  void add(int64_t i, int64_t which, double amount = 1.0) const {
    double* counts = row(i);
    counts[which] += amount;
    if ((counts[size] += amount) >= memory) halve(counts, size + 1);
  }
};

// Like a row of Counts, in single precision, inside the state of a key.
inline void add_to_key(float* counts, int64_t size, int64_t which, double memory) {
  counts[which] += 1.0f;
  if ((counts[size] += 1.0f) >= float(memory))
    for (int64_t i = 0; i <= size; ++i) counts[i] *= 0.5f;
}

template <typename Probabilities>
int64_t argmax(const Probabilities& values, int64_t size) {
  int64_t best = 0;
  for (int64_t k = 1; k < size; ++k)
    if (values[k] > values[best]) best = k;
  return best;
}

struct KeyClock {  // how the state of every key begins; all zero bytes are a key that has had no event
  double last_time, events;
  int32_t last_type, type_before;
};

struct Poisson {
  struct Key : KeyClock {};
  Vocabulary types;
  double* type_counts;  // [capacity + 1], the last is their sum
  double* gaps;         // [2]: how many, and their sum in seconds
  double memory, prior_gap, prior_count;
  int64_t key_bytes() const { return sizeof(Key); }

  Scores learn(std::byte* state, double time, int64_t type) const {
    Key& key = *reinterpret_cast<Key*>(state);
    Counts counts{type_counts, types.capacity, memory};
    const int64_t classes = types.classes();
    const double smoothed = counts.total(0) + prior_count * double(classes);
    Scores s;
    s.type_log_probability = std::log((type_counts[type] + prior_count) / smoothed);
    s.predicted_type = double(argmax(type_counts, classes));
    const double rate = (gaps[0] + 1.0) / (gaps[1] + prior_gap);
    s.predicted_gap = 1.0 / rate;
    if (key.events > 0.0) {
      s.gap = time - key.last_time;
      s.compensator = rate * s.gap;
      s.time_log_density = std::log(rate) - s.compensator;
      gaps[0] += 1.0;
      gaps[1] += s.gap;
      if (gaps[0] >= memory) halve(gaps, 2);
    } else {
      s.gap = s.compensator = s.time_log_density = NAN;
    }
    counts.add(0, type);
    types.add(type);
    return s;
  }
};

struct Hawkes {
  struct Key : KeyClock {};  // followed by double pulses [scales, capacity]
  Vocabulary types;
  int64_t scales, offsets;
  const double *decay_rates;     // [scales], 1 / seconds
  const double *offset_seconds;  // [offsets], of the survival curve that the mean gap is read from
  const double *offset_passed;   // [offsets, scales]: how much of a pulse has passed by then
  double* base_sum;              // [capacity]: events that the base rate brought, by their weights
  double* child_sum;             // [scales, capacity (source), capacity (child)]: events that others brought
  double* child_total;           // [scales, capacity (source)]: over the children that have a probability
  double* pulse_exposure;        // [scales, capacity (source)]: how much of the pulses has passed
  double* progress;              // [3]: base exposure in seconds, weight of the next event, events learned
  double forgetting, memory, warm_up;
  // What is imagined of every base rate and pair of types, always worth as much as so many of the newest events:
  // the past fades, and nothing that has not happened for long becomes impossible.
  double prior_base, prior_seconds, prior_children, prior_pulses;
  std::vector<double> intensity, source;  // [capacity], [scales, capacity]
  std::vector<double> survival_at;        // [offsets], after `mean_gap`

  int64_t key_bytes() const { return sizeof(Key) + scales * types.capacity * int64_t(sizeof(double)); }

  Scores learn(std::byte* state, double time, int64_t type) {
    Key& key = *reinterpret_cast<Key*>(state);
    double* pulses = reinterpret_cast<double*>(state + sizeof(Key));
    const int64_t capacity = types.capacity, seen = int64_t(*types.seen), classes = types.classes();
    double &base_exposure = progress[0], &weight = progress[1], &events = progress[2];
    const bool first = key.events == 0.0;
    const double gap = first ? 0.0 : time - key.last_time;

    const double imagined = weight * prior_children, imagined_pulses = weight * prior_pulses;
    const double imagined_base = weight * prior_base, seconds = base_exposure + weight * prior_seconds;
    double base_total = 0.0;
    for (int64_t k = 0; k < classes; ++k)
      base_total += intensity[size_t(k)] = (base_sum[k] + imagined_base) / seconds;
    const double base = intensity[size_t(type)];
    double compensator = base_total * gap, decays[MAX_SCALES], passed[MAX_SCALES];
    for (int64_t m = 0; m < scales; ++m) {
      const double decay = decays[m] = std::exp(-decay_rates[m] * gap);
      passed[m] = -std::expm1(-decay_rates[m] * gap);
      for (int64_t j = 0; j < seen; ++j) {
        const int64_t mj = m * capacity + j;
        const double before = pulses[mj];
        if (before == 0.0) continue;
        const double per_child = before / (pulse_exposure[mj] + imagined_pulses);
        compensator += (child_total[mj] + imagined * double(classes)) * per_child * passed[m];
        const double rate = source[size_t(mj)] = per_child * decay * decay_rates[m];
        const double* children = child_sum + mj * capacity;
        for (int64_t k = 0; k < classes; ++k) intensity[size_t(k)] += rate * (children[k] + imagined);
      }
    }
    double total = 0.0;
    for (int64_t k = 0; k < classes; ++k) total += intensity[size_t(k)];
    const double own = intensity[size_t(type)];

    Scores s;
    s.type_log_probability = std::log(own / total);
    s.predicted_type = double(argmax(intensity, classes));
    s.predicted_gap = mean_gap(pulses, base_total, seen, imagined * double(classes), imagined_pulses);
    s.gap = first ? NAN : gap;
    s.compensator = first ? NAN : compensator;
    s.time_log_density = first ? NAN : std::log(total) - compensator;

    // Which cause brought the event: the base rate or an earlier event, each by its share of the intensity.
    if (!first) {
      base_exposure += weight * gap;
      base_sum[type] += weight * base / own;
    }
    for (int64_t m = 0; m < scales; ++m) {
      for (int64_t j = 0; j < seen; ++j) {
        const int64_t mj = m * capacity + j;
        const double before = pulses[mj];
        if (before == 0.0) continue;
        double& children = child_sum[mj * capacity + type];
        const double share = weight * source[size_t(mj)] * (children + imagined) / own;
        children += share;
        child_total[mj] += share;
        pulse_exposure[mj] += weight * before * passed[m];
        const double left = before * decays[m];
        pulses[mj] = left < FORGOTTEN ? 0.0 : left;
      }
      pulses[m * capacity + type] += 1.0;
    }
    events += 1.0;
    weight *= 1.0 + 1.0 / std::min(warm_up + events / forgetting, memory);
    if (weight > 1e9) rescale();
    types.add(type);
    if (types.classes() > classes) add_class(classes);
    return s;
  }

  // λ_k at a gap after the last event, [classes] of `out`, and their sum.
  double rates_after(const std::byte* state, double gap, double* out) const {
    const double* pulses = reinterpret_cast<const double*>(state + sizeof(Key));
    const int64_t capacity = types.capacity, seen = int64_t(*types.seen), classes = types.classes();
    const double weight = progress[1], imagined = weight * prior_children, imagined_pulses = weight * prior_pulses;
    const double seconds = progress[0] + weight * prior_seconds;
    for (int64_t k = 0; k < classes; ++k) out[k] = (base_sum[k] + weight * prior_base) / seconds;
    for (int64_t m = 0; m < scales; ++m) {
      const double decayed = decay_rates[m] * std::exp(-decay_rates[m] * gap);
      if (decayed == 0.0) continue;
      for (int64_t j = 0; j < seen; ++j) {
        const int64_t mj = m * capacity + j;
        if (pulses[mj] == 0.0) continue;
        const double rate = pulses[mj] / (pulse_exposure[mj] + imagined_pulses) * decayed;
        const double* children = child_sum + mj * capacity;
        for (int64_t k = 0; k < classes; ++k) out[k] += rate * (children[k] + imagined);
      }
    }
    double total = 0.0;
    for (int64_t k = 0; k < classes; ++k) total += out[k];
    return total;
  }

  // Fill `survival_at` for a key, and return the mean gap.
  double survive(const std::byte* state) {
    const double weight = progress[1], imagined = weight * prior_children * double(types.classes());
    double base = 0.0;
    for (int64_t k = 0; k < types.classes(); ++k)
      base += (base_sum[k] + weight * prior_base) / (progress[0] + weight * prior_seconds);
    return mean_gap(reinterpret_cast<const double*>(state + sizeof(Key)), base, int64_t(*types.seen), imagined,
                    weight * prior_pulses);
  }

  // The integral of the survival function, exact where the compensator is linear between two offsets.
  double mean_gap(const double* pulses, double base_total, int64_t seen, double imagined, double imagined_pulses) {
    double amounts[MAX_SCALES];
    for (int64_t m = 0; m < scales; ++m) {
      amounts[m] = 0.0;
      for (int64_t j = 0; j < seen; ++j) {
        const int64_t mj = m * types.capacity + j;
        if (pulses[mj] != 0.0)
          amounts[m] += (child_total[mj] + imagined) * pulses[mj] / (pulse_exposure[mj] + imagined_pulses);
      }
    }
    double mean = 0.0, at = 0.0, charged = 0.0, survival = 1.0;
    for (int64_t g = 0; g < offsets; ++g) {
      double next = base_total * offset_seconds[g];
      for (int64_t m = 0; m < scales; ++m) next += amounts[m] * offset_passed[g * scales + m];
      const double step = offset_seconds[g] - at, rise = next - charged, lost = -survival * std::expm1(-rise);
      mean += step * (rise > 0.0 ? lost / rise : survival);
      at = offset_seconds[g], charged = next, survival -= lost;
      survival_at[size_t(g)] = survival;
      if (survival < 1e-15) {
        std::fill(survival_at.begin() + g, survival_at.end(), 0.0);
        return mean;
      }
    }
    return mean + survival / base_total;
  }

  void add_class(int64_t k) {
    for (int64_t mj = 0; mj < scales * types.capacity; ++mj) child_total[mj] += child_sum[mj * types.capacity + k];
  }

  void rescale() {
    const double factor = 1.0 / progress[1];
    const int64_t capacity = types.capacity;
    for (int64_t k = 0; k < capacity; ++k) base_sum[k] *= factor;
    for (int64_t i = 0; i < scales * capacity * capacity; ++i) child_sum[i] *= factor;
    for (int64_t i = 0; i < scales * capacity; ++i) child_total[i] *= factor, pulse_exposure[i] *= factor;
    progress[0] *= factor;
    progress[1] = 1.0;
  }
};

struct CountsModel {
  struct Key : KeyClock {
    int64_t last_gap;  // one more than its bin; 0 before there is one
  };  // followed by float types [capacity + 1] and gaps [bins + 1], the last of each their sum
  Vocabulary types;
  int64_t bins, buckets;
  double* global_types;  // [1, capacity + 1]
  double* after_one;     // [capacity, capacity + 1]
  double* after_two;     // [capacity * capacity, capacity + 1]
  double* global_gaps;   // [1, bins + 1]
  double* gaps_after;    // [capacity, bins + 1]
  double* gaps_like;     // [1 + bins / GAP_CLASS, bins + 1]: after a gap of about this length, the first after none
  double* type_weights;  // [buckets, 4]
  double* gap_weights;   // [buckets, 4]
  const double* edges;   // [bins]: where each bin begins, in seconds; the last has no end
  const double* gap_prior;  // [bins]: gaps that are imagined at the start
  double memory, key_memory, type_prior, type_pull, gap_prior_total, gap_pull, share, log_width;
  std::vector<double> type_experts, type_mixed, gap_experts, gap_mixed;

  int64_t key_bytes() const {
    return int64_t(sizeof(Key)) + (types.capacity + 1 + bins + 1) * int64_t(sizeof(float));
  }

  // Fill `type_mixed` and `gap_mixed` from what each expert says; each leans on the one before it where it has seen
  // little.
  void predict(const std::byte* state) {
    const Key& key = *reinterpret_cast<const Key*>(state);
    const float* key_types = reinterpret_cast<const float*>(state + sizeof(Key));
    const float* key_gaps = key_types + types.capacity + 1;
    const Counts all{global_types, types.capacity, memory}, one{after_one, types.capacity, memory},
        two{after_two, types.capacity, memory}, gaps{global_gaps, bins, memory}, gaps_one{gaps_after, bins, memory},
        gaps_two{gaps_like, bins, memory};
    const int64_t classes = types.classes(), bucket = bucket_of(key.events), context = key.last_type;
    const bool first = key.events == 0.0;

    double* p[4];
    for (int e = 0; e < 4; ++e) p[e] = type_experts.data() + e * types.capacity;
    const double* n0 = all.row(0);
    const double scale0 = 1.0 / (all.total(0) + type_prior * double(classes));
    for (int64_t k = 0; k < classes; ++k) p[0][k] = (n0[k] + type_prior) * scale0;
    lean(p[1], first ? nullptr : one.row(context), p[0], classes, types.capacity, type_pull);
    lean(p[2], key.events >= 2.0 ? two.row(pair_of(key)) : nullptr, p[1], classes, types.capacity, type_pull);
    lean(p[3], key_types, p[0], classes, types.capacity, type_pull);
    mix(type_mixed.data(), type_weights + bucket * 4, p, 4, classes);

    double* q[4];
    for (int e = 0; e < 4; ++e) q[e] = gap_experts.data() + e * bins;
    const double* g0 = gaps.row(0);
    const double gap_scale = 1.0 / (gaps.total(0) + gap_prior_total);
    for (int64_t b = 0; b < bins; ++b) q[0][b] = (g0[b] + gap_prior[b]) * gap_scale;
    lean(q[1], first ? nullptr : gaps_one.row(context), q[0], bins, bins, gap_pull);
    lean(q[2], gaps_two.row(like_of(key)), q[0], bins, bins, gap_pull);
    lean(q[3], key_gaps, q[2], bins, bins, gap_pull);
    mix(gap_mixed.data(), gap_weights + bucket * 4, q, 4, bins);
  }

  Scores learn(std::byte* state, double time, int64_t type) {
    predict(state);
    return update(state, time, type);
  }

  // Score and learn an event that was predicted.
  Scores update(std::byte* state, double time, int64_t type) {
    Key& key = *reinterpret_cast<Key*>(state);
    float* key_types = reinterpret_cast<float*>(state + sizeof(Key));
    float* key_gaps = key_types + types.capacity + 1;
    const Counts all{global_types, types.capacity, memory}, one{after_one, types.capacity, memory},
        two{after_two, types.capacity, memory}, gaps{global_gaps, bins, memory}, gaps_one{gaps_after, bins, memory},
        gaps_two{gaps_like, bins, memory};
    const int64_t bucket = bucket_of(key.events), context = key.last_type, like = like_of(key);
    const bool first = key.events == 0.0, has_two = key.events >= 2.0;
    Scores s;
    s.type_log_probability = std::log(type_mixed[size_t(type)]);
    s.predicted_type = double(argmax(type_mixed, types.classes()));
    reweigh(type_weights + bucket * 4, type_experts.data() + type, types.capacity);

    s.predicted_gap = 0.0;
    for (int64_t b = 0; b < bins; ++b) s.predicted_gap += gap_mixed[size_t(b)] * middle(b);
    if (first) {
      s.gap = s.time_log_density = s.compensator = NAN;
    } else {
      s.gap = time - key.last_time;
      const int64_t bin = bin_of(s.gap);
      const double mass = gap_mixed[size_t(bin)];
      double after = 0.0;  // how likely a longer gap was
      for (int64_t b = bin + 1; b < bins; ++b) after += gap_mixed[size_t(b)];
      if (bin == bins - 1) {
        const double beyond = (s.gap - edges[bin]) / edges[bin];
        s.time_log_density = std::log(mass / edges[bin]) - beyond;
        s.compensator = beyond - std::log(mass);
      } else {
        const double width = edges[bin + 1] - edges[bin];
        s.time_log_density = std::log(mass / width);
        s.compensator = -std::log(after + mass * (edges[bin + 1] - s.gap) / width);
      }
      reweigh(gap_weights + bucket * 4, gap_experts.data() + bin, bins);
      gaps.add(0, bin);
      gaps_one.add(context, bin);
      gaps_two.add(like, bin);
      key.last_gap = bin + 1;
      add_to_key(key_gaps, bins, bin, key_memory);
    }

    all.add(0, type);
    if (!first) one.add(context, type);
    if (has_two) two.add(pair_of(key), type);
    add_to_key(key_types, types.capacity, type, key_memory);
    types.add(type);
    return s;
  }

  int64_t pair_of(const Key& key) const { return int64_t(key.type_before) * types.capacity + key.last_type; }
  int64_t like_of(const Key& key) const { return key.last_gap == 0 ? 0 : 1 + (key.last_gap - 1) / GAP_CLASS; }

  int64_t bucket_of(double events) const {  // 0, 1, 2-3, 4-7, ...
    int64_t bucket = 0;
    while (bucket < buckets - 1 && events >= double(int64_t(1) << bucket)) ++bucket;
    return bucket;
  }

  int64_t bin_of(double gap) const {
    if (gap < edges[1]) return 0;
    int64_t bin = std::min(bins - 1, 1 + int64_t(std::log(gap / edges[1]) / log_width));
    while (bin < bins - 1 && gap >= edges[bin + 1]) ++bin;  // rounding, at an edge
    while (gap < edges[bin]) --bin;
    return bin;
  }

  double middle(int64_t bin) const {
    return bin == bins - 1 ? 2.0 * edges[bin] : 0.5 * (edges[bin] + edges[bin + 1]);
  }

  // counts: [size], their sum at total_at; nullptr where there are none yet.
  template <typename Number>
  static void lean(double* out, const Number* counts, const double* on, int64_t size, int64_t total_at, double pull) {
    const double scale = counts == nullptr ? 0.0 : 1.0 / (double(counts[total_at]) + pull);
    for (int64_t k = 0; k < size; ++k) out[k] = counts == nullptr ? on[k] : (double(counts[k]) + pull * on[k]) * scale;
  }

  static void mix(double* out, const double* weights, double* const* experts, int count, int64_t size) {
    for (int64_t k = 0; k < size; ++k) out[k] = weights[0] * experts[0][k];
    for (int e = 1; e < count; ++e)
      for (int64_t k = 0; k < size; ++k) out[k] += weights[e] * experts[e][k];
  }

  // Bayes' rule, then a little of every expert's weight is shared, so that none is ever lost. The likelihoods of the
  // four experts are `stride` apart.
  void reweigh(double* weights, const double* likelihoods, int64_t stride) const {
    double total = 0.0;
    for (int e = 0; e < 4; ++e) total += (weights[e] *= likelihoods[e * stride]);
    for (int e = 0; e < 4; ++e) weights[e] = (1.0 - share) * weights[e] / total + share / 4.0;
  }
};
