#include "quadric/status.hpp"

namespace quadric {

// Out of line so that the class has one type_info in every library that catches it.
invalid_argument::~invalid_argument() = default;

}  // namespace quadric
