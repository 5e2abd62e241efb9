#pragma once

namespace cooperative_groups {

struct cluster_group {
  unsigned block_rank() const { return ::emulator::cluster_rank(); }
  unsigned num_blocks() const { return ::emulator::cluster_size(); }
  EMULATOR_CALL void sync() const { ::emulator::meet_cluster(EMULATOR_SITE); }
  template <typename T>
  T* map_shared_rank(T* address, unsigned rank) const {
    return static_cast<T*>(::emulator::map_to_block(address, rank));
  }
};

inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
