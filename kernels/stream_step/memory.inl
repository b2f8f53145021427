// What a learner remembers of its episode, and how its networks read it: memory/episode.py and ChunkAttention in
// memory/hcam.py, for one query.

// SplitMix64's, as agents/generator.py and memory/retention.py have it.
static uint64_t mix(uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ull;
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBull;
  return bits ^ (bits >> 31);
}

template <class T>
static const chunk_attention::Functions<T>& lookup_of(const MemorySpec& spec) {
  if constexpr (sizeof(T) == sizeof(double)) return spec.of_double;
  else return spec.of_float;
}

template <class T>
class Memory {
 public:
  explicit Memory(const MemorySpec& given)
      : spec(given),
        contents(static_cast<T*>(given.contents)),
        summaries(static_cast<T*>(given.summaries)) {}

  bool present() const { return contents != nullptr; }

  // Own slots that were used; in a full ring one of them, the open chunk's, is not visible.
  int64_t used_own() const { return spec.counters[0] < spec.own ? spec.counters[0] : spec.own; }
  bool all_visible() const { return spec.own == spec.slots && spec.counters[0] < spec.own; }
  // Slots that are looked at, which of them can be read (null: all), and how many that is.
  int64_t used() const { return spec.own == spec.slots ? used_own() : spec.slots; }
  const uint8_t* visible() const { return all_visible() ? nullptr : spec.visible; }
  int64_t readable() const {
    const int64_t own = used_own(), guests = spec.own == spec.slots ? 0 : spec.counters[4];
    return (spec.visible != nullptr && own == spec.own ? own - 1 : own) + guests;
  }

  void append(const T* x, int64_t n) {
    const int64_t slot = spec.counters[0] % spec.own;
    T* const chunk = contents + slot * spec.length * spec.row;
    __builtin_memcpy(chunk + spec.counters[1] * spec.row, x, sizeof(T) * static_cast<size_t>(n));
    ++spec.counters[2];
    if (++spec.counters[1] < spec.length) return;
    T* const mean = summaries + slot * spec.row;
    zero(mean, spec.row);
    for (int64_t c = 0; c < spec.length; ++c)
      for (int64_t d = 0; d < spec.row; ++d) mean[d] += chunk[c * spec.row + d];
    for (int64_t d = 0; d < spec.row; ++d) mean[d] /= T(spec.length);
    spec.visible[slot] = 1;
    spec.visible[(slot + 1) % spec.own] = 0;
    ++spec.counters[0];
    spec.counters[1] = 0;
  }

  void clear() {
    spec.counters[1] = 0;
    if (spec.lasting) return;
    spec.counters[0] = 0;
    for (int64_t i = 0; i < spec.own; ++i) spec.visible[i] = 0;
  }

  // Add chunks that can be read, are not among the first `count` of `chunks`, and are each as likely, up to `total`.
  void any_others(int64_t* chunks, int64_t count, int64_t total) const {
    constexpr uint64_t kDraws = 1024;  // memory/episode.py
    for (uint64_t counter = uint64_t(spec.counters[2]) * kDraws; count < total; ++counter) {
      const int64_t slot = int64_t(mix(uint64_t(spec.counters[3]) + counter * 0x9E3779B97F4A7C15ull) % uint64_t(used()));
      bool taken = !spec.visible[slot];
      for (int64_t j = 0; j < count; ++j) taken |= chunks[j] == slot;
      if (!taken) chunks[count++] = slot;
    }
  }

  MemorySpec spec;
  T *contents, *summaries;
};

// What one read leaves behind for its backward pass.
template <class T>
struct Reading {
  Array<T> select_query, select, logits, query, ask, pooled, shares, values;
  Array<int64_t> chunks;
  int64_t read = 0;  // how many chunks were; the memory may have more by the time of the backward pass
};

// What x finds. The weights, in order: select_query [inputs, features], select_key [row, features], query
// [inputs, features], its bias, key [row, features], value [row, features], its bias, output [features, features], its
// bias.
template <class T>
class Read {
 public:
  void prepare(const LayerSpec& layer, const Memory<T>& memory, const T* positions) {
    inputs_ = layer.inputs, features_ = layer.features, heads_ = layer.heads, k_ = layer.k, joint_ = layer.joint;
    memory_ = &memory, positions_ = positions;
    row_ = memory.spec.row, length_ = memory.spec.length;
    scratch_.allocate(3 * k_ + heads_ * length_ * (k_ + 1));
    sizes_.allocate(k_);
    no_bias_.allocate(row_ > features_ ? row_ : features_);
    of_features_.allocate(features_);
    of_query_.allocate(features_);
    of_pooled_.allocate(heads_ * row_);
    of_ask_.allocate(heads_ * row_);
    of_logits_.allocate(k_);
    of_select_.allocate(row_);
    gradient.allocate(parameter_count());
  }

  int64_t parameter_count() const {
    return 2 * inputs_ * features_ + 3 * row_ * features_ + features_ * features_ + 3 * features_;
  }

  void prepare(Reading<T>& r) const {
    r.select_query.allocate(features_);
    r.select.allocate(row_);
    r.logits.allocate(k_);
    r.chunks.allocate(k_);
    r.query.allocate(features_);
    r.ask.allocate(heads_ * row_);
    r.pooled.allocate(heads_ * row_);
    r.shares.allocate(heads_ * k_ * length_);
    r.values.allocate(features_);
  }

  // out: [features].
  void forward(const T* parameters, const T* x, T* out, Reading<T>& r) {
    const Weights<const T> w = weights(parameters);
    const auto& lookup = lookup_of<T>(memory_->spec);
    affine_backward(w.select_query, x, r.select_query.data, inputs_, features_);
    affine(w.select_key, no_bias_.data, r.select_query.data, r.select.data, row_, features_);
    scale(r.select.data, T(1) / root(T(features_)), row_);
    const int64_t visible = memory_->readable();
    r.read = k_ < visible ? k_ : visible;
    if (r.read == 0) return zero(out, features_);
    const int64_t best = visible > k_ ? k_ - memory_->spec.random_reads : r.read;
    chunk_attention::ScanTask scan = scan_task(r);
    scan.k = best;
    lookup.scan(scan, r.logits.data, r.chunks.data, scratch_.data);
    memory_->any_others(r.chunks.data, best, r.read);
    for (int64_t j = best; j < r.read; ++j)
      r.logits[j] = dot(r.select.data, memory_->summaries + r.chunks[j] * row_, row_);

    affine_backward(w.query, x, r.query.data, inputs_, features_);
    add(r.query.data, w.query_bias, features_);
    const int64_t wide = features_ / heads_;
    const T sharpness = T(1) / root(T(wide));
    for (int64_t h = 0; h < heads_; ++h)
      for (int64_t d = 0; d < row_; ++d) r.ask[h * row_ + d] = sharpness * dot(w.key + d * features_ + h * wide, r.query.data + h * wide, wide);
    lookup.attend(attend_task(r), 0, r.pooled.data, r.shares.data, scratch_.data);
    zero(r.values.data, features_);
    for (int64_t h = 0; h < heads_; ++h)
      for (int64_t d = 0; d < row_; ++d)
        add_scaled(r.values.data + h * wide, w.value + d * features_ + h * wide, r.pooled[h * row_ + d], wide);
    add(r.values.data, w.value_bias, features_);
    affine_backward(w.output, r.values.data, out, features_, features_);
    add(out, w.output_bias, features_);
  }

  // Turn d objective / d out into the gradient of the weights. What asks is given, so nothing goes further.
  void backward(const T* parameters, const T* x, const T* d_out, const Reading<T>& r) {
    if (r.read == 0) return zero(gradient.data, gradient.size);
    const Weights<const T> w = weights(parameters);
    const Weights<T> g = weights(gradient.data);
    const auto& lookup = lookup_of<T>(memory_->spec);
    const int64_t wide = features_ / heads_;
    const T sharpness = T(1) / root(T(wide));

    outer(g.output, r.values.data, d_out, features_, features_);
    copy(g.output_bias, d_out, features_);
    affine(w.output, no_bias_.data, d_out, of_features_.data, features_, features_);
    copy(g.value_bias, of_features_.data, features_);
    for (int64_t h = 0; h < heads_; ++h)
      for (int64_t d = 0; d < row_; ++d) {
        const int64_t at = d * features_ + h * wide;
        const T pooled = r.pooled[h * row_ + d];
        set_scaled(g.value + at, of_features_.data + h * wide, pooled, wide);
        of_pooled_[h * row_ + d] = dot(w.value + at, of_features_.data + h * wide, wide);
      }

    lookup.attend_back(attend_task(r), 0, of_pooled_.data, r.shares.data, of_ask_.data, of_logits_.data, scratch_.data);
    zero(of_query_.data, features_);
    for (int64_t h = 0; h < heads_; ++h)
      for (int64_t d = 0; d < row_; ++d) {
        const int64_t at = d * features_ + h * wide;
        const T of_ask = sharpness * of_ask_[h * row_ + d];
        set_scaled(g.key + at, r.query.data + h * wide, of_ask, wide);
        add_scaled(of_query_.data + h * wide, w.key + at, of_ask, wide);
      }
    outer(g.query, x, of_query_.data, inputs_, features_);
    copy(g.query_bias, of_query_.data, features_);

    zero(of_select_.data, row_);
    lookup.scan_back(scan_task(r), of_logits_.data, r.chunks.data, of_select_.data);
    scale(of_select_.data, T(1) / root(T(features_)), row_);
    outer(g.select_key, of_select_.data, r.select_query.data, row_, features_);
    affine_backward(w.select_key, of_select_.data, of_query_.data, row_, features_);
    outer(g.select_query, x, of_query_.data, inputs_, features_);
  }

  Array<T> gradient;  // of all weights

 private:
  static constexpr int64_t kWide = 8;

  template <class S>
  struct Weights {
    S *select_query, *select_key, *query, *query_bias, *key, *value, *value_bias, *output, *output_bias;
  };

  template <class S>
  Weights<S> weights(S* at) const {
    auto next = [&at](int64_t size) {
      S* const here = at;
      at += size;
      return here;
    };
    Weights<S> w;
    w.select_query = next(inputs_ * features_);
    w.select_key = next(row_ * features_);
    w.query = next(inputs_ * features_);
    w.query_bias = next(features_);
    w.key = next(row_ * features_);
    w.value = next(row_ * features_);
    w.value_bias = next(features_);
    w.output = next(features_ * features_);
    w.output_bias = next(features_);
    return w;
  }

  chunk_attention::ScanTask scan_task(const Reading<T>& r) {
    chunk_attention::ScanTask task{};
    task.summaries = memory_->summaries, task.select = r.select.data, task.visible = memory_->visible();
    task.sizes = sizes_.data, task.storage = chunk_attention::Storage::same;
    task.queries = 1, task.count = memory_->used(), task.width = row_, task.k = r.read;
    return task;
  }

  chunk_attention::AttendTask attend_task(const Reading<T>& r) {
    chunk_attention::AttendTask task{};
    task.ask = r.ask.data, task.logits = r.logits.data, task.chunks = r.chunks.data;
    task.contents = memory_->contents, task.positions = positions_, task.steps = memory_->spec.steps;
    task.sizes = sizes_.data;
    task.heads = heads_, task.k = r.read, task.length = length_, task.width = row_, task.joint = joint_;
    return task;
  }

  static void copy(T* out, const T* x, int64_t n) { __builtin_memcpy(out, x, sizeof(T) * static_cast<size_t>(n)); }
  static void add(T* __restrict out, const T* __restrict x, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] += x[i];
  }
  static void scale(T* x, T factor, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
  }
  // Heads are a few numbers wide: loops whose length the compiler knows, where those of any length would be all ends.
  static T dot(const T* a, const T* b, int64_t n) {
    T sums[kWide] = {}, total = 0;
    int64_t i = 0;
    for (; i + kWide <= n; i += kWide)
      for (int64_t j = 0; j < kWide; ++j) sums[j] += a[i + j] * b[i + j];
    for (int64_t half = kWide / 2; half > 0; half /= 2)
      for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
    for (; i < n; ++i) total += a[i] * b[i];
    return sums[0] + total;
  }
  static void add_scaled(T* __restrict out, const T* __restrict x, T factor, int64_t n) {
    int64_t i = 0;
    for (; i + kWide <= n; i += kWide)
      for (int64_t j = 0; j < kWide; ++j) out[i + j] += factor * x[i + j];
    for (; i < n; ++i) out[i] += factor * x[i];
  }
  static void set_scaled(T* __restrict out, const T* __restrict x, T factor, int64_t n) {
    int64_t i = 0;
    for (; i + kWide <= n; i += kWide)
      for (int64_t j = 0; j < kWide; ++j) out[i + j] = factor * x[i + j];
    for (; i < n; ++i) out[i] = factor * x[i];
  }
  static void outer(T* out, const T* a, const T* b, int64_t rows, int64_t n) {
    for (int64_t o = 0; o < rows; ++o) {
      const T factor = a[o];
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[o * n + i] = factor * b[i];
    }
  }

  int64_t inputs_ = 0, features_ = 0, heads_ = 0, k_ = 0, row_ = 0, length_ = 0;
  bool joint_ = false;
  const Memory<T>* memory_ = nullptr;
  const T* positions_ = nullptr;
  Array<T> scratch_, no_bias_, of_features_, of_query_, of_pooled_, of_ask_, of_logits_, of_select_;
  Array<int64_t> sizes_;
};
