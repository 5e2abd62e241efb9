// Earth mover's distance by auction, to the bit as reference/emd.py defines it: a block per cloud, a warp per bid, and the first warp
// settles a round with one lane per bid. A warp that searches all objects keeps the best one of every lane as candidates of
// its person, and the least of what it drops as a bound: prices never fall, so later bids are exact from the candidates alone while
// the second best of them lies below the bound.
#include "common.cuh"

namespace m2ae {
namespace {

constexpr int kBidders = 32;  // most bids in a round
static_assert(kBidders == kWarp, "a round is settled with one lane per bid");
constexpr int kTile = 256;  // threads of the kernels that prepare an auction

// Where numbers end, see reference/emd.py.
template <typename T> constexpr T kFar = sizeof(T) == 4 ? T(0x1p56) : T(0x1p480);
template <typename T> constexpr T kStep = sizeof(T) == 4 ? T(0x1p-17) : T(0x1p-46);
template <typename T> constexpr T kLeast = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1022);

// Working memory of one cloud.
template <typename T>
struct Market {
  int count;
  T *people;                       // (count, 3); here and below NaN for what is infinitely far
  T *x, *y, *z, *price;            // of the objects
  T *candidate_cost, *bound;       // kWarp and one per person
  T *far, *last;                   // the cost of infinitely far pairs, the last price step
  Bits<T>* reach;                  // the largest nearest distance, either way
  int *candidate, *queue, *owner;  // kWarp per person; a ring; the person of each object

  static int64_t value_count(int64_t n) { return n * (kWarp + 8) + 3; }
  static int64_t integer_count(int64_t n) { return n * (kWarp + 2); }

  __device__ Market(T* values, int* integers, int count, int64_t cloud) : count(count) {
    const int64_t n = count;
    people = values + cloud * (n * (kWarp + 8) + 3);
    x = people + 3 * n, y = x + n, z = y + n, price = z + n;
    candidate_cost = price + n, bound = candidate_cost + kWarp * n;
    far = bound + n, last = far + 1, reach = reinterpret_cast<Bits<T>*>(far + 2);
    candidate = integers + cloud * (n * (kWarp + 2));
    queue = candidate + kWarp * n, owner = queue + n;
  }

  // The cost of a pair; fmin passes over NaN.
  __device__ T cost(T px, T py, T pz, int object, T limit) const {
    return fmin(squared_distance(px - x[object], py - y[object], pz - z[object]), limit);
  }
};

template <typename T>
struct Box {
  T low[3], high[3];
};

// Copies points for the auction and grows the box around those that are not infinitely far.
template <typename T>
__device__ void take(const T* from, int count, T* to, int step, int plane, Box<T>& box) {
  for (int i = threadIdx.x; i < count; i += kTile) {
    const T* p = from + int64_t(i) * 3;
    const bool near = fabs(p[0]) <= kFar<T> && fabs(p[1]) <= kFar<T> && fabs(p[2]) <= kFar<T>;
    for (int c = 0; c < 3; ++c) {
      to[int64_t(i) * step + int64_t(c) * plane] = near ? p[c] : from_bits(~Bits<T>(0));  // a NaN
      if (near) box.low[c] = fmin(box.low[c], p[c]), box.high[c] = fmax(box.high[c], p[c]);
    }
  }
}

// One block per cloud: cleaned copies of both clouds, and the limits that follow from the box around them.
template <typename T>
__global__ void __launch_bounds__(kTile) prepare(const T* a, const T* b, int count, double eps, T* values, int* integers) {
  __shared__ T low[kTile / kWarp][3], high[kTile / kWarp][3];
  const Market<T> market(values, integers, count, blockIdx.x);
  const int64_t offset = int64_t(blockIdx.x) * count * 3;
  Box<T> box;
  for (int c = 0; c < 3; ++c) box.low[c] = kFar<T>, box.high[c] = -kFar<T>;
  take(a + offset, count, market.people, 3, 1, box);
  take(b + offset, count, market.x, 1, count, box);
  for (int c = 0; c < 3; ++c) {
    const T least = warp_min(box.low[c]), most = warp_max(box.high[c]);
    if (lane_id() == 0) low[threadIdx.x / kWarp][c] = least, high[threadIdx.x / kWarp][c] = most;
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int w = 0; w < kTile / kWarp; ++w) {
    for (int c = 0; c < 3; ++c) box.low[c] = fmin(box.low[c], low[w][c]), box.high[c] = fmax(box.high[c], high[w][c]);
  }
  const T *l = box.low, *h = box.high;
  const T diagonal = l[0] > h[0] ? T(0) : squared_distance(h[0] - l[0], h[1] - l[1], h[2] - l[2]);
  *market.far = 2 * diagonal;
  *market.last = fmax(T(eps), fmax(diagonal * kStep<T>, kLeast<T>));
  *market.reach = 0;
}

__device__ inline void atomic_max(uint32_t* at, uint32_t value) { atomicMax(at, value); }
__device__ inline void atomic_max(uint64_t* at, uint64_t value) {
  atomicMax(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}

// The nearest point of the other cloud, for kTile people or objects a block; writes down whom people are nearest to.
template <typename T>
__global__ void __launch_bounds__(kTile) find_reach(int count, int tiles, T* values, int* integers, int64_t* nearest) {
  __shared__ T tile[3][kTile];
  const int64_t cloud = blockIdx.x / (2 * tiles);
  const int part = blockIdx.x % (2 * tiles), own = part / 2 * kTile + int(threadIdx.x);
  const bool of_people = part % 2 == 0, real = own < count;
  const Market<T> market(values, integers, count, cloud);
  // Planes of coordinates are `count` apart for objects, 1 for people, whose points are 3 apart.
  const T *mine = of_people ? market.people : market.x, *theirs = of_people ? market.x : market.people;
  const int64_t my_step = of_people ? 3 : 1, my_plane = of_people ? 1 : count;
  const int64_t their_step = of_people ? 1 : 3, their_plane = of_people ? count : 1;
  T point[3], best = from_bits(kInfinity<T>);
  for (int c = 0; c < 3; ++c) point[c] = mine[(real ? own : 0) * my_step + c * my_plane];
  int who = 0;
  for (int from = 0; from < count; from += kTile) {
    const int fill = from + int(threadIdx.x);
    __syncthreads();
    for (int c = 0; c < 3; ++c) tile[c][threadIdx.x] = theirs[(fill < count ? fill : 0) * their_step + c * their_plane];
    __syncthreads();
    const int size = min(kTile, count - from);
#pragma unroll 4
    for (int j = 0; j < size; ++j) {
      const T sqdist = squared_distance(point[0] - tile[0][j], point[1] - tile[1][j], point[2] - tile[2][j]);
      if (sqdist < best) best = sqdist, who = from + j;  // strict: the first of equals stays; NaN never wins
    }
  }
  if (real && of_people) nearest[cloud * count + own] = who;
  const Bits<T> most = warp_max(real ? to_bits(fmin(best, *market.far)) : Bits<T>(0));
  if (lane_id() == 0) atomic_max(market.reach, most);
}

template <typename T>
struct Offer {
  T best, second;  // the two smallest values (cost plus price)
  int object;      // who has the smaller one, the lowest index among equals
};

// Values are not negative, so their bits order like themselves.
template <typename T>
__device__ inline T smallest(T value) {
  return from_bits(warp_min(to_bits(value)));
}

// The two best of all lanes, each of which offers its own two best and the object of the first.
template <typename T>
__device__ inline Offer<T> two_best(T first, T second, int who) {
  const T best = smallest(first);
  const int object = int(warp_min(first == best ? uint32_t(who) : ~0u));
  return {best, smallest(first == best && who == object ? second : first), object};
}

// Searches all objects and renews the candidates of person i.
template <typename T>
__device__ Offer<T> search(const Market<T>& market, int i, T far) {
  const T infinity = from_bits(kInfinity<T>);
  const T *p = market.people + int64_t(i) * 3, px = p[0], py = p[1], pz = p[2];
  T first = infinity, second = infinity;
  int who = 0;
#pragma unroll 4
  for (int j = lane_id(); j < market.count; j += kWarp) {
    const T value = market.cost(px, py, pz, j, far) + market.price[j];
    second = fmin(second, fmax(first, value));
    who = value < first ? j : who;  // strict: the first of equals stays
    first = fmin(first, value);
  }
  const int64_t at = int64_t(i) * kWarp + lane_id();
  market.candidate[at] = who;
  market.candidate_cost[at] = first < infinity ? market.cost(px, py, pz, who, far) : infinity;
  const T bound = smallest(second);
  if (lane_id() == 0) market.bound[i] = bound;
  return two_best(first, second, who);
}

template <typename T>
__device__ Offer<T> make_offer(const Market<T>& market, int i, T far) {
  const T infinity = from_bits(kInfinity<T>), bound = market.bound[i];
  if (bound > 0) {  // else there are no candidates yet
    const int64_t at = int64_t(i) * kWarp + lane_id();
    const int who = market.candidate[at];
    const Offer<T> offer = two_best(market.candidate_cost[at] + market.price[who], infinity, who);
    if (offer.second < bound) return offer;
  }
  __syncwarp();
  return search(market, i, far);
}

// What a round shares among the warps of a block.
template <typename T>
struct Round {
  unsigned head, waiting, size;  // of the queue, and the most bids of the next round
  int bidder[kBidders], target[kBidders];
  T bid[kBidders];
};

// Hands over the objects of the m bids and puts everybody without one back, in the order of the bids; lane = bid.
template <typename T>
__device__ void settle(const Market<T>& market, Round<T>& round, int m) {
  const int lane = lane_id(), target = round.target[lane], bidder = round.bidder[lane];
  const unsigned head = round.head, waiting = round.waiting, size = round.size;
  const T bid = round.bid[lane];
  bool lost = false;
  for (int other = 0; other < m; ++other) {
    const T offer = shuffle(bid, other);
    lost |= shuffle(target, other) == target && (offer > bid || (offer == bid && other < lane));
  }
  lost = lost && lane < m;
  int back = lost ? bidder : -1;
  if (lane < m && !lost) {
    back = market.owner[target];
    market.owner[target] = bidder;
    market.price[target] = bid;
  }
  const unsigned returns = __ballot_sync(kAllLanes, back >= 0), losers = __popc(__ballot_sync(kAllLanes, lost));
  if (back >= 0) market.queue[(head + waiting + __popc(returns & lanes_below(lane))) % market.count] = back;
  __syncwarp();  // everybody has read the state of the queue
  if (lane == 0) {
    round.head = (head + m) % market.count;
    round.waiting = waiting - m + __popc(returns);
    if (2 * losers > unsigned(m)) round.size = max(size / 2, 1u);
    else if (4 * losers <= unsigned(m)) round.size = min(size * 2, unsigned(kBidders));
  }
}

// Runs rounds until everybody has an object or no bids are left; returns how many are.
template <typename T>
__device__ int64_t run_phase(const Market<T>& market, Round<T>& round, T far, T eps, int64_t bids) {
  const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  __syncthreads();  // all have left the phase before
  for (int i = threadIdx.x; i < market.count; i += blockDim.x) market.queue[i] = i, market.owner[i] = -1;
  if (threadIdx.x == 0) round.head = 0, round.waiting = market.count, round.size = kBidders;
  __syncthreads();
  while (round.waiting > 0 && bids > 0) {
    int m = int(min(round.size, round.waiting));
    if (bids < m) m = int(bids);
    for (int s = warp; s < m; s += warps) {
      const int i = market.queue[(round.head + s) % market.count];
      const Offer<T> offer = make_offer(market, i, far);
      if (lane_id() == 0) {
        const T second = market.count > 1 ? offer.second : offer.best;
        round.bidder[s] = i, round.target[s] = offer.object;
        round.bid[s] = market.price[offer.object] + ((second - offer.best) + eps);
      }
    }
    __syncthreads();
    if (warp == 0) settle(market, round, m);
    bids -= m;
    __syncthreads();
  }
  return bids;
}

// One block per cloud; `assignment` holds the nearest object of everybody on entry.
template <typename T>
__global__ void __launch_bounds__(1024)
    auction(const T* a, const T* b, int count, int64_t bids, T* values, int* integers, T* cost, int64_t* assignment) {
  __shared__ Round<T> round;
  const Market<T> market(values, integers, count, blockIdx.x);
  const T far = *market.far, last = *market.last;
  for (int i = threadIdx.x; i < count; i += blockDim.x) market.price[i] = 0, market.bound[i] = -1;
  T eps = fmax(from_bits(*market.reach) * T(0.25), last);
  bids = run_phase(market, round, far, eps, bids);
  while (bids > 0 && eps > last) {
    eps = fmax(eps * T(0.25), last);
    bids = run_phase(market, round, far, eps, bids);
  }
  int64_t* partner = assignment + int64_t(blockIdx.x) * count;
  for (int j = threadIdx.x; j < count; j += blockDim.x) {
    if (market.owner[j] >= 0) partner[market.owner[j]] = j;
  }
  __syncthreads();
  const int64_t offset = int64_t(blockIdx.x) * count * 3;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const T *p = a + offset + int64_t(i) * 3, *q = b + offset + partner[i] * 3;
    const T sqdist = squared_distance(p[0] - q[0], p[1] - q[1], p[2] - q[2]);
    cost[int64_t(blockIdx.x) * count + i] = sqdist == sqdist ? sqdist : from_bits(kInfinity<T>);
  }
}

template <typename T>
void match(const Tensor& p, const Tensor& q, double eps, int64_t bids, Tensor& cost, Tensor& assignment) {
  const int64_t B = p.size(0), n = p.size(1), tiles = ceil_div(n, kTile);
  Tensor values = at::empty({B, Market<T>::value_count(n)}, p.options());
  Tensor integers = at::empty({B, Market<T>::integer_count(n)}, p.options().dtype(at::kInt));
  const T *a = p.const_data_ptr<T>(), *b = q.const_data_ptr<T>();
  T* work = values.mutable_data_ptr<T>();
  int* numbers = integers.mutable_data_ptr<int>();
  int64_t* partner = assignment.mutable_data_ptr<int64_t>();
  // Small clouds have neither many bids at a time nor long searches, and more of them share a processor.
  const int warps = int(std::clamp<int64_t>(n / 16, 1, kBidders));
  launch(prepare<T>, B, kTile, 0, a, b, int(n), eps, work, numbers);
  launch(find_reach<T>, B * 2 * tiles, kTile, 0, int(n), int(tiles), work, numbers, partner);
  launch(auction<T>, B, warps * kWarp, 0, a, b, int(n), bids, work, numbers, cost.mutable_data_ptr<T>(), partner);
}

std::tuple<Tensor, Tensor> emd_cuda(const Tensor& a, const Tensor& b, double eps, int64_t iters, bool bijective) {
  const CUDAGuard guard(a.device());
  const Tensor p = to_compute(a), q = to_compute(b);
  const int64_t B = p.size(0), n = small(p.size(1), "emd", "points");
  const int64_t bids = bijective ? std::numeric_limits<int64_t>::max() : iters * n;
  Tensor cost = at::empty({B, n}, p.options()), assignment = at::empty({B, n}, p.options().dtype(at::kLong));
  AT_DISPATCH_FLOATING_TYPES(p.scalar_type(), "m2ae::emd", [&] { match<scalar_t>(p, q, eps, bids, cost, assignment); });
  return {cost, assignment};
}

}  // namespace

TORCH_LIBRARY_IMPL(m2ae, CUDA, m) { m.impl("emd", emd_cuda); }

}  // namespace m2ae
