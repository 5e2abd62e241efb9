// Gradients of the squared distances of chosen pairs, for one pair of clouds at a time.
//
// Sums are kept as (x, y, z, unused), one vector each. What a point gets through its own choice and through being chosen adds up
// apart, as in the reference; it also keeps the two ways independent of each other, so that the processor overlaps them.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

template <typename T>
struct QuadOf {
  typedef T Quad __attribute__((vector_size(4 * sizeof(T))));
};
template <typename T> using Quad = typename QuadOf<T>::Quad;

template <typename T>
inline Quad<T> load_quad(const T* point) {
  Quad<T> out;
  __builtin_memcpy(&out, point, sizeof(out));
  return out;
}

// Points are read as four values, so those at the very end of a tensor are copied to where there is one more.
template <typename T>
inline const T* readable(const T* points, int64_t count, const T* end, T* copy) {
  if (points + 3 * count < end) return points;
  __builtin_memcpy(copy, points, 3 * count * sizeof(T));
  copy[3 * count] = T(0);
  return copy;
}

// What the choice of point i adds: to the point itself, and, the other way round, to the one it chose.
template <typename T>
inline void add_choice(const int32_t* idx, const T* weight, int64_t i, const T* from, const T* to, Quad<T>* own, Quad<T>* chosen) {
  const int64_t other = idx[i];
  Quad<T> flow = load_quad(from + 3 * i) - load_quad(to + 3 * other);
  if (weight) flow = weight[i] * flow;
  own[i] = flow;
  chosen[other] -= flow;
}

// The last point is written apart: four values would reach over the end.
template <typename T>
inline void store_sums(const Quad<T>* own, T of_own, const Quad<T>* chosen, T of_chosen, int64_t count, T* out) {
  for (int64_t i = 0; i + 1 < count; ++i) {
    const Quad<T> sum = of_own * own[i] + of_chosen * chosen[i];
    __builtin_memcpy(out + 3 * i, &sum, sizeof(sum));
  }
  const Quad<T> sum = of_own * own[count - 1] + of_chosen * chosen[count - 1];
  __builtin_memcpy(out + 3 * (count - 1), &sum, 3 * sizeof(T));
}

template <typename T, bool kWeighted>
inline void add_choices(const T* a, const T* b, const PairChoices<T>& choices, Quad<T>* a_own, Quad<T>* b_own, Quad<T>* a_chosen,
                        Quad<T>* b_chosen) {
  const int64_t n = choices.n, m = choices.m, both = n < m ? n : m;
  const int32_t *forth = choices.forth, *back = choices.back;
  const T *to_b = kWeighted ? choices.weight[0] : nullptr, *to_a = kWeighted ? choices.weight[1] : nullptr;
  for (int64_t i = 0; i < both; ++i) {
    add_choice(forth, to_b, i, a, b, a_own, b_chosen);
    add_choice(back, to_a, i, b, a, b_own, a_chosen);
  }
  for (int64_t i = both; i < n; ++i) add_choice(forth, to_b, i, a, b, a_own, b_chosen);
  for (int64_t i = both; i < m; ++i) add_choice(back, to_a, i, b, a, b_own, a_chosen);
}

// Whether all places are among 0 .. limit - 1.
inline bool within(const int32_t* idx, int64_t count, int64_t limit) {
  constexpr int W = Lanes<float>::W;
  // Of negative numbers, and of those from the limit on, one has its upper bit set: the number or what is left to the last place.
  const IVec<float> last = all_int<float>(int32_t(limit - 1));
  IVec<float> wrong{};
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    const IVec<float> place = load_int<float>(idx + i);
    wrong |= place | (last - place);
  }
  bool good = bits(lt(wrong, IVec<float>{})) == 0;
  for (; i < count; ++i) good = good && idx[i] >= 0 && idx[i] < limit;
  return good;
}

// Writes the gradients (n, 3) and (m, 3), which are sums of twice the offset of every pair times what it weighs; a null pointer leaves one
// out. Returns false, and does nothing, where a place does not exist.
template <typename T>
bool pair_gradients(const T* a, const T* b, const PairChoices<T>& choices, T* grad_a, T* grad_b) {
  const int64_t n = choices.n, m = choices.m;
  if (!within(choices.forth, n, m) || !within(choices.back, m, n)) return false;
  Quad<T>*const a_own = static_cast<Quad<T>*>(choices.scratch), *const b_own = a_own + n;
  Quad<T>*const a_chosen = b_own + m, *const b_chosen = a_chosen + n;
  T *const last_a = reinterpret_cast<T*>(b_chosen + m), *const last_b = last_a + 4 * n;
  a = readable(a, n, choices.end_a, last_a), b = readable(b, m, choices.end_b, last_b);
  __builtin_memset(a_chosen, 0, (n + m) * sizeof(Quad<T>));
  if (choices.weight[0]) {
    add_choices<T, true>(a, b, choices, a_own, b_own, a_chosen, b_chosen);
  } else {
    add_choices<T, false>(a, b, choices, a_own, b_own, a_chosen, b_chosen);
  }
  // What weighs the same in all pairs is left until here.
  const T to_b = 2 * choices.even[0], to_a = 2 * choices.even[1];
  if (grad_a) store_sums<T>(a_own, to_b, a_chosen, to_a, n, grad_a);
  if (grad_b) store_sums<T>(b_own, to_a, b_chosen, to_b, m, grad_b);
  return true;
}

// Writes what the choices of `count` points weigh in the sum of lengths: the derivative of the root with respect to the squared
// distance, zero where the root is clamped. `out` has room for a register more.
template <typename T>
void root_weights(const T* from, const T* to, const int32_t* idx, int64_t count, T* out) {
  constexpr int W = Lanes<T>::W;
  for (int64_t i = 0; i < count; ++i) {
    const T *p = from + 3 * i, *q = to + 3 * int64_t(idx[i]);
    out[i] = squared_distance(p[0] - q[0], p[1] - q[1], p[2] - q[2]);
  }
  const Vec<T> least = all<T>(T(kSmallestRoot));
  for (int64_t i = 0; i < count; i += W) {
    const Vec<T> sqdist = load(out + i), length = root_of(larger(sqdist, least));
    store(out + i, select(lt(sqdist, least), Vec<T>{}, T(0.5) / length));
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
