// The checks of what every kernel of Sinkhorn's iteration is given, on the CPU and on a GPU.
#pragma once

#include "require.hpp"

namespace quadric::transport::detail {

// Of SinkhornOptions and of the options of a whole solve.
template <class Options>
void check_options(const Options& options) {
  QUADRIC_REQUIRE(options.reg > 0, "reg must be positive");
  QUADRIC_REQUIRE(options.theta_a > 0 && options.theta_a <= 1, "theta_a must be above 0 and at most 1");
  QUADRIC_REQUIRE(options.theta_b > 0 && options.theta_b <= 1, "theta_b must be above 0 and at most 1");
  QUADRIC_REQUIRE(options.count >= 0, "count must not be negative");
}

}  // namespace quadric::transport::detail
