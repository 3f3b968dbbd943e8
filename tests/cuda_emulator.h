// Runs a CUDA kernel on the CPU, for tests:
//   g++ -fsanitize=alignment -include cuda_emulator.h -x c++ kernel.cu
//
// The threads of a block are fibers of one CPU thread, and the blocks of a grid follow each other.
// A fiber runs until it comes to a barrier or a shuffle and goes on when all of its block are
// there, so a run is deterministic. Between two such places the fibers run one after the other, in
// either order: a missing barrier shows as a difference between the two orders. Two things that a
// GPU forbids and a CPU would forgive are reported: threads of a block that do not meet the same
// barriers and shuffles in the same order, and an access at an address its type does not divide.

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after the other

struct Index { unsigned x; };
static Index threadIdx, blockIdx;

enum { MAX_THREADS = 1024, STACK_BYTES = 1 << 16 };
enum Stop { DONE, BARRIER, SHUFFLE };
static ucontext_t fiber, caller;  // only start a fiber: jumps switch 20 times faster than contexts
static jmp_buf scheduler, places[MAX_THREADS];
static Stop stops[MAX_THREADS];
static float offered[2][MAX_THREADS];
static int turn[MAX_THREADS];

static void stop_at(Stop stop) {
  stops[threadIdx.x] = stop;
  if (!_setjmp(places[threadIdx.x])) _longjmp(scheduler, 1);
}

static void __syncthreads() { stop_at(BARRIER); }

// Two buffers in turn: nobody offers again in one before all have taken from it and met once more.
static float __shfl_xor_sync(unsigned, float value, int mask) {
  unsigned thread = threadIdx.x;
  float* buffer = offered[turn[thread] ^= 1];
  buffer[thread] = value;
  stop_at(SHUFFLE);
  return buffer[thread ^ mask];
}

template <typename To, typename From> static To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
static unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
static float __fmul_rn(float a, float b) {
  volatile float product = a * b;  // rounded, whatever the compiler fuses elsewhere
  return product;
}
// what -fsanitize=alignment calls
static int misaligned;
extern "C" void __ubsan_handle_type_mismatch_v1(void*, unsigned long) { misaligned = 1; }

static int min(int a, int b) { return a < b ? a : b; }

// What all entry points of the source take; the two nameless pointer types are the logits' and the
// gradient's.
typedef void (*Kernel)(void*, long long, const long long*, long long, float*, float*, float*, void*,
                       long long, const float*, const float*);
struct Launch {
  Kernel kernel;
  void* logits; long long logits_stride; const long long* targets; long long vocabulary;
  float *logps, *entropy, *hits; void* gradient; long long gradient_stride;
  const float *grad_logps, *grad_entropy;
};
static Launch current;

static void run_thread() {
  const Launch& l = current;
  l.kernel(l.logits, l.logits_stride, l.targets, l.vocabulary, l.logps, l.entropy, l.hits,
           l.gradient, l.gradient_stride, l.grad_logps, l.grad_entropy);
  stops[threadIdx.x] = DONE;
  _longjmp(scheduler, 1);
}

static void start(char* stack) {
  getcontext(&fiber);
  fiber.uc_stack.ss_sp = stack;
  fiber.uc_stack.ss_size = STACK_BYTES;
  fiber.uc_link = nullptr;
  makecontext(&fiber, run_thread, 0);
  swapcontext(&caller, &fiber);
}

// 0: well; 1: the threads diverged; 2: an access was misaligned
extern "C" int emulate(Launch launch, int grid, int block, int backwards) {
  current = launch;
  char* stacks = (char*)malloc((size_t)block * STACK_BYTES);
  int diverged = misaligned = 0;
  for (blockIdx.x = 0; blockIdx.x < (unsigned)grid && !diverged; blockIdx.x++) {
    memset(turn, 0, sizeof turn);
    for (bool first = true; (first || stops[0] != DONE) && !diverged; first = false) {
      for (volatile int i = 0; i < block; i = i + 1) {
        threadIdx.x = backwards ? block - 1 - i : i;
        if (_setjmp(scheduler)) continue;
        if (first) start(stacks + (size_t)threadIdx.x * STACK_BYTES);
        _longjmp(places[threadIdx.x], 1);
      }
      for (int i = 1; i < block; i++) diverged |= stops[i] != stops[0];
    }
  }
  free(stacks);
  return diverged ? 1 : misaligned ? 2 : 0;
}
