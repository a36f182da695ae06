// Uninitialized memory on cache-line boundaries, as vectors want it.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace quadric {

template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t size)
      : memory_(static_cast<T*>(::operator new(static_cast<std::size_t>(size) * sizeof(T), kLine))) {}
  T* data() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kLine); }
  };
  std::unique_ptr<T, Free> memory_;
};

}  // namespace quadric
