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
