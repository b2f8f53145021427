// History: events before the window, in chunks, each as its type and the bin of its gap.
// Members of LiveAttention.

  // Prepare what reads the history; returns how many parameters that has.
  int64_t open_history() {
    const int64_t slots = s.history + 1, row = D + s.time_width;  // one more than are used: none is being written to
    past_contents.allocate(slots * s.history_length * row);
    past_summaries.allocate(slots * row);
    past_types.allocate(K * D);
    past_gaps.allocate(B * s.time_width);
    past_steps.allocate(slots);
    for (int64_t b = 0; b < B; ++b) turn(past_gaps.data + b * s.time_width, s.middles[b]);
    MemorySpec spec{};
    spec.contents = past_contents.data, spec.summaries = past_summaries.data, spec.steps = past_steps.data;
    spec.counters = past_counters, spec.slots = spec.own = slots, spec.length = s.history_length, spec.row = row;
    spec.of_float = s.of_float, spec.of_double = s.of_double;
    past = Memory<T>(spec);
    LayerSpec layer{};
    layer.kind = LayerKind::read;
    layer.inputs = 2 * I, layer.features = F, layer.heads = s.history_heads, layer.k = s.history_reads;
    reader.prepare(layer, past, static_cast<const T*>(s.history_positions));
    reader.prepare(reading);
    asks.allocate(2 * I);
    found_gradient.allocate(F);
    return reader.parameter_count();
  }

  // Spell the key's history out: [chunks, length, row], the mean of each chunk, and how many events it has.
  void spell_history() {
    const int64_t C = s.history_length, row = D + s.time_width;
    const int64_t older = key.events > double(W) ? int64_t(key.events) - W : 0, chunks = (older + C - 1) / C;
    const int64_t used = chunks < s.history ? chunks : s.history;
    past_counters[0] = used;
    for (int64_t m = 0; m < used; ++m) past_steps[m] = C;
    if (older % C != 0) past_steps[(older / C) % s.history] = older % C;
    for (int64_t m = 0; m < used; ++m) {
      T* const mean = past_summaries.data + m * row;
      zero(mean, row);
      for (int64_t c = 0; c < past_steps[m]; ++c) {
        const int16_t* event = key.history + (m * C + c) * 2;
        T* const to = past_contents.data + (m * C + c) * row;
        __builtin_memcpy(to, past_types.data + event[0] * D, sizeof(T) * size_t(D));
        __builtin_memcpy(to + D, past_gaps.data + event[1] * s.time_width, sizeof(T) * size_t(s.time_width));
        for (int64_t d = 0; d < row; ++d) mean[d] += to[d];
      }
      for (int64_t d = 0; d < row; ++d) mean[d] /= T(past_steps[m]);
    }
  }

  // The query is the newest event and the fading mean of all; neither learns from what it finds.
  void recall_history() {
    if (F == 0) return;
    spell_history();
    for (int64_t i = 0; i < I; ++i) asks[i] = newest[i], asks[I + i] = T(key.query[i]);
    reader.forward(recall.at, asks.data, shared_features.data + I + K + 1, reading);
  }

  void recall_back() {
    if (F == 0) return;
    reader.backward(recall.at, asks.data, found_gradient.data, reading);
    add_scaled(recall.gradient, T(1), reader.gradient.data, recall.size);
  }
