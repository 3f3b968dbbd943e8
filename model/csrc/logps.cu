// The reduction at the heart of the fused head: a row of logits z (V,) and its target y ->
//   log p_y, the entropy H of p = softmax(z), whether no token is likelier than y, and the gradient
//   g_j = a (1[j = y] - p_j) - b p_j (log p_j + H),  the derivative of a log p_y + b H.
//
// One block reduces one row. The first pass reads the row once, from its end to its start, and
// keeps a running maximum and two sums per thread. The second pass, made only where a gradient is
// asked for, reads the row from its start, so that it finds in the L2 cache what was read last, and
// writes the gradient, over the logits if need be. Neither p nor log p is ever in memory.
//
// With w_j = z_j log2(e) - base and base = max z log2(e), in float32:
//   s = sum_{j != y} 2^w_j,  t = sum_{j != y} 2^w_j w_j,  total = s + 2^w_y.
// The target stays out of the sums, so 1 - p_y = s / total is exact to float32's relative precision
// even where p_y rounds to 1. There the entropy, as a sum of terms of one sign, is as exact.
//
// A target outside [0, V), NaN, +inf, or a row of -inf alone makes all of the row's results NaN. A
// logit below -1e38, as -inf, is a token of probability 0; one above 2e38 counts as +inf. V is
// below 2^31 and row offsets are 64-bit. No atomic is used: the results are the same in every run.
// No header is included: NVRTC compiles this alone.

// Two blocks fit into a multiprocessor at 64 registers a thread. Its 1024 threads then have 64
// bytes each on their way, 64 KiB in all, where an H200's 4.8 TB/s and about 0.8 us need 30 KiB,
// and one block loads while the other meets at its barriers.
#define THREADS 512
#define UNROLL 4  // loads of 16 bytes that a thread waits for at once
#define WARPS (THREADS / 32)

constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.693147181f;
constexpr float LOWEST = -1e38f;   // where a maximum starts: finite, so that there is no inf - inf
constexpr float NOTHING = -3e38f;  // stands for a logit that is left out
constexpr float FLOOR = -200.f;    // 2^FLOOR is 0 in float32; 0 * FLOOR is 0, 0 * -inf would be NaN

// ------------------------------------------------------------------------------------------------
// the three dtypes, by their bits

struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };

// N elements that one instruction moves
template <typename T, int N> struct alignas(N * sizeof(T)) Pack { T item[N]; };

__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ float widen(bfloat16 x) {
  return __uint_as_float((unsigned)x.bits << 16);
}

__device__ __forceinline__ float widen(float16 x) {
  unsigned bits = (x.bits & 0x7fffu) << 13;  // float32's exponent minus 112, also for subnormals
  float size = __uint_as_float(bits) * 0x1p112f;
  if (bits >= 0x0f800000u) size = __uint_as_float(bits | 0x7f800000u);  // inf and NaN
  return __uint_as_float(__float_as_uint(size) | (x.bits & 0x8000u) << 16);
}

// Round to nearest, ties to even.
template <typename T> __device__ __forceinline__ T narrow(float x);

template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }

template <> __device__ __forceinline__ bfloat16 narrow<bfloat16>(float x) {
  unsigned bits = __float_as_uint(x);
  if (x != x) return bfloat16{0x7fff};  // the sum below could carry a NaN into the sign
  return bfloat16{(unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <> __device__ __forceinline__ float16 narrow<float16>(float x) {
  unsigned bits = __float_as_uint(x) & 0x7fffffffu;
  unsigned sign = __float_as_uint(x) >> 16 & 0x8000u;
  unsigned half;
  if (bits > 0x7f800000u) half = 0x7fff;  // NaN
  else if (bits >= 0x47800000u) half = 0x7c00;  // 65536 and more; the carry below gives inf too
  else if (bits < 0x38800000u)  // subnormal: float32 has float16's spacing, 2^-24, from 0.5 on
    half = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000u;
  else half = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13;
  return float16{(unsigned short)(sign | half)};
}

// ------------------------------------------------------------------------------------------------
// one thread's running sums

__device__ __forceinline__ float power_of_2(float x) {  // within 2 ulp, subnormals flushed to 0
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

struct Sums {
  float peak;  // the largest logit
  float base;  // peak * log2(e), rounded once: every w is relative to this very number
  float s, t;
};

// sum 2^(w + d) (w + d) = 2^d (t + d s)
__device__ __forceinline__ void rebase(Sums& sums, float peak) {
  float base = __fmul_rn(peak, LOG2_E);  // never fused into what follows
  float d = fmaxf(sums.base - base, FLOOR);
  float scale = power_of_2(d);
  sums = {peak, base, scale * sums.s, scale * (sums.t + d * sums.s)};
}

// One power of 2 per logit and one for the maximum; NaN gets into s, and from there everywhere.
template <int N> __device__ __forceinline__ void absorb(Sums& sums, const float (&z)[N]) {
  float peak = sums.peak;
#pragma unroll
  for (int k = 0; k < N; k++) peak = fmaxf(peak, z[k]);
  rebase(sums, peak);
#pragma unroll
  for (int k = 0; k < N; k++) {
    float w = fmaf(z[k], LOG2_E, -sums.base);
    float e = power_of_2(w);
    sums.s += e;
    sums.t += e * fmaxf(w, FLOOR);
  }
}

// ------------------------------------------------------------------------------------------------
// one number from all threads, the same bits in each; every warp adds up the warps' parts itself

__device__ __forceinline__ float block_max(float x, float* parts) {
  for (int mask = 16; mask; mask /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = parts[threadIdx.x % WARPS];
  for (int mask = 16; mask; mask /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, mask));
  return x;
}

__device__ __forceinline__ float block_sum(float x, float* parts) {
  for (int mask = 16; mask; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < WARPS ? parts[threadIdx.x % 32] : 0.f;
  for (int mask = 16; mask; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  return x;
}

// ------------------------------------------------------------------------------------------------
// the kernel

// In place, a row's gradient begins at the byte where its logits begin. Where the two have one
// width, every byte is read and written by the same thread. Where the gradient is narrower, its
// elements [0, j) end before the logits [0, j) do, and tiles go forward with a barrier between a
// tile's reads and its writes: what is overwritten has been read by all. The target's logit and the
// edges (below) are in registers since before the first pass's barriers.
template <typename Logit, typename Gradient>
__device__ __forceinline__ void reduce_rows(
    Logit* logits, long long logits_stride, const long long* targets, long long vocabulary,
    float* logps, float* entropy, float* hits, Gradient* gradient, long long gradient_stride,
    const float* grad_logps, const float* grad_entropy) {
  constexpr int N = 16 / sizeof(Logit);
  __shared__ float parts[3][WARPS];
  const long long row = blockIdx.x;
  const int thread = threadIdx.x;
  const int V = (int)vocabulary;
  logits += row * logits_stride;

  const bool in_range = targets[row] >= 0 && targets[row] < vocabulary;
  const int target = in_range ? (int)targets[row] : -1;
  const float z_y = in_range ? widen(logits[target]) : __uint_as_float(0x7fc00000u);  // NaN

  // The row is a head of fewer than N logits up to an address that 16 divides, packs of N, and a
  // tail of fewer than N. Each of the first threads takes one logit of head and tail, the edges.
  const int head = min(V, (int)((0 - (unsigned long long)logits) % 16 / sizeof(Logit)));
  const int packs = (V - head) / N;
  const int edges = V - packs * N;
  const int tiles = (packs + THREADS * UNROLL - 1) / (THREADS * UNROLL);
  const int edge = thread < head ? thread : V - edges + thread;
  const float z_edge = thread < edges ? widen(logits[edge]) : NOTHING;
  const Pack<Logit, N>* body = (const Pack<Logit, N>*)(logits + head);

  auto load_tile = [&](int tile, Pack<Logit, N> (&loaded)[UNROLL]) {
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int pack = (tile * UNROLL + u) * THREADS + thread;
      if (pack < packs) loaded[u] = body[pack];
    }
  };

  // First pass: everything but the target.
  const float base = __fmul_rn(LOWEST, LOG2_E);
  Sums sums = {LOWEST, base, 0.f, 0.f};
  absorb<1>(sums, {edge == target ? NOTHING : z_edge});
  for (int tile = tiles - 1; tile >= 0; tile--) {
    Pack<Logit, N> loaded[UNROLL];
    load_tile(tile, loaded);
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int pack = (tile * UNROLL + u) * THREADS + thread;
      if (pack >= packs) break;
      float z[N];
#pragma unroll
      for (int k = 0; k < N; k++) z[k] = widen(loaded[u].item[k]);
      const unsigned place = target - (head + pack * N);  // of the target in the pack, if below N
      if (place < N) {
#pragma unroll
        for (int k = 0; k < N; k++) z[k] = k == place ? NOTHING : z[k];
      }
      absorb(sums, z);
    }
  }

  // The row's sums, relative to the largest logit of all, and the results.
  const float rival = block_max(sums.peak, parts[0]);
  rebase(sums, fmaxf(rival, z_y));
  const float s = block_sum(sums.s, parts[1]);
  const float t = block_sum(sums.t, parts[2]);
  const float w_y = fmaf(z_y, LOG2_E, -sums.base);
  const float e_y = power_of_2(w_y);
  const float total = s + e_y;
  float logp, log_total, H;
  if (e_y >= s) {  // y is the likeliest: H = -log p_y + sum_j p_j (log p_y - log p_j)
    logp = -log1pf(s / e_y);
    log_total = w_y * LN_2 - logp;
    H = (w_y * s - t) / total * LN_2 - logp;
  } else {  // H = log total - sum_j p_j log 2^w_j; base's rounding is put right in log p_y
    log_total = logf(total);
    logp = (z_y - rival) - (log_total - fmaf(rival, LOG2_E, -sums.base) * LN_2);
    H = log_total - (t + e_y * fmaxf(w_y, FLOOR)) / total * LN_2;
  }
  if (H < 0.f) H = 0.f;
  if (thread == 0) {
    logps[row] = logp;
    entropy[row] = H;
    hits[row] = total > 0.f ? (z_y >= rival ? 1.f : 0.f) : total / total;  // NaN as the others
  }
  if (!gradient) return;

  // Second pass: g_j = 2^w_j (weight + slope w_j), as log p_j = w_j log 2 - log total.
  gradient += row * gradient_stride;
  const float a = grad_logps ? grad_logps[row] : 1.f;
  const float b = grad_entropy ? grad_entropy[row] : 0.f;
  const float weight = -(a + b * (H - log_total)) / total;
  const float slope = -b * LN_2 / total;
  const float at_target = a * (s / total) - (e_y > 0.f ? b * (e_y / total) * (logp + H) : 0.f);
  const bool aligned = (unsigned long long)(gradient + head) % sizeof(Pack<Gradient, N>) == 0;

  auto gradient_of = [&](float z) {
    const float w = fmaf(z, LOG2_E, -sums.base);
    return power_of_2(w) * fmaf(fmaxf(w, FLOOR), slope, weight);
  };

  for (int tile = 0; tile < tiles; tile++) {
    Pack<Logit, N> loaded[UNROLL];
    load_tile(tile, loaded);
    if (sizeof(Gradient) < sizeof(Logit)) __syncthreads();
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int pack = (tile * UNROLL + u) * THREADS + thread;
      if (pack >= packs) break;
      Pack<Gradient, N> made;
#pragma unroll
      for (int k = 0; k < N; k++) {
        made.item[k] = narrow<Gradient>(gradient_of(widen(loaded[u].item[k])));
      }
      const unsigned place = target - (head + pack * N);
      if (place < N) {
#pragma unroll
        for (int k = 0; k < N; k++) if (k == place) made.item[k] = narrow<Gradient>(at_target);
      }
      Gradient* out = gradient + head + pack * N;
      if (aligned) *(Pack<Gradient, N>*)out = made;
      else for (int k = 0; k < N; k++) out[k] = made.item[k];
    }
  }
  if (thread < edges) {
    gradient[edge] = narrow<Gradient>(edge == target ? at_target : gradient_of(z_edge));
  }
}

#define REDUCE_ROWS(NAME, LOGIT, GRADIENT)                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS, 2) NAME(                                  \
      LOGIT* logits, long long logits_stride, const long long* targets, long long vocabulary,     \
      float* logps, float* entropy, float* hits, GRADIENT* gradient, long long gradient_stride,   \
      const float* grad_logps, const float* grad_entropy) {                                       \
    reduce_rows(logits, logits_stride, targets, vocabulary, logps, entropy, hits, gradient,       \
                gradient_stride, grad_logps, grad_entropy);                                       \
  }

REDUCE_ROWS(reduce_rows_f32_f32, float, float)
REDUCE_ROWS(reduce_rows_f32_bf16, float, bfloat16)
REDUCE_ROWS(reduce_rows_f32_f16, float, float16)
REDUCE_ROWS(reduce_rows_bf16_bf16, bfloat16, bfloat16)
REDUCE_ROWS(reduce_rows_f16_f16, float16, float16)
