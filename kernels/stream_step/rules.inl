// Step-size rules: what they do to the trace of one layer.

// The gradient of row o of a linear layer is d[o] * x[0..n): it is made here and never stored. Norms are summed in
// the arrays' precision over a few rows, then in double.

constexpr int64_t kRowsPerSum = 8;
constexpr int64_t kPiece = 1024;  // of a convolution's gradient: a row of its own, for the same reason

template <class T>
struct Rows {
  T *z, *v, *scaled;  // [rows, n]; v and scaled are not used by obgd
  const T* x;         // [n]
  const T* d;         // [rows], or null for ones
  T* gradient;        // scratch: in lanes, room for `kLanes` rows and a vector more
  int64_t rows, n;
  T decay, beta, weight, correction, epsilon;

  T slope(int64_t o) const { return d ? d[o] : T(1); }
};

struct Norms {
  double gradient = 0.0, trace = 0.0;
  double scale = 1.0;  // what `scaled` still has to be multiplied by
};

// z <- decay z + g. Returns the sum of |z|.
template <class T>
static double obgd(const Rows<T>& r) {
  double norm = 0.0;
  for (int64_t o = 0; o < r.rows; ++o) {
    T* __restrict z = r.z + o * r.n;
    const T* __restrict x = r.x;
    const T d = r.slope(o), decay = r.decay;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < r.n; ++i) {
      const T now = decay * z[i] + d * x[i];
      z[i] = now;
      sum += now < 0 ? -now : now;
    }
    norm += double(sum);
  }
  return norm;
}

// The same, then v <- beta v + weight z^2 and scaled = z / sqrt(v correction + epsilon). Returns the sum of |scaled|.
template <class T>
static double adaptive(const Rows<T>& r) {
  double norm = 0.0;
  for (int64_t o = 0; o < r.rows; ++o) {
    T *__restrict z = r.z + o * r.n, *__restrict v = r.v + o * r.n, *__restrict scaled = r.scaled + o * r.n;
    const T* __restrict x = r.x;
    const T d = r.slope(o), decay = r.decay, beta = r.beta, weight = r.weight;
    const T correction = r.correction, epsilon = r.epsilon;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < r.n; ++i) {
      const T now = decay * z[i] + d * x[i];
      z[i] = now;
      const T moment = beta * v[i] + weight * now * now;
      v[i] = moment;
      const T s = now / root(moment * correction + epsilon);
      scaled[i] = s;
      sum += s < 0 ? -s : s;
    }
    norm += double(sum);
  }
  return norm;
}

// v <- beta v + weight g^2, z <- decay z + g and scaled = z / (sqrt(v correction) + epsilon). Returns the norms of
// gradient and trace, each entry's square divided by the same root.
template <class T>
static Norms intentional(const Rows<T>& r) {
  Norms norms;
  for (int64_t o = 0; o < r.rows; ++o) {
    T *__restrict z = r.z + o * r.n, *__restrict v = r.v + o * r.n, *__restrict scaled = r.scaled + o * r.n;
    const T* __restrict x = r.x;
    const T d = r.slope(o), decay = r.decay, beta = r.beta, weight = r.weight;
    const T correction = r.correction, epsilon = r.epsilon;
    T gradient = 0, trace = 0;
#pragma omp simd reduction(+ : gradient, trace)
    for (int64_t i = 0; i < r.n; ++i) {
      const T g = d * x[i];
      const T square = g * g;
      const T moment = beta * v[i] + weight * square;
      v[i] = moment;
      const T inverse = T(1) / (root(moment * correction) + epsilon);
      const T now = decay * z[i] + g;
      z[i] = now;
      const T s = now * inverse;
      scaled[i] = s;
      gradient += square * inverse;
      trace += now * s;
    }
    norms.gradient += double(gradient);
    norms.trace += double(trace);
  }
  return norms;
}

#if defined(STREAMWISE_LANES)
// The same three for float32; flattened, for a call for every vector would cost as much as its work.
//
// Call step(at, g, part) for every vector of the gradient, where `at` counts from the first row's first weight; sum()
// comes every few rows and after the last.
template <class Step, class Sum>
static inline void each_vector(const Rows<float>& r, Step step, Sum sum) {
  const int64_t n = r.n, rows = r.rows;
  const float* const x = r.x;
  if (n % Lanes::kWidth == 0) {
    for (int64_t o = 0; o < rows; ++o) {
      const Vector d = Lanes::all(r.slope(o));
      for (int64_t i = 0; i < n; i += Lanes::kWidth)
        step(o * n + i, Lanes::multiply(d, Lanes::load(x + i)), Whole{});
      if (o % kRowsPerSum == kRowsPerSum - 1) sum();
    }
    sum();
    return;
  }
  // Rows that end within a vector are written one behind the other, as many as make whole vectors: masked stores, one a
  // row, cost some processors more than all the rest. What a row leaves beyond its end, the next covers.
  float* const gradient = r.gradient;
  const int64_t block = Lanes::kWidth / (n & -n);
  for (int64_t first = 0; first < rows; first += block) {
    const int64_t count = rows - first < block ? rows - first : block;
    for (int64_t o = 0; o < count; ++o) {
      const Vector d = Lanes::all(r.slope(first + o));
      each_part(n, [&](int64_t i, auto part) {
        Lanes::store(gradient + o * n + i, Lanes::multiply(d, part.load(x + i)));
      });
    }
    each_part(count * n, [&](int64_t i, auto part) { step(first * n + i, part.load(gradient + i), part); });
    sum();
  }
}

[[gnu::flatten]] static double obgd(const Rows<float>& r) {
  float* const z = r.z;  // a copy: vector stores may alias anything reached by reference
  const Vector decay = Lanes::all(r.decay), none = Lanes::all(0.0f);
  Vector partial = none;
  double norm = 0.0;
  each_vector(
      r,
      [=, &partial](int64_t at, Vector g, auto part) {
        const Vector now = Lanes::fused(decay, part.load(z + at), g);
        part.store(z + at, now);
        partial = Lanes::add(partial, Lanes::magnitude(now));
      },
      [&] {
        norm += double(Lanes::sum(partial));
        partial = none;
      });
  return norm;
}

[[gnu::flatten]] static double adaptive(const Rows<float>& r) {
  float *const z = r.z, *const v = r.v, *const scaled = r.scaled;
  const Vector decay = Lanes::all(r.decay), beta = Lanes::all(r.beta), weight = Lanes::all(r.weight);
  const Vector correction = Lanes::all(r.correction), epsilon = Lanes::all(r.epsilon), none = Lanes::all(0.0f);
  Vector partial = none;
  double norm = 0.0;
  each_vector(
      r,
      [=, &partial](int64_t at, Vector g, auto part) {
        const Vector now = Lanes::fused(decay, part.load(z + at), g);
        const Vector moment = Lanes::fused(beta, part.load(v + at), Lanes::multiply(weight, Lanes::multiply(now, now)));
        const Vector s = Lanes::multiply(now, inverse_root(Lanes::fused(moment, correction, epsilon)));
        part.store(z + at, now);
        part.store(v + at, moment);
        part.store(scaled + at, s);
        partial = Lanes::add(partial, Lanes::magnitude(s));
      },
      [&] {
        norm += double(Lanes::sum(partial));
        partial = none;
      });
  return norm;
}

[[gnu::flatten]] static Norms intentional(const Rows<float>& r) {
  float *const z = r.z, *const v = r.v, *const scaled = r.scaled;
  const Vector decay = Lanes::all(r.decay), weight = Lanes::all(r.weight), none = Lanes::all(0.0f);
  // sqrt(v correction) + epsilon = (sqrt(v) + epsilon / root) root: one multiplication less for each weight.
  const float correction_root = root(r.correction);
  const Vector epsilon = Lanes::all(r.epsilon / correction_root);
  Vector gradient = none, trace = none;
  Norms norms;
  norms.scale = 1.0 / double(correction_root);
  each_vector(
      r,
      [=, &gradient, &trace](int64_t at, Vector g, auto part) {
        const Vector square = Lanes::multiply(g, g), before = part.load(v + at);
        // beta v + (1 - beta) g^2 with one multiplication: those are what this loop waits for.
        const Vector moment = Lanes::fused(weight, Lanes::subtract(square, before), before);
        const Vector now = Lanes::fused(decay, part.load(z + at), g);
        const Vector inverse = inverse_root_plus(moment, epsilon);
        const Vector s = Lanes::multiply(now, inverse);
        part.store(v + at, moment);
        part.store(z + at, now);
        part.store(scaled + at, s);
        gradient = Lanes::fused(square, inverse, gradient);
        trace = Lanes::fused(now, s, trace);
      },
      [&] {
        norms.gradient += double(Lanes::sum(gradient)) * norms.scale;
        norms.trace += double(Lanes::sum(trace)) * norms.scale;
        gradient = trace = none;
      });
  return norms;
}
#endif

template <class T>
static void axpy(T* __restrict w, const T* __restrict z, T factor, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) w[i] += factor * z[i];
}
