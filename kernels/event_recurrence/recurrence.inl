// The recurrence of the neural Hawkes process, for each instruction set again. Nothing here includes a header;
// reference.py is the definition, and the names are the names there.

enum Gate : int64_t { kKeep, kKeepTarget, kAdd, kAddTarget, kOutput, kUpdate, kDecay };
// What is kept of a step: the first four of its gates, as shares, and then these. Fall: exp(-decay gap). Squashed: the
// tanh of the cell just before the step. Slope: of the softplus.
enum Kept : int64_t { kNew = 4, kSlope, kFall, kSquashed };

constexpr int64_t kRows = 4;  // sequences side by side: chains of additions that overlap, in registers
template <class T>
constexpr int64_t kPanel = 2 * Wide<T>::kWidth;  // columns that are added up at once

// --- functions ---------------------------------------------------------------------------------------------------

// exp(-x), and zero where that is hardly a number: times a gap that is as large as it is small, it would be one.
static inline float fall_of(float x) { return x > 87.0f ? 0.0f : exp_of(-x); }
static inline double fall_of(double x) { return exp_of(-x); }

// log(1 + exp(x)), which from 20 on is x, as in torch.
template <class T>
static inline T softplus(T x) {
  return x > T(20) ? x : log1p_of(exp_of(x));
}

template <class T>
static inline T softplus_slope(T x) {
  return x > T(20) ? T(1) : sigmoid(x);
}

// --- products ----------------------------------------------------------------------------------------------------

template <class T>
static inline int64_t padded(int64_t columns) {
  return (columns + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

// A matrix [m, n], whose entry (i, j) is at w[i * down + j * across], as panels [panels, m, kPanel].
template <class T>
static void pack(Array<T>& panels, const T* w, int64_t m, int64_t n, int64_t down, int64_t across) {
  panels.allocate(m * padded<T>(n));
  T* to = panels.data;
  for (int64_t first = 0; first < n; first += kPanel<T>)
    for (int64_t i = 0; i < m; ++i, to += kPanel<T>)
      for (int64_t j = 0; j < kPanel<T> && first + j < n; ++j) to[j] = w[i * down + (first + j) * across];
}

// y = x w, x: [kRows, m], y: [kRows, padded(n)].
template <class T>
static void multiply(const Array<T>& x, const Array<T>& panels, Array<T>& y, int64_t m, int64_t n) {
  using V = Wide<T>;
  const int64_t stride = padded<T>(n);
  const T* w = panels.data;
  for (int64_t j = 0; j < stride; j += kPanel<T>) {
    typename V::Vector left[kRows] = {}, right[kRows] = {};
    for (int64_t i = 0; i < m; ++i, w += kPanel<T>) {
      const typename V::Vector a = V::load(w), b = V::load(w + V::kWidth);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kRows; ++r) {
        const T at = x[r * m + i];
        left[r] += at * a;
        right[r] += at * b;
      }
    }
#pragma GCC unroll 4
    for (int64_t r = 0; r < kRows; ++r) {
      V::store(y.data + r * stride + j, left[r]);
      V::store(y.data + r * stride + j + V::kWidth, right[r]);
    }
  }
}

// --- steps -------------------------------------------------------------------------------------------------------

// A step of a sequence: where it is in the arrays, and what the step before left, zeros if there is none.
template <class T>
struct Step {
  int64_t place;
  const T *cell, *target, *decay, *output;
  T gap;
};

template <class T>
static Step<T> step_at(const Recurrence<T>& s, const Parts<const T>& parts, int64_t sequence, int64_t i, const T* zeros) {
  const int64_t place = sequence * s.steps + i, before = (place - 1) * s.width;
  if (i == 0) return {place, zeros, zeros, zeros, zeros, T(0)};
  return {place, parts.cells + before, parts.targets + before, parts.decays + before, parts.outputs + before, s.gaps[place]};
}

// How many of kRows sequences, from the `first` longest on, have a step number i.
template <class T>
static int64_t open_at(const Recurrence<T>& s, int64_t first, int64_t i) {
  int64_t rows = s.count - first < kRows ? s.count - first : kRows;
  while (rows > 0 && s.lengths[s.order[first + rows - 1]] <= i) --rows;
  return rows;
}

// The state just before a step, of which its gates are made.
template <class T>
static void approach(const Step<T>& at, T* cell, T* state, T* kept, int64_t D) {
#pragma omp simd
  for (int64_t d = 0; d < D; ++d) {
    const T fall = fall_of(at.decay[d] * at.gap);
    cell[d] = at.target[d] + (at.cell[d] - at.target[d]) * fall;
    const T squashed = tanh_of(cell[d]);
    state[d] = at.output[d] * squashed;
    kept[kFall * D + d] = fall;
    kept[kSquashed * D + d] = squashed;
  }
}

// What a step leaves. x, y: what inputs and state add to the gates, which are their sum.
template <class T>
static void take(const Step<T>& at, const T* x, const T* y, const T* before, const Parts<T>& parts, T* kept, int64_t D) {
  T *cell = parts.cells + at.place * D, *target = parts.targets + at.place * D;
  T *decay = parts.decays + at.place * D, *output = parts.outputs + at.place * D;
#pragma omp simd
  for (int64_t d = 0; d < D; ++d) {
    const T keep = sigmoid(x[kKeep * D + d] + y[kKeep * D + d]);
    const T keep_target = sigmoid(x[kKeepTarget * D + d] + y[kKeepTarget * D + d]);
    const T add = sigmoid(x[kAdd * D + d] + y[kAdd * D + d]);
    const T add_target = sigmoid(x[kAddTarget * D + d] + y[kAddTarget * D + d]);
    const T update = tanh_of(x[kUpdate * D + d] + y[kUpdate * D + d]);
    cell[d] = keep * before[d] + add * update;
    target[d] = keep_target * at.target[d] + add_target * update;
    kept[kKeep * D + d] = keep;
    kept[kKeepTarget * D + d] = keep_target;
    kept[kAdd * D + d] = add;
    kept[kAddTarget * D + d] = add_target;
    kept[kNew * D + d] = update;
  }
#pragma omp simd
  for (int64_t d = 0; d < D; ++d) {
    const T before_softplus = x[kDecay * D + d] + y[kDecay * D + d];
    output[d] = sigmoid(x[kOutput * D + d] + y[kOutput * D + d]);
    decay[d] = softplus(before_softplus);
    kept[kSlope * D + d] = softplus_slope(before_softplus);
  }
}

template <class T>
static void clear_pads(const Recurrence<T>& s, T* x, int64_t width) {
  for (int64_t b = 0; b < s.count; ++b) zero(x + (b * s.steps + s.lengths[b]) * width, (s.steps - s.lengths[b]) * width);
}

template <class T>
static void recur(const Recurrence<T>& s, const T* inputs, const Parts<T>& parts, T* states, T* kept) {
  const FlushDenormals flush;  // of numbers that decay
  const int64_t D = s.width, gates = kGates * D;
  const Parts<const T> left{parts.cells, parts.targets, parts.decays, parts.outputs};
  Array<T> weight, zeros, cells, hidden, sums, spare;
  pack(weight, s.weight, D, gates, 1, D);
  zeros.allocate(D), cells.allocate(kRows * D), hidden.allocate(kRows * D);
  sums.allocate(kRows * padded<T>(gates)), spare.allocate(kRows * kKept * D);
  for (int64_t first = 0; first < s.count; first += kRows)
    for (int64_t i = 0, open; (open = open_at(s, first, i)) > 0; ++i) {
      Step<T> at[kRows];
      T* keep[kRows];
      for (int64_t r = 0; r < open; ++r) {
        at[r] = step_at(s, left, s.order[first + r], i, zeros.data);
        keep[r] = kept == nullptr ? spare.data + r * kKept * D : kept + at[r].place * kKept * D;
        approach(at[r], cells.data + r * D, hidden.data + r * D, keep[r], D);
        if (states != nullptr)
          for (int64_t d = 0; d < D; ++d) states[at[r].place * D + d] = hidden[r * D + d];
      }
      multiply(hidden, weight, sums, D, gates);
      for (int64_t r = 0; r < open; ++r)
        take(at[r], inputs + at[r].place * gates, sums.data + r * padded<T>(gates), cells.data + r * D, parts, keep[r], D);
    }
  T* const filled[] = {parts.cells, parts.targets, parts.decays, parts.outputs, states};
  for (T* part : filled)
    if (part != nullptr) clear_pads(s, part, D);
}

// --- and back ----------------------------------------------------------------------------------------------------

// The gradient of what a step leaves, carried from one sequence's step to the one before it.
template <class T>
struct Carried {
  T *cell, *target, *decay, *output;
};

// To the gates of a step. What it leaves are functions of these, and of the cell and target before: `of` becomes what
// reaches those directly.
template <class T>
static void take_back(const Step<T>& at, const Parts<const T>& given, const T* output, const T* kept, const Carried<T>& of,
                      T* of_gates, int64_t D) {
  const T *of_cell = given.cells + at.place * D, *of_target = given.targets + at.place * D;
  const T *of_decay = given.decays + at.place * D, *of_output = given.outputs + at.place * D;
#pragma omp simd
  for (int64_t d = 0; d < D; ++d) {
    const T cell = of.cell[d] + of_cell[d], target = of.target[d] + of_target[d];
    const T keep = kept[kKeep * D + d], keep_target = kept[kKeepTarget * D + d];
    const T add = kept[kAdd * D + d], add_target = kept[kAddTarget * D + d], update = kept[kNew * D + d];
    const T before = at.target[d] + (at.cell[d] - at.target[d]) * kept[kFall * D + d];
    of_gates[kKeep * D + d] = cell * before * keep * (T(1) - keep);
    of_gates[kKeepTarget * D + d] = target * at.target[d] * keep_target * (T(1) - keep_target);
    of_gates[kAdd * D + d] = cell * update * add * (T(1) - add);
    of_gates[kAddTarget * D + d] = target * update * add_target * (T(1) - add_target);
    of_gates[kOutput * D + d] = (of.output[d] + of_output[d]) * output[d] * (T(1) - output[d]);
    of_gates[kUpdate * D + d] = (cell * add + target * add_target) * (T(1) - update * update);
    of_gates[kDecay * D + d] = (of.decay[d] + of_decay[d]) * kept[kSlope * D + d];
    of.cell[d] = cell * keep;
    of.target[d] = target * keep_target;
  }
}

// From the state and the cell just before a step, whose gradient is `of.cell`, to what the step before it left.
template <class T>
static void approach_back(const Step<T>& at, const T* of_state, const T* kept, const Carried<T>& of, int64_t D) {
#pragma omp simd
  for (int64_t d = 0; d < D; ++d) {
    const T fall = kept[kFall * D + d], squashed = kept[kSquashed * D + d];
    const T cell = of.cell[d] + of_state[d] * at.output[d] * (T(1) - squashed * squashed);
    of.cell[d] = cell * fall;
    of.target[d] += cell * (T(1) - fall);
    of.decay[d] = -cell * (at.cell[d] - at.target[d]) * fall * at.gap;
    of.output[d] = of_state[d] * squashed;
  }
}

template <class T>
static void recur_back(const Recurrence<T>& s, const Parts<const T>& parts, const T* kept, const Parts<const T>& of_parts,
                       T* of_inputs) {
  const FlushDenormals flush;
  const int64_t D = s.width, gates = kGates * D;
  Array<T> weight, zeros, carried, of_gates, of_states;
  pack(weight, s.weight, gates, D, D, 1);
  zeros.allocate(D), carried.allocate(kRows * 4 * D);
  of_gates.allocate(kRows * gates), of_states.allocate(kRows * padded<T>(D));
  for (int64_t first = 0; first < s.count; first += kRows) {
    zero(carried.data, carried.size);
    for (int64_t i = s.lengths[s.order[first]] - 1; i >= 0; --i) {
      const int64_t open = open_at(s, first, i);
      Step<T> at[kRows];
      Carried<T> of[kRows];
      for (int64_t r = 0; r < open; ++r) {
        at[r] = step_at(s, parts, s.order[first + r], i, zeros.data);
        T* row = carried.data + r * 4 * D;
        of[r] = {row, row + D, row + 2 * D, row + 3 * D};
        take_back(at[r], of_parts, parts.outputs + at[r].place * D, kept + at[r].place * kKept * D, of[r],
                  of_gates.data + r * gates, D);
        for (int64_t j = 0; j < gates; ++j) of_inputs[at[r].place * gates + j] = of_gates[r * gates + j];
      }
      if (i == 0) continue;
      multiply(of_gates, weight, of_states, gates, D);
      for (int64_t r = 0; r < open; ++r)
        approach_back(at[r], of_states.data + r * padded<T>(D), kept + at[r].place * kKept * D, of[r], D);
    }
  }
  clear_pads(s, of_inputs, gates);
}

// --- times between steps -----------------------------------------------------------------------------------------

template <class T>
static void ask(const Asked<T>& s, const Parts<const T>& parts, T* states) {
  const int64_t D = s.width;
  for (int64_t group = 0; group < s.count * s.groups; ++group) {
    const int64_t at = (group / s.groups * s.steps + s.seen[group]) * D;
    const T *cell = parts.cells + at, *target = parts.targets + at, *decay = parts.decays + at, *output = parts.outputs + at;
    for (int64_t n = 0; n < s.times; ++n, states += D) {
      const T gap = s.gaps[group * s.times + n];
#pragma omp simd
      for (int64_t d = 0; d < D; ++d)
        states[d] = output[d] * tanh_of(target[d] + (cell[d] - target[d]) * fall_of(decay[d] * gap));
    }
  }
}

template <class T>
static void ask_back(const Asked<T>& s, const Parts<const T>& parts, const T* of_states, const Parts<T>& of_parts) {
  const FlushDenormals flush;
  const int64_t D = s.width;
  T* const filled[] = {of_parts.cells, of_parts.targets, of_parts.decays, of_parts.outputs};
  for (T* part : filled) zero(part, s.count * s.steps * D);
  for (int64_t group = 0; group < s.count * s.groups; ++group) {
    const int64_t at = (group / s.groups * s.steps + s.seen[group]) * D;
    const T *cell = parts.cells + at, *target = parts.targets + at, *decay = parts.decays + at, *output = parts.outputs + at;
    T *of_cell = of_parts.cells + at, *of_target = of_parts.targets + at;
    T *of_decay = of_parts.decays + at, *of_output = of_parts.outputs + at;
    for (int64_t n = 0; n < s.times; ++n, of_states += D) {
      const T gap = s.gaps[group * s.times + n];
#pragma omp simd
      for (int64_t d = 0; d < D; ++d) {
        const T fall = fall_of(decay[d] * gap), apart = cell[d] - target[d];
        const T squashed = tanh_of(target[d] + apart * fall);
        const T of = of_states[d] * output[d] * (T(1) - squashed * squashed);
        of_cell[d] += of * fall;
        of_target[d] += of * (T(1) - fall);
        of_decay[d] -= of * apart * fall * gap;
        of_output[d] += of_states[d] * squashed;
      }
    }
  }
}

template <class T>
static Functions<T> functions() {
  return {recur<T>, recur_back<T>, ask<T>, ask_back<T>};
}
