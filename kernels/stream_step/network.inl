// Networks: forward, backward straight into the traces, step-size rule, for one sample.

// What one forward pass leaves behind for a backward pass, and for whoever asks for the same input again. The input is
// not copied: whoever writes there afterwards says that this is no longer valid.
template <class T>
struct Activations {
  const T* input = nullptr;
  Array<T> output[kMaxLayers];
  T deviation[kMaxLayers];       // layer_norm: 1 / sqrt(variance + eps)
  Reading<T> reading;            // read, and
  Recurrence<T> recurrence;      // recurrent, and
  Look<T> look;                  // bottleneck, which only the first layer may be
  bool valid = false;
};

// What an update needs from its norm to its step. Networks updated one after the other share it: less memory to go
// through is less that the environment finds gone from the caches.
template <class T>
struct Scratch {
  Array<T> scaled;    // trace / root mean square, for every parameter
  Array<T> gradient;  // a few rows

  void fit(int64_t parameters, int64_t longest_row) {
    if (parameters > scaled.size) scaled.allocate(parameters);
    if ((longest_row + 1) * kLanes > gradient.size) gradient.allocate((longest_row + 1) * kLanes);
  }
};

template <class T>
class Network {
 public:
  Network(const NetworkSpec& spec, const Memory<T>& memory, Books<T>& books, Scratch<T>& scratch)
      : parameters_(static_cast<T*>(spec.parameters)),
        trace_(static_cast<T*>(spec.trace)),
        second_moment_(static_cast<T*>(spec.second_moment)),
        size_(spec.size),
        rule_(spec.rule),
        count_(spec.layer_count),
        scratch_(scratch) {
    int64_t offset = 0;
    for (int64_t l = 0; l < count_; ++l) {
      const LayerSpec& layer = layers_[l] = spec.layers[l];
      offset_[l] = offset;
      if (layer.kind == LayerKind::read) {
        read_.prepare(layer, memory, static_cast<const T*>(spec.positions));
        offset += read_.parameter_count();
      }
      if (layer.kind == LayerKind::recurrent) {
        recurrent_.prepare(layer, static_cast<T*>(spec.hidden));
        offset += recurrent_.parameter_count();
      }
      if (layer.kind == LayerKind::bottleneck) {
        table_.prepare(layer, books);
        offset += table_.parameter_count();
      }
      if (layer.kind == LayerKind::linear) offset += layer.outputs * (layer.inputs + 1);
      if (layer.kind == LayerKind::convolution) {
        convolution_[l].prepare(layer);
        offset += convolution_[l].parameter_count();
      }
      delta_[l].allocate(layer.outputs);
    }
    scratch.fit(rule_.kind == RuleKind::obgd ? 0 : size_, longest_row());
  }

  int64_t outputs() const { return layers_[count_ - 1].outputs; }
  int64_t inputs() const { return layers_[0].inputs; }

  void prepare(Activations<T>& a) const {
    for (int64_t l = 0; l < count_; ++l) a.output[l].allocate(layers_[l].outputs);
    if (layers_[0].kind == LayerKind::read) read_.prepare(a.reading);
    if (layers_[0].kind == LayerKind::recurrent) recurrent_.prepare(a.recurrence);
    if (layers_[0].kind == LayerKind::bottleneck) table_.prepare(a.look);
  }

  bool is_recurrent() const { return layers_[0].kind == LayerKind::recurrent; }

  // The state that x led to becomes the state.
  void move_on(const T* x, Activations<T>& a) {
    if (!is_recurrent()) return;
    forward(x, a);
    recurrent_.move_on(a.output[0].data);
  }
  void clear_state() {
    if (is_recurrent()) recurrent_.clear();
  }

  // Return the outputs for x, computing them only if `a` does not hold them already.
  const T* forward(const T* x, Activations<T>& a) {
    if (!a.valid || a.input != x) {
      a.input = x;
      for (int64_t l = 0; l < count_; ++l) {
        forward_layer(l, x, a);
        x = a.output[l].data;
      }
      a.valid = true;
    }
    return a.output[count_ - 1].data;
  }

  // Forward passes of two inputs, together where neither is there already.
  void forward_pair(const T* x0, Activations<T>& a0, const T* x1, Activations<T>& a1) {
    if (a0.valid || a1.valid) {
      forward(x0, a0);
      forward(x1, a1);
      return;
    }
    a0.input = x0;
    a1.input = x1;
    for (int64_t l = 0; l < count_; ++l) {
      const LayerSpec& layer = layers_[l];
      if (layer.kind == LayerKind::linear) {
        const T* weight = parameters_ + offset_[l];
        affine_pair(weight, weight + layer.outputs * layer.inputs, x0, x1, a0.output[l].data,
                    a1.output[l].data, layer.outputs, layer.inputs);
      } else {
        forward_layer(l, x0, a0);
        forward_layer(l, x1, a1);
      }
      x0 = a0.output[l].data;
      x1 = a1.output[l].data;
    }
    a0.valid = a1.valid = true;
  }

  // Turn d objective / d outputs into every layer's own, and what gradients of weights are made of.
  void backward(const T* output_delta, const Activations<T>& a) {
    __builtin_memcpy(delta_[count_ - 1].data, output_delta, sizeof(T) * static_cast<size_t>(outputs()));
    for (int64_t l = count_ - 1; l >= 0; --l)
      backward_layer(l, l > 0 ? a.output[l - 1].data : a.input, l > 0 ? delta_[l - 1].data : nullptr, a);
  }

  // z <- decay z + gradient, then w <- w + step td_error z by the step-size rule. Returns the step.
  double update(const Activations<T>& a, double td_error, double decay, RuleState& state) {
    weights_changed();
    switch (rule_.kind) {
      case RuleKind::obgd: {
        double norm = 0.0;
        each_layer(a, rows_of(decay, 0.0, 0.0, 0.0), [&](const Rows<T>& rows) { norm += obgd(rows); });
        const double step = bounded_step_size(td_error, norm);
        axpy(parameters_, trace_, T(step * td_error), size_);
        return step;
      }
      case RuleKind::adaptive_obgd: {
        state.updates += 1;
        const double beta = rule_.second_moment_decay;
        const double correction = 1.0 / (1.0 - __builtin_pow(beta, double(state.updates)));
        double norm = 0.0;
        each_layer(a, rows_of(decay, beta, (1.0 - beta) * td_error * td_error, correction),
                   [&](const Rows<T>& rows) { norm += adaptive(rows); });
        const double step = bounded_step_size(td_error, norm);
        axpy(parameters_, scratch_.scaled.data, T(step * td_error), size_);
        return step;
      }
      default: {
        state.updates += 1;
        state.decay_product *= decay;
        const double beta = rule_.second_moment_decay;
        const double correction = 1.0 / (1.0 - __builtin_pow(beta, double(state.updates)));
        double norm = 0.0, trace_norm = 0.0, scale = 1.0;
        each_layer(a, rows_of(decay, beta, 1.0 - beta, correction), [&](const Rows<T>& rows) {
          const Norms norms = intentional(rows);
          scale = norms.scale;
          norm += norms.gradient;
          trace_norm += norms.trace;
        });
        double sigma;
        if (decay < 1.0) {
          state.gradient_norm = decay * state.gradient_norm + (1.0 - decay) * norm;
          sigma = state.gradient_norm / (1.0 - state.decay_product);
        } else {
          state.gradient_norm += (norm - state.gradient_norm) / double(state.updates);
          sigma = state.gradient_norm;
        }
        const double reach = __builtin_sqrt(sigma * trace_norm);
        const double step = rule_.intended_change / (reach > 1e-8 ? reach : 1e-8);
        axpy(parameters_, scratch_.scaled.data, T(step * scale * tame(td_error, state)), size_);
        return step;
      }
    }
  }

  void clear_trace() { zero(trace_, size_); }
  void weights_changed() {
    for (int64_t l = 0; l < count_; ++l) convolution_[l].weights_changed();
  }

 private:
  void forward_layer(int64_t l, const T* x, Activations<T>& a) {
    const LayerSpec& layer = layers_[l];
    T* y = a.output[l].data;
    switch (layer.kind) {
      case LayerKind::read:
        __builtin_memcpy(y, x, sizeof(T) * static_cast<size_t>(layer.inputs));
        read_.forward(parameters_ + offset_[l], x, y + layer.inputs, a.reading);
        break;
      case LayerKind::recurrent:
        recurrent_.forward(parameters_ + offset_[l], x, y, a.recurrence);
        break;
      case LayerKind::bottleneck:
        table_.forward(parameters_ + offset_[l], x, y, a.look);
        break;
      case LayerKind::linear: {
        const T* weight = parameters_ + offset_[l];
        affine(weight, weight + layer.outputs * layer.inputs, x, y, layer.outputs, layer.inputs);
        break;
      }
      case LayerKind::convolution:
        convolution_[l].forward(parameters_ + offset_[l], x, y);
        break;
      case LayerKind::layer_norm: {
        const int64_t n = layer.inputs;
        const T mean = sum_of<T>(n, [=](int64_t i) { return x[i]; }) / T(n);
        const T variance = sum_of<T>(n, [=](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / T(n);
        const T inverse = T(1) / root(variance + T(1e-5));
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * inverse;
        a.deviation[l] = inverse;
        break;
      }
      case LayerKind::leaky_relu: {
        const T slope = T(layer.slope);
#pragma omp simd
        for (int64_t i = 0; i < layer.inputs; ++i) y[i] = x[i] > 0 ? x[i] : slope * x[i];
        break;
      }
      case LayerKind::flatten:  // grids are [channel, position], in torch's order
        __builtin_memcpy(y, x, sizeof(T) * static_cast<size_t>(layer.inputs));
        break;
    }
  }

  void backward_layer(int64_t l, const T* x, T* dx, const Activations<T>& a) {
    const LayerSpec& layer = layers_[l];
    const T* dy = delta_[l].data;
    switch (layer.kind) {
      case LayerKind::read:
        read_.backward(parameters_ + offset_[l], x, dy + layer.inputs, a.reading);
        break;
      case LayerKind::recurrent:
        recurrent_.backward(dy, a.recurrence);
        break;
      case LayerKind::bottleneck:
        table_.backward(dy);
        break;
      case LayerKind::linear:
        if (dx) affine_backward(parameters_ + offset_[l], dy, dx, layer.outputs, layer.inputs);
        break;
      case LayerKind::convolution:
        convolution_[l].backward(parameters_ + offset_[l], x, dy, dx);
        break;
      case LayerKind::layer_norm: {
        const int64_t n = layer.inputs;
        const T* y = a.output[l].data;
        const T mean = sum_of<T>(n, [=](int64_t i) { return dy[i]; }) / T(n);
        const T slope = sum_of<T>(n, [=](int64_t i) { return dy[i] * y[i]; }) / T(n), inverse = a.deviation[l];
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) dx[i] = inverse * (dy[i] - mean - y[i] * slope);
        break;
      }
      case LayerKind::leaky_relu: {
        const T slope = T(layer.slope);
#pragma omp simd
        for (int64_t i = 0; i < layer.inputs; ++i) dx[i] = x[i] > 0 ? dy[i] : slope * dy[i];
        break;
      }
      case LayerKind::flatten:
        __builtin_memcpy(dx, dy, sizeof(T) * static_cast<size_t>(layer.inputs));
        break;
    }
  }

  Rows<T> rows_of(double decay, double beta, double weight, double correction) const {
    Rows<T> rows{};
    rows.decay = T(decay), rows.beta = T(beta), rows.weight = T(weight);
    rows.correction = T(correction), rows.epsilon = T(rule_.epsilon);
    return rows;
  }

  // Call visit for the weights and for the biases of every layer that has them.
  template <class Visit>
  void each_layer(const Activations<T>& a, Rows<T> rows, Visit visit) const {
    auto at = [&](int64_t offset, const T* x, const T* d, int64_t row_count, int64_t n) {
      rows.z = trace_ + offset;
      rows.v = second_moment_ ? second_moment_ + offset : nullptr;
      rows.scaled = scratch_.scaled.data + offset;
      rows.gradient = scratch_.gradient.data;
      rows.x = x, rows.d = d, rows.rows = row_count, rows.n = n;
      visit(rows);
    };
    for (int64_t l = 0; l < count_; ++l) {
      const LayerSpec& layer = layers_[l];
      const T* x = l > 0 ? a.output[l - 1].data : a.input;
      if (layer.kind == LayerKind::linear) {
        at(offset_[l], x, delta_[l].data, layer.outputs, layer.inputs);
        at(offset_[l] + layer.outputs * layer.inputs, delta_[l].data, nullptr, 1, layer.outputs);
      } else if (layer.kind == LayerKind::recurrent) {
        const int64_t n = layer.features, start = offset_[l];
        at(start, x, recurrent_.delta_input.data, 3 * n, layer.inputs);
        at(start + recurrent_.hidden_weights(), recurrent_.before.data, recurrent_.delta_hidden.data, 3 * n, n);
        at(start + recurrent_.input_biases(), recurrent_.delta_input.data, nullptr, 1, 3 * n);
        at(start + recurrent_.hidden_biases(), recurrent_.delta_hidden.data, nullptr, 1, 3 * n);
      } else if (layer.kind == LayerKind::bottleneck) {
        table_.each_piece(a.look, [&](int64_t first, const T* gradient, int64_t n) {
          at(offset_[l] + first, gradient, nullptr, 1, n);
        });
      } else if (layer.kind == LayerKind::convolution || layer.kind == LayerKind::read) {
        const Array<T>& whole = layer.kind == LayerKind::read ? read_.gradient : convolution_[l].gradient;
        const T* gradient = whole.data;
        const int64_t n = whole.size;
        for (int64_t first = 0; first < n; first += kPiece)
          at(offset_[l] + first, gradient + first, nullptr, 1, n - first < kPiece ? n - first : kPiece);
      }
    }
  }

  int64_t longest_row() const {
    int64_t longest = kPiece;
    for (int64_t l = 0; l < count_; ++l) {
      const LayerSpec& layer = layers_[l];
      if (layer.kind == LayerKind::linear && layer.inputs > longest) longest = layer.inputs;
      if (layer.kind == LayerKind::linear && layer.outputs > longest) longest = layer.outputs;
      if (layer.kind == LayerKind::recurrent && layer.inputs > longest) longest = layer.inputs;
      if (layer.kind == LayerKind::recurrent && 3 * layer.features > longest) longest = 3 * layer.features;
    }
    return longest;
  }

  double bounded_step_size(double td_error, double norm) const {
    const double magnitude = __builtin_fabs(td_error) > 1.0 ? __builtin_fabs(td_error) : 1.0;
    const double overshoot = rule_.step_size * rule_.overshoot_margin * magnitude * norm;
    return overshoot > 1.0 ? rule_.step_size / overshoot : rule_.step_size;
  }

  double tame(double td_error, RuleState& state) const {
    const double beta = rule_.td_error_decay;
    const double correction = 1.0 - __builtin_pow(beta, double(state.updates));
    state.td_error_square = beta * state.td_error_square + (1.0 - beta) * td_error * td_error;
    const double cap = rule_.td_error_cap * __builtin_sqrt(state.td_error_square / correction);
    const double clipped = td_error > cap ? cap : td_error < -cap ? -cap : td_error;
    if (!rule_.normalize_td_error) return clipped;
    state.td_error_magnitude = beta * state.td_error_magnitude + (1.0 - beta) * __builtin_fabs(clipped);
    const double scale = state.td_error_magnitude / correction;
    return clipped / (scale > 1e-12 ? scale : 1e-12);
  }

  T *const parameters_, *const trace_, *const second_moment_;  // [size_]
  const int64_t size_;
  const RuleSpec rule_;
  const int64_t count_;
  Scratch<T>& scratch_;
  LayerSpec layers_[kMaxLayers];
  int64_t offset_[kMaxLayers];
  Array<T> delta_[kMaxLayers];  // d objective / d output of each layer
  Read<T> read_;
  Recurrent<T> recurrent_;
  Table<T> table_;
  Convolution<T> convolution_[kMaxLayers];
};
