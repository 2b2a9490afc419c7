#include "triton/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string_view>
#include <system_error>

namespace averaging {

namespace {

constexpr std::string_view kFolder = "/dev/shm/";

// Closes a file on the way out.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int number() const { return number_; }

 private:
  const int number_;
};

bool is_file(const std::string& path, uint64_t inode) {
  struct stat status {};
  return stat(path.c_str(), &status) == 0 && status.st_ino == inode;
}

}  // namespace

std::optional<Place> find_in_shared_memory(const void* address, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    uintptr_t first = 0, end = 0, offset = 0;
    uint64_t inode = 0;
    char access[5] = "";
    int path = 0;
    const int found = std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %4s %" SCNxPTR " %*s %" SCNu64 " %n", &first,
                                  &end, access, &offset, &inode, &path);
    if (begin < first) return std::nullopt;  // mappings are in ascending order
    if (found != 5 || begin >= end) continue;
    const std::string name = line.substr(static_cast<size_t>(path));
    const bool ours = access[3] == 's' && begin + bytes <= end && name.compare(0, kFolder.size(), kFolder) == 0;
    if (!ours || !is_file(name, inode)) return std::nullopt;
    return Place{name.substr(kFolder.size()), begin - first + offset};
  }
  return std::nullopt;
}

Region::Region(std::string key, size_t bytes) : key_(std::move(key)), bytes_(bytes) {
  const Descriptor file(shm_open(("/" + key_).c_str(), O_CREAT | O_EXCL | O_RDWR, 0600));
  int problem = file.number() < 0 ? errno : 0;
  // A full /dev/shm is an error here, and not the end of the process when the memory is written.
  if (problem == 0) problem = posix_fallocate(file.number(), 0, static_cast<off_t>(bytes));
  if (problem == 0) {
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.number(), 0);
    if (mapped == MAP_FAILED) {
      problem = errno;
    } else {
      data_ = static_cast<char*>(mapped);
    }
  }
  if (problem != 0) {
    if (file.number() >= 0) shm_unlink(("/" + key_).c_str());
    throw std::runtime_error("no " + std::to_string(bytes) + " bytes in " + std::string(kFolder) + ": " +
                             std::generic_category().message(problem));
  }
}

Region::~Region() {
  munmap(data_, bytes_);
  shm_unlink(("/" + key_).c_str());
}

std::unique_ptr<Region> Regions::borrow(size_t bytes) {
  std::string key;
  {
    const std::lock_guard lock(mutex_);
    const auto fits = std::find_if(free_.begin(), free_.end(), [&](const auto& each) { return each->bytes() >= bytes; });
    if (fits != free_.end()) {
      auto region = std::move(*fits);
      free_.erase(fits);
      return region;
    }
    key = prefix_ + std::to_string(made_++);
  }
  return std::make_unique<Region>(std::move(key), bytes);
}

void Regions::give_back(std::unique_ptr<Region> region) {
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(region));
  // The smallest goes: the others serve its purpose too.
  std::sort(free_.begin(), free_.end(), [](const auto& one, const auto& two) { return one->bytes() < two->bytes(); });
  if (free_.size() > kKept) free_.erase(free_.begin());
}

}  // namespace averaging
