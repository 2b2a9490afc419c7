// Where samples lie in /dev/shm, for members in other processes, which get a reference to them.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace averaging {

// A place in a region of shared memory.
struct Place {
  std::string key;  // name of the region: /dev/shm/<key>
  size_t offset = 0;
};

// The place where this process's memory at an address is mapped from; none if it is private memory, or of a region that
// has lost its name. It is looked up each time: clients' regions come and go, and addresses are used again.
std::optional<Place> find_in_shared_memory(const void* address, size_t bytes);

// A region of our own. Its name goes with it.
class Region {
 public:
  // Throws std::runtime_error if /dev/shm has no room for it.
  Region(std::string key, size_t bytes);
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  ~Region();

  const std::string& key() const { return key_; }
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  const std::string key_;
  const size_t bytes_;
  char* data_ = nullptr;
};

// Lends regions, and keeps some for the next who need one. Names begin with a prefix, so that who knows it can remove
// what a killed server left.
class Regions {
 public:
  explicit Regions(std::string prefix) : prefix_(std::move(prefix)) {}

  std::unique_ptr<Region> borrow(size_t bytes);
  void give_back(std::unique_ptr<Region> region);

 private:
  static constexpr size_t kKept = 4;

  const std::string prefix_;
  std::mutex mutex_;  // of all that follows
  size_t made_ = 0;
  std::vector<std::unique_ptr<Region>> free_;
};

}  // namespace averaging
