// Linear layers: y = W x + b, and back.

// y[o] = bias[o] + sum_i weight[o, i] x[i], four rows at a time so that x is read once for four.
template <class T>
static void affine(const T* __restrict weight, const T* __restrict bias, const T* __restrict x, T* __restrict y,
                   int64_t outputs, int64_t inputs) {
  int64_t o = 0;
  for (; o + 4 <= outputs; o += 4) {
    const T *w0 = weight + o * inputs, *w1 = w0 + inputs, *w2 = w1 + inputs, *w3 = w2 + inputs;
    T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < inputs; ++i) {
      s0 += w0[i] * x[i];
      s1 += w1[i] * x[i];
      s2 += w2[i] * x[i];
      s3 += w3[i] * x[i];
    }
    y[o] = bias[o] + s0;
    y[o + 1] = bias[o + 1] + s1;
    y[o + 2] = bias[o + 2] + s2;
    y[o + 3] = bias[o + 3] + s3;
  }
  for (; o < outputs; ++o) {
    const T* w = weight + o * inputs;
    T s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < inputs; ++i) s += w[i] * x[i];
    y[o] = bias[o] + s;
  }
}

// The same for two inputs at once: the weights, which are what takes time to read, are read once.
template <class T>
static void affine_pair(const T* __restrict weight, const T* __restrict bias, const T* __restrict x0,
                        const T* __restrict x1, T* __restrict y0, T* __restrict y1, int64_t outputs, int64_t inputs) {
  int64_t o = 0;
  for (; o + 2 <= outputs; o += 2) {
    const T *w0 = weight + o * inputs, *w1 = w0 + inputs;
    T s00 = 0, s01 = 0, s10 = 0, s11 = 0;
#pragma omp simd reduction(+ : s00, s01, s10, s11)
    for (int64_t i = 0; i < inputs; ++i) {
      s00 += w0[i] * x0[i];
      s01 += w0[i] * x1[i];
      s10 += w1[i] * x0[i];
      s11 += w1[i] * x1[i];
    }
    y0[o] = bias[o] + s00;
    y1[o] = bias[o] + s01;
    y0[o + 1] = bias[o + 1] + s10;
    y1[o + 1] = bias[o + 1] + s11;
  }
  if (o < outputs) {
    affine(weight + o * inputs, bias + o, x0, y0 + o, 1, inputs);
    affine(weight + o * inputs, bias + o, x1, y1 + o, 1, inputs);
  }
}

// dx[i] = sum_o weight[o, i] dy[o].
template <class T>
static void affine_backward(const T* __restrict weight, const T* __restrict dy, T* __restrict dx, int64_t outputs,
                            int64_t inputs) {
  zero(dx, inputs);
  int64_t o = 0;
  for (; o + 4 <= outputs; o += 4) {
    const T *w0 = weight + o * inputs, *w1 = w0 + inputs, *w2 = w1 + inputs, *w3 = w2 + inputs;
    const T d0 = dy[o], d1 = dy[o + 1], d2 = dy[o + 2], d3 = dy[o + 3];
#pragma omp simd
    for (int64_t i = 0; i < inputs; ++i) dx[i] += (w0[i] * d0 + w1[i] * d1) + (w2[i] * d2 + w3[i] * d3);
  }
  for (; o < outputs; ++o) {
    const T* w = weight + o * inputs;
    const T d = dy[o];
#pragma omp simd
    for (int64_t i = 0; i < inputs; ++i) dx[i] += w[i] * d;
  }
}

#if defined(STREAMWISE_LANES)
// The same three for float32, with as many sums under way as hide the latency of adding to one.

// sums[r] += w[r, i] x[i] over i, for `kRows` rows of one matrix and `kInputs` inputs: sums[input * kRows + row].
template <int kRows, int kInputs>
static inline void products(const float* w, const float* const (&x)[kInputs], int64_t n, Vector (&sums)[kRows * kInputs]) {
  for (Vector& sum : sums) sum = Lanes::all(0.0f);
  each_part(n, [&](int64_t i, auto part) {
    Vector x_at[kInputs];
    for (int k = 0; k < kInputs; ++k) x_at[k] = part.load(x[k] + i);
    for (int r = 0; r < kRows; ++r) {
      const Vector w_at = part.load(w + r * n + i);
      for (int k = 0; k < kInputs; ++k) sums[k * kRows + r] = Lanes::fused(w_at, x_at[k], sums[k * kRows + r]);
    }
  });
}

static inline void store_sums(const Vector* sums, const float* bias, float* y) {
  _mm_storeu_ps(y, _mm_add_ps(_mm_loadu_ps(bias), Lanes::sums(sums[0], sums[1], sums[2], sums[3])));
}

[[gnu::flatten]] static void affine(const float* weight, const float* bias, const float* x, float* y, int64_t outputs,
                                    int64_t inputs) {
  int64_t o = 0;
  for (; o + 8 <= outputs; o += 8) {
    Vector sums[8];
    products<8, 1>(weight + o * inputs, {x}, inputs, sums);
    store_sums(sums, bias + o, y + o);
    store_sums(sums + 4, bias + o + 4, y + o + 4);
  }
  for (; o < outputs; ++o) {
    Vector sums[1];
    products<1, 1>(weight + o * inputs, {x}, inputs, sums);
    y[o] = bias[o] + Lanes::sum(sums[0]);
  }
}

[[gnu::flatten]] static void affine_pair(const float* weight, const float* bias, const float* x0, const float* x1,
                                         float* y0, float* y1, int64_t outputs, int64_t inputs) {
  int64_t o = 0;
  for (; o + 4 <= outputs; o += 4) {
    Vector sums[8];
    products<4, 2>(weight + o * inputs, {x0, x1}, inputs, sums);
    store_sums(sums, bias + o, y0 + o);
    store_sums(sums + 4, bias + o, y1 + o);
  }
  for (; o < outputs; ++o) {
    Vector sums[2];
    products<1, 2>(weight + o * inputs, {x0, x1}, inputs, sums);
    y0[o] = bias[o] + Lanes::sum(sums[0]);
    y1[o] = bias[o] + Lanes::sum(sums[1]);
  }
}

// dx[i] += sum of kRows rows' w[r, i] dy[r].
template <int kRows>
static inline void add_rows(const float* w, const float* dy, float* dx, int64_t n) {
  Vector d[kRows];
  for (int r = 0; r < kRows; ++r) d[r] = Lanes::all(dy[r]);
  each_part(n, [&](int64_t i, auto part) {
    Vector even = part.load(dx + i), odd = Lanes::all(0.0f);
    for (int r = 0; r < kRows; ++r) {
      Vector& half = r % 2 ? odd : even;
      half = Lanes::fused(d[r], part.load(w + r * n + i), half);
    }
    part.store(dx + i, Lanes::add(even, odd));
  });
}

[[gnu::flatten]] static void affine_backward(const float* weight, const float* dy, float* dx, int64_t outputs,
                                             int64_t inputs) {
  zero(dx, inputs);
  int64_t o = 0;
  for (; o + 8 <= outputs; o += 8) add_rows<8>(weight + o * inputs, dy + o, dx, inputs);
  for (; o < outputs; ++o) add_rows<1>(weight + o * inputs, dy + o, dx, inputs);
}
#endif
