// Two kinds of failure. A wrong argument is the caller's mistake and throws `invalid_argument`, which names it.
// Numerical trouble is a property of the data and comes back as a `Status`.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "quadric/export.hpp"

namespace quadric {

class QUADRIC_API invalid_argument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
  ~invalid_argument() override;
};

struct [[nodiscard]] Status {
  enum class Code { ok, not_positive_definite };

  Code code = Code::ok;
  std::int64_t pivot = -1;  // the first pivot that was not positive, in the order of the elimination

  bool ok() const { return code == Code::ok; }
};

}  // namespace quadric
