// QUADRIC_API marks what the shared library exports; everything else stays hidden.
#pragma once

#if defined(_WIN32)
#if defined(QUADRIC_BUILDING)
#define QUADRIC_API __declspec(dllexport)
#else
#define QUADRIC_API __declspec(dllimport)
#endif
#else
#define QUADRIC_API __attribute__((visibility("default")))
#endif
