// Runs CUDA threads as fibers of one CPU thread. All threads of a cluster of blocks (one block, without clusters) exist at the same
// time; a thread that waits for others hands over to the next one. Not instrumented when the kernels are: sanitizers are told what
// orders what.
#include <c10/cuda/CUDAException.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>
#include <set>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// Of the sanitizers' runtimes, which are there or not.
extern "C" {
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* address, size_t size);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}

emulator::Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

Device device;
cudaError_t last_error = cudaSuccess;
std::map<std::pair<const void*, cudaFuncAttribute>, int> kernel_attributes;

namespace {

constexpr size_t kStack = 128 * 1024, kGuard = 4096, kArena = 232 * 1024, kRedZone = 64, kUnasked = 48 * 1024;
constexpr size_t kArenas = 64;  // blocks that are not ordered among themselves; the next one gets the memory of the first
constexpr unsigned kUnordered = 1;  // of a switch: TSan sees no order between the fibers

// ---- switching ----------------------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
struct Context {
  void* top = nullptr;  // of the stack, below it the registers that a call preserves
};

extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStack) - 1;
  top[0] = nullptr;                             // where a return address would be: the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);      // where the first switch returns to
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // registers
  context.top = top;
}

void swap(Context& from, Context& to) { emulator_switch(&from.top, to.top); }
#else
struct Context {
  ucontext_t machine;
};

void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.machine);
  context.machine.uc_stack.ss_sp = stack, context.machine.uc_stack.ss_size = kStack, context.machine.uc_link = nullptr;
  makecontext(&context.machine, entry, 0);
}

void swap(Context& from, Context& to) { swapcontext(&from.machine, &to.machine); }
#endif

// A stack with its fiber of TSan, which must stay together: a new fiber on an old stack gives false reports.
struct Stack {
  char* memory;
  void* tsan;

  Stack() {
    void* all = mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(all != MAP_FAILED, "emulator: no memory for the stack of a thread");
    mprotect(all, kGuard, PROT_NONE);
    memory = static_cast<char*>(all) + kGuard;
    tsan = __tsan_create_fiber ? __tsan_create_fiber(0) : nullptr;
  }
};

std::vector<Stack>& stacks() {
  static auto& kept = *new std::vector<Stack>;  // never destroyed: TSan's fibers last as long as the process
  return kept;
}

// ---- threads, warps, blocks ---------------------------------------------------------------------------------------------------------

struct Cancelled {};

// A meeting point. Generations count; values of two of them are kept, since nobody can be two ahead.
struct Meeting {
  uint64_t generation = 0;
  unsigned arrived = 0;
  Kind kind{};
  const void* site = nullptr;
  char tokens[2] = {};  // what TSan orders by

  void check(Kind now, const void* here) {
    if (arrived == 0) kind = now, site = here;
    TORCH_CHECK(kind == now, "emulator: threads meet for different operations (", int(kind), " and ", int(now), ")");
    TORCH_CHECK(site == here, "emulator: threads meet at different places");
  }
};

struct Warp : Meeting {
  uint64_t values[2][32];
  unsigned who[2] = {};
  unsigned present = 0, exited = 0;
};

struct Block : Meeting {
  Dim index{};
  unsigned rank = 0, threads = 0, exited = 0;
  bool votes[2] = {};
  unsigned char* arena = nullptr;
  size_t used = 0, declared = 0;
  std::map<const void*, size_t> objects;
  std::vector<Warp> warps;
};

struct Fiber {
  Context context;
  Stack* stack = nullptr;
  void* fake_stack = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  unsigned index = 0;
  bool started = false, done = false;
  const uint64_t* awaited = nullptr;  // a generation that must move on
  uint64_t at = 0;
};

struct Launch {
  const std::function<void()>* body = nullptr;
  size_t dynamic = 0;
  std::vector<Block> blocks;  // of the cluster
  std::vector<Fiber> fibers;
  Meeting cluster;
  size_t next_arena = 0;
  unsigned exited = 0;
  bool cancelled = false;
  std::exception_ptr error;
  char begun = 0, ended = 0;  // what TSan orders the host and the threads by
};

Launch* launch = nullptr;
Fiber* running = nullptr;
Context scheduler;
void* scheduler_tsan = nullptr;
void* scheduler_fake_stack = nullptr;
const void* scheduler_bottom = nullptr;
size_t scheduler_size = 0;

unsigned order_seed = 0;  // 0: in order
uint64_t count_launches = 0, count_meetings = 0, count_switches = 0;
std::set<const void*> kernels_run;

void order_threads(void (*how)(void*), char* token) {
  if (how) how(token);
}

void to_scheduler(bool for_good) {
  Fiber* self = running;
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &self->fake_stack, scheduler_bottom, scheduler_size);
  }
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(scheduler_tsan, kUnordered);
  swap(self->context, scheduler);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(self->fake_stack, nullptr, nullptr);
}

void to_fiber(Fiber& fiber) {
  ++count_switches;
  running = &fiber;
  threadIdx = {fiber.index, 0, 0};
  blockIdx = fiber.block->index;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack->memory, kStack);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber.stack->tsan, kUnordered);
  swap(scheduler, fiber.context);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
  running = nullptr;
}

void fail() {
  if (!launch->error) launch->error = std::current_exception();
  launch->cancelled = true;
}

void entry() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
  order_threads(__tsan_acquire, &launch->begun);
  try {
    (*launch->body)();
  } catch (const Cancelled&) {
  } catch (...) {
    fail();
  }
  order_threads(__tsan_release, &launch->ended);
  Fiber& self = *running;
  self.done = true;
  ++self.block->exited, ++launch->exited;
  self.warp->exited |= 1u << self.index % 32;
  to_scheduler(true);
  std::abort();
}

// Waits until the generation of a meeting has moved on.
void wait(const Meeting& meeting, uint64_t generation) {
  running->awaited = &meeting.generation, running->at = generation;
  while (meeting.generation == generation) {
    if (launch->cancelled) throw Cancelled();
    to_scheduler(false);
  }
  running->awaited = nullptr;
  if (launch->cancelled) throw Cancelled();
}

// Meets `everybody`, who are ordered by it. Calls open() when the last has arrived.
template <typename Open>
void meet(Meeting& meeting, Kind kind, const void* site, unsigned everybody, bool orders, const Open& open) {
  ++count_meetings;
#ifndef EMULATOR_SITES
  site = nullptr;  // an optimizing compiler may have several copies of a call
#endif
  meeting.check(kind, site);
  const uint64_t generation = meeting.generation;
  char* token = &meeting.tokens[generation % 2];
  if (orders) order_threads(__tsan_release, token);
  if (++meeting.arrived == everybody) {
    open(generation);
    meeting.arrived = 0;
    ++meeting.generation;
  } else {
    wait(meeting, generation);
  }
  if (orders) order_threads(__tsan_acquire, token);
}

// ---- running ------------------------------------------------------------------------------------------------------------------------

bool may_run(const Fiber& fiber) {
  return !fiber.done && (fiber.awaited == nullptr || *fiber.awaited != fiber.at || launch->cancelled);
}

// Gives every thread that can go on its turn, again and again until all are done.
void run_all() {
  std::mt19937 random(order_seed);
  std::vector<Fiber*> order;
  for (Fiber& fiber : launch->fibers) order.push_back(&fiber);
  while (launch->exited < order.size()) {
    if (order_seed) std::shuffle(order.begin(), order.end(), random);
    bool progress = false;
    for (Fiber* fiber : order) {
      if (!may_run(*fiber)) continue;
      progress = true;
      if (!fiber->started) {
        fiber->started = true;
        if (launch->cancelled) {
          fiber->done = true, ++launch->exited;
          continue;
        }
      }
      to_fiber(*fiber);
    }
    if (progress) continue;
    try {
      TORCH_CHECK(false, "emulator: deadlock: ", order.size() - launch->exited, " threads wait for each other");
    } catch (...) {
      fail();
    }
  }
}

struct Arenas {
  std::vector<std::unique_ptr<unsigned char[]>> memory;
  unsigned char* get(size_t i) {
    while (memory.size() <= i) memory.emplace_back(new unsigned char[kArena + 64]);
    const auto address = reinterpret_cast<uintptr_t>(memory[i].get());
    return memory[i].get() + (64 - address % 64);
  }
};

// Makes room in the arena of a block, filled with the bits of NaN, between red zones.
size_t reserve(Block& block, size_t bytes, size_t alignment) {
  const size_t at = (block.used + std::max<size_t>(alignment, 8) - 1) / std::max<size_t>(alignment, 8) * std::max<size_t>(alignment, 8);
  TORCH_CHECK(at + bytes + kRedZone <= kArena, "emulator: a block uses more shared memory than any device has");
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(block.arena + at, bytes);
  std::memset(block.arena + at, 0xFF, bytes);
  block.used = at + bytes + kRedZone;
  return at;
}

// What the driver refuses at a launch, known here when the block has run.
void check_shared(const void* kernel, const Block& block, size_t dynamic) {
  const auto asked = kernel_attributes.find({kernel, cudaFuncAttributeMaxDynamicSharedMemorySize});
  const size_t granted = asked == kernel_attributes.end() ? 0 : size_t(asked->second);
  const bool fits = block.declared + dynamic <= kUnasked || (dynamic <= granted && block.declared + granted <= size_t(device.shared_limit));
  TORCH_CHECK(fits, "emulator: a block has ", block.declared, " + ", dynamic, " bytes of shared memory, asked for were ", granted);
}

void run_cluster(const void* kernel, int64_t first, int threads, int size) {
  static auto& arenas = *new Arenas;
  Launch& here = *launch;
  here.blocks = std::vector<Block>(size_t(size));
  here.fibers = std::vector<Fiber>(size_t(size) * size_t(threads));
  here.cluster = Meeting();
  here.exited = 0;
  if (here.next_arena + size_t(size) > kArenas) {
    here.next_arena = 0;
    order_threads(__tsan_acquire, &here.ended);
    order_threads(__tsan_release, &here.begun);
  }
  while (stacks().size() < here.fibers.size()) stacks().emplace_back();
  for (int rank = 0; rank < size; ++rank) {
    Block& block = here.blocks[size_t(rank)];
    block.index = {unsigned(first + rank), 0, 0};
    block.rank = unsigned(rank), block.threads = unsigned(threads);
    block.arena = arenas.get(here.next_arena++);
    if (__asan_poison_memory_region) __asan_poison_memory_region(block.arena, kArena);
    reserve(block, here.dynamic, 16);
    block.warps = std::vector<Warp>(size_t(threads + 31) / 32);
    for (int t = 0; t < threads; ++t) {
      const size_t i = size_t(rank) * size_t(threads) + size_t(t);
      Fiber& fiber = here.fibers[i];
      fiber.stack = &stacks()[i], fiber.block = &block, fiber.warp = &block.warps[size_t(t) / 32], fiber.index = unsigned(t);
      fiber.warp->present |= 1u << t % 32;
      prepare(fiber.context, fiber.stack->memory, entry);
    }
  }
  run_all();
  if (here.error) return;
  for (const Block& block : here.blocks) check_shared(kernel, block, here.dynamic);
}

}  // namespace

const uint64_t* meet_warp(Kind kind, const void* site, unsigned mask, uint64_t value, unsigned* who) {
  Warp& warp = *running->warp;
  TORCH_CHECK((warp.present & mask) == mask, "emulator: a warp meets with ", __builtin_popcount(warp.present), " of 32 lanes");
  TORCH_CHECK(!(warp.exited & mask), "emulator: a warp meets after some of its lanes have exited");
  const int slot = int(warp.generation % 2);
  warp.values[slot][running->index % 32] = value;
  // Only __syncwarp orders memory.
  meet(warp, kind, site, unsigned(__builtin_popcount(mask)), kind == kSyncWarp, [&](uint64_t) { warp.who[slot] = mask; });
  if (who) *who = warp.who[slot];
  return warp.values[slot];
}

bool meet_block(Kind kind, const void* site, bool value) {
  Block& block = *running->block;
  TORCH_CHECK(block.exited == 0, "emulator: a barrier of a block after threads have exited");
  const int slot = int(block.generation % 2);
  block.votes[slot] |= value;
  meet(block, kind, site, block.threads, true, [&](uint64_t) { block.votes[1 - slot] = false; });
  return block.votes[slot];
}

void meet_cluster(const void* site) {
  TORCH_CHECK(launch->exited == 0, "emulator: a barrier of a cluster after threads have exited");
  meet(launch->cluster, kSyncCluster, site, unsigned(launch->fibers.size()), true, [](uint64_t) {});
}

unsigned cluster_rank() { return running->block->rank; }
unsigned cluster_size() { return unsigned(launch->blocks.size()); }

void* map_to_block(void* address, unsigned rank) {
  TORCH_CHECK(rank < launch->blocks.size(), "emulator: the cluster has no block ", rank);
  Block& own = *running->block;
  const Block& other = launch->blocks[rank];
  // Only a meeting of the cluster says that all of its blocks run.
  TORCH_CHECK(launch->cluster.generation > 0 && other.exited == 0, "emulator: shared memory of a block that may not run");
  const auto offset = static_cast<unsigned char*>(address) - own.arena;
  TORCH_CHECK(offset >= 0 && size_t(offset) < own.used, "emulator: the address mapped to another block is not in shared memory");
  return other.arena + offset;
}

void* declared_shared(const void* tag, size_t bytes, size_t alignment) {
  Block& block = *running->block;
  auto at = block.objects.find(tag);
  if (at == block.objects.end()) {
    at = block.objects.emplace(tag, reserve(block, bytes, alignment)).first;
    block.declared += bytes;
  }
  return block.arena + at->second;
}

unsigned char* dynamic_shared() { return running->block->arena; }

void run(const void* kernel, int64_t blocks, int threads, size_t shared_bytes, int blocks_of_cluster, const std::function<void()>& body) {
  TORCH_CHECK(!launch, "emulator: a launch inside a launch");
  TORCH_CHECK(threads >= 1 && threads <= 1024 && blocks % blocks_of_cluster == 0, "emulator: an impossible launch");
  Launch here;
  here.body = &body, here.dynamic = shared_bytes;
  launch = &here;
  blockDim = {unsigned(threads), 1, 1};
  gridDim = {unsigned(blocks), 1, 1};
  scheduler_tsan = __tsan_get_current_fiber ? __tsan_get_current_fiber() : nullptr;
  order_threads(__tsan_release, &here.begun);
  ++count_launches;
  kernels_run.insert(kernel);
  try {
    for (int64_t first = 0; first < blocks && !here.error; first += blocks_of_cluster) run_cluster(kernel, first, threads, blocks_of_cluster);
  } catch (...) {
    here.error = std::current_exception();
  }
  order_threads(__tsan_acquire, &here.ended);
  launch = nullptr;
  if (here.error) std::rethrow_exception(here.error);
}

// ---- what the tests call ------------------------------------------------------------------------------------------------------------

extern "C" void emulator_set(const char* name, int64_t value) {
  const std::string what = name;
  if (what == "major") device.major = int(value);
  if (what == "processors") device.processors = int(value);
  if (what == "shared_limit") device.shared_limit = int(value);
  if (what == "largest_cluster") device.largest_cluster = int(value);
  if (what == "occupancy") device.occupancy = cudaError_t(value);
  if (what == "cluster_launch") device.cluster_launch = cudaError_t(value);
  if (what == "seed") order_seed = unsigned(value);
}

// Forgets the settings, and what kernels have asked for.
extern "C" void emulator_reset() {
  device = Device();
  last_error = cudaSuccess;
  kernel_attributes.clear();
  order_seed = 0;
}

extern "C" void emulator_forget_kernels() { kernels_run.clear(); }
extern "C" int emulator_last_error() { return int(last_error); }

extern "C" int64_t emulator_count(const char* name) {
  const std::string what = name;
  return int64_t(what == "launches" ? count_launches : what == "meetings" ? count_meetings : count_switches);
}

// Writes the addresses of the kernels that have run, relative to this function, and returns how many they are.
extern "C" int64_t emulator_kernels(int64_t* offsets, int64_t room) {
  int64_t count = 0;
  for (const void* kernel : kernels_run) {
    if (count < room) offsets[count] = int64_t(reinterpret_cast<intptr_t>(kernel) - reinterpret_cast<intptr_t>(&emulator_set));
    ++count;
  }
  return count;
}

}  // namespace emulator
