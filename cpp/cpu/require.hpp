// QUADRIC_REQUIRE(condition, "sentence that names the argument"): the check of a public function's arguments.
#pragma once

#include "quadric/status.hpp"

#define QUADRIC_REQUIRE(condition, message)                       \
  do {                                                            \
    if (!(condition)) throw ::quadric::invalid_argument(message); \
  } while (false)
