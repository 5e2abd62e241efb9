// The auction behind the earth mover's distance; reference/emd.py defines it step by step.
//
// Nearly all the time goes into finding the cheapest and second cheapest object (price added) for a bidder. Prices never fall,
// so a full search also pays for later bids: it keeps the two best objects of every vector lane as candidates, and a lower bound
// of all the others. While the second best candidate lies below that bound, the candidates alone give the exact answer.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace m2ae::M2AE_ISA {
namespace {

constexpr int64_t kBidders = 32;  // most bids in a round

// v[i] = from[idx[i]].
template <typename T>
inline Vec<T> gather_lanes(const T* from, const int32_t* idx) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_i32gather_ps(_mm512_loadu_si512(idx), from, 4);
  else return (Vec<T>)_mm512_i32gather_pd(_mm256_loadu_si256((const __m256i*)idx), from, 8);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_i32gather_ps(from, _mm256_loadu_si256((const __m256i*)idx), 4);
  else return (Vec<T>)_mm256_i32gather_pd(from, _mm_loadu_si128((const __m128i*)idx), 8);
#else
  Vec<T> v;
  for (int i = 0; i < Lanes<T>::W; ++i) v[i] = from[idx[i]];
  return v;
#endif
}

template <typename T>
inline T smallest(Vec<T> v) {
  return -largest(-v);
}

template <typename T>
struct Offer {
  T best, second;  // the two smallest values (cost plus price)
  int32_t object;  // who has the smaller one, the lowest index among equals
};

template <typename T>
struct Auction {
  static constexpr int W = Lanes<T>::W;
  static constexpr int64_t kCandidates = 2 * W;

  int64_t count;
  T far;
  const T* people;                         // (count, 3), NaN coordinates are infinitely far
  T *x, *y, *z, *price;                    // of the objects, padded
  T *candidate_cost, *bound;               // kCandidates and one per person
  int32_t *candidate, *queue, *owner, *winner;

  Auction(const T* a, const T* b, int64_t n, T far_cost, void* scratch) : count(n), far(far_cost), people(a) {
    const int64_t size = padded(n);
    T* values = static_cast<T*>(scratch);
    x = values, y = x + size, z = y + size, price = z + size;
    candidate_cost = price + size, bound = candidate_cost + kCandidates * n;
    candidate = reinterpret_cast<int32_t*>(bound + n);
    queue = candidate + kCandidates * n, owner = queue + n, winner = owner + n;
    for (int64_t j = 0; j < size; ++j) {
      const bool real = j < n;
      x[j] = real ? b[3 * j] : 0, y[j] = real ? b[3 * j + 1] : 0, z[j] = real ? b[3 * j + 2] : 0;
      price[j] = real ? T(0) : T(__builtin_inf());
    }
    for (int64_t i = 0; i < n; ++i) bound[i] = -T(__builtin_inf()), winner[i] = -1;
  }

  // The two best of two vectors of values that belong to the objects who[0..2W).
  Offer<T> two_best(Vec<T> v0, Vec<T> v1, const int32_t* who) const {
    const T best = smallest<T>(smaller(v0, v1));
    const Mask<T> first0 = eq(v0, all<T>(best)), first1 = eq(v1, all<T>(best));
    uint32_t ties = bits(first0) | (bits(first1) << W);
    int32_t object = who[__builtin_ctz(ties)];
    if ((ties & (ties - 1)) == 0) {
      const Vec<T> none = all<T>(__builtin_inf());
      const T second = smallest<T>(smaller(select(first0, none, v0), select(first1, none, v1)));
      return {best, second, object};
    }
    while (ties &= ties - 1) {
      const int32_t other = who[__builtin_ctz(ties)];
      object = other < object ? other : object;
    }
    return {best, best, object};
  }

  // Searches all objects and renews the candidates of person i.
  Offer<T> search(int64_t i) {
    const Vec<T> none = all<T>(__builtin_inf()), limit = all<T>(far);
    const Vec<T> px = all<T>(people[3 * i]), py = all<T>(people[3 * i + 1]), pz = all<T>(people[3 * i + 2]);
    Vec<T> v1 = none, v2 = none, v3 = none;  // the three smallest of each lane
    IVec<T> me{}, i1{}, i2{};
    for (int k = 0; k < W; ++k) me[k] = k;
    for (int64_t j = 0; j < count; j += W) {
      const Vec<T> raw = squared_distance(px - load(x + j), py - load(y + j), pz - load(z + j));
      const Vec<T> v = smaller(raw, limit) + load(price + j);  // NaN becomes `far`
      const Mask<T> in1 = lt(v, v1), in2 = lt(v, v2);  // strict: the first of equals stays in front
      v3 = smaller(v3, larger(v2, v));
      i2 = select(in2, select(in1, i1, me), i2), v2 = smaller(v2, larger(v1, v));
      i1 = select(in1, me, i1), v1 = smaller(v1, v);
      me = me + all_int<T>(W);
    }
    int32_t* who = candidate + kCandidates * i;
    for (int k = 0; k < W; ++k) who[k] = int32_t(i1[k]), who[W + k] = int32_t(i2[k]);
    for (int half = 0; half < 2; ++half) {
      const int32_t* part = who + half * W;
      const Vec<T> d = squared_distance(px - gather_lanes(x, part), py - gather_lanes(y, part), pz - gather_lanes(z, part));
      const Mask<T> real = lt(half ? v2 : v1, none);
      store(candidate_cost + kCandidates * i + half * W, select(real, smaller(d, limit), none));
    }
    bound[i] = smallest<T>(v3);
    return two_best(v1, v2, who);
  }

  Offer<T> offer(int64_t i) {
    const int32_t* who = candidate + kCandidates * i;
    if (bound[i] > 0) {  // else there are no candidates yet
      const T* cost = candidate_cost + kCandidates * i;
      const Offer<T> cached = two_best(load(cost) + gather_lanes(price, who), load(cost + W) + gather_lanes(price, who + W), who);
      if (cached.second < bound[i]) return cached;
    }
    return search(i);
  }

  // Runs rounds until everybody has an object or `bids` are used up; returns how many are left.
  int64_t phase(T eps, int64_t bids) {
    int64_t head = 0, waiting = count, size = kBidders;
    for (int64_t i = 0; i < count; ++i) queue[i] = int32_t(i), owner[i] = -1;
    while (waiting > 0 && bids > 0) {
      int64_t m = size < waiting ? size : waiting;
      if (bids < m) m = bids;
      int32_t bidder[kBidders], target[kBidders];
      T bid[kBidders];
      for (int64_t s = 0; s < m; ++s) {
        bidder[s] = queue[head];
        if (++head == count) head = 0;
        Offer<T> o = offer(bidder[s]);
        if (count == 1) o.second = o.best;
        target[s] = o.object;
        bid[s] = price[o.object] + ((o.second - o.best) + eps);
        int32_t& first = winner[o.object];
        if (first < 0 || bid[s] > bid[first]) first = int32_t(s);
      }
      waiting -= m, bids -= m;
      int64_t lost = 0;
      for (int64_t s = 0; s < m; ++s) {  // each bid puts at most one person back into the queue, in the order of the bids
        const int32_t j = target[s];
        int32_t back = bidder[s];
        if (winner[j] == s) back = owner[j], owner[j] = bidder[s], price[j] = bid[s];
        else ++lost;
        if (back >= 0) queue[(head + waiting++) % count] = back;
      }
      for (int64_t s = 0; s < m; ++s) winner[target[s]] = -1;
      if (2 * lost > m) size = size > 1 ? size / 2 : 1;
      else if (4 * lost <= m) size = 2 * size < kBidders ? 2 * size : kBidders;
    }
    return bids;
  }
};

template <typename T>
void emd(const T* a, const T* b, int64_t count, const EmdRules<T>& rules, void* scratch, int64_t* assignment) {
  Auction<T> auction(a, b, count, rules.far, scratch);
  T eps = rules.first_eps > rules.last_eps ? rules.first_eps : rules.last_eps;
  int64_t bids = auction.phase(eps, rules.bids);
  while (bids > 0 && eps > rules.last_eps) {
    eps = eps * T(0.25) > rules.last_eps ? eps * T(0.25) : rules.last_eps;
    bids = auction.phase(eps, bids);
  }
  for (int64_t j = 0; j < count; ++j) {
    if (auction.owner[j] >= 0) assignment[auction.owner[j]] = j;
  }
}

}  // namespace
}  // namespace m2ae::M2AE_ISA
