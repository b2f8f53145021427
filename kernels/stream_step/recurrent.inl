// A gated recurrent unit beside the observation, with the gradient of one step: memory/recurrent.py.

// What one step leaves behind for its backward pass.
template <class T>
struct Recurrence {
  Array<T> before, of_input, of_hidden, gates;  // [features], [3 features] each: reset, update, new
};

// y = [x, the state after x]. The weights are torch's: of the input [3 features, inputs], of the state [3 features,
// features], and the biases of both.
template <class T>
class Recurrent {
 public:
  void prepare(const LayerSpec& layer, T* hidden) {
    inputs_ = layer.inputs, features_ = layer.features, hidden_ = hidden;
    delta_input.allocate(3 * features_);
    delta_hidden.allocate(3 * features_);
    before.allocate(features_);
  }

  void prepare(Recurrence<T>& r) const {
    r.before.allocate(features_);
    r.of_input.allocate(3 * features_);
    r.of_hidden.allocate(3 * features_);
    r.gates.allocate(3 * features_);
  }

  int64_t parameter_count() const { return 3 * features_ * (inputs_ + features_ + 2); }
  int64_t hidden_weights() const { return 3 * features_ * inputs_; }  // where they begin; then the biases
  int64_t input_biases() const { return hidden_weights() + 3 * features_ * features_; }
  int64_t hidden_biases() const { return input_biases() + 3 * features_; }

  void forward(const T* w, const T* x, T* y, Recurrence<T>& r) const {
    const int64_t n = features_;
    __builtin_memcpy(y, x, sizeof(T) * static_cast<size_t>(inputs_));
    __builtin_memcpy(r.before.data, hidden_, sizeof(T) * static_cast<size_t>(n));
    affine(w, w + input_biases(), x, r.of_input.data, 3 * n, inputs_);
    affine(w + hidden_weights(), w + hidden_biases(), r.before.data, r.of_hidden.data, 3 * n, n);
    for (int64_t i = 0; i < n; ++i) {
      const T reset = logistic(r.of_input[i] + r.of_hidden[i]);
      const T update = logistic(r.of_input[n + i] + r.of_hidden[n + i]);
      const T fresh = T(__builtin_tanh(double(r.of_input[2 * n + i] + reset * r.of_hidden[2 * n + i])));
      r.gates[i] = reset, r.gates[n + i] = update, r.gates[2 * n + i] = fresh;
      y[inputs_ + i] = (T(1) - update) * fresh + update * r.before[i];
    }
  }

  // d objective / d y into the two deltas, by which input and state are multiplied for the weights' gradient.
  void backward(const T* dy, const Recurrence<T>& r) {
    const int64_t n = features_;
    for (int64_t i = 0; i < n; ++i) {
      const T d = dy[inputs_ + i], reset = r.gates[i], update = r.gates[n + i], fresh = r.gates[2 * n + i];
      const T of_fresh = d * (T(1) - update) * (T(1) - fresh * fresh);
      const T of_update = d * (r.before[i] - fresh) * update * (T(1) - update);
      const T of_reset = of_fresh * r.of_hidden[2 * n + i] * reset * (T(1) - reset);
      delta_input[i] = delta_hidden[i] = of_reset;
      delta_input[n + i] = delta_hidden[n + i] = of_update;
      delta_input[2 * n + i] = of_fresh;
      delta_hidden[2 * n + i] = of_fresh * reset;
    }
    __builtin_memcpy(before.data, r.before.data, sizeof(T) * static_cast<size_t>(n));
  }

  // The state that a forward pass led to becomes the state.
  void move_on(const T* y) { __builtin_memcpy(hidden_, y + inputs_, sizeof(T) * static_cast<size_t>(features_)); }
  void clear() { zero(hidden_, features_); }

  Array<T> delta_input, delta_hidden, before;

 private:
  static T logistic(T x) { return T(1.0 / (1.0 + __builtin_exp(-double(x)))); }

  int64_t inputs_ = 0, features_ = 0;
  T* hidden_ = nullptr;
};
