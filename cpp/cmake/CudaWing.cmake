# Whether to build the CUDA kernels: QUADRIC_HAS_CUDA, and quadric_cuda_math, a target with cuBLAS and cuSOLVER.
#
# They come from the CUDA toolkit if it has them, else from the PyPI packages nvidia-cublas and nvidia-cusolver: in
# QUADRIC_NVIDIA_DIR, or in the site-packages of the Python interpreter. What is missing ends the configuration with
# QUADRIC_CUDA=ON; with AUTO it leaves the CUDA kernels out before any compiler has been tried, so that a CPU build on a
# machine with nvcc costs no time.
set(QUADRIC_HAS_CUDA OFF)

macro(quadric_without_cuda reason)
  if(QUADRIC_CUDA STREQUAL "ON")
    message(FATAL_ERROR "QUADRIC_CUDA=ON, but ${reason}")
  endif()
  message(STATUS "CUDA kernels left out: ${reason}")
  return()
endmacro()

if(NOT QUADRIC_CUDA)
  return()
elseif(NOT QUADRIC_CUDA MATCHES "^(AUTO|ON)$")
  message(FATAL_ERROR "QUADRIC_CUDA must be AUTO, ON or OFF; got ${QUADRIC_CUDA}")
elseif(QUADRIC_SANITIZE)
  quadric_without_cuda("QUADRIC_SANITIZE is of CPU code alone")
endif()

find_package(CUDAToolkit QUIET)
if(NOT CUDAToolkit_FOUND)
  quadric_without_cuda("no CUDA toolkit was found (nvcc on the PATH, CUDAToolkit_ROOT or CUDACXX)")
endif()
if(CUDAToolkit_VERSION VERSION_LESS 12.0)
  quadric_without_cuda("CUDA 12 or newer is needed; ${CUDAToolkit_BIN_DIR} has ${CUDAToolkit_VERSION}")
endif()

# ---- cuBLAS and cuSOLVER --------------------------------------------------------------------------------------------

set(folders ${QUADRIC_NVIDIA_DIR})
if(NOT folders)
  set(folders ${CUDAToolkit_LIBRARY_ROOT} ${CUDAToolkit_LIBRARY_DIR}/..)
  if(NOT Python_EXECUTABLE)
    # All that pybind11 will ask for: a second search would not add components.
    find_package(Python COMPONENTS Interpreter Development.Module QUIET)
  endif()
  if(Python_EXECUTABLE)
    set(search [[
import importlib.util
nvidia = importlib.util.find_spec("nvidia")
print(";".join(nvidia.submodule_search_locations or ()) if nvidia else "", end="")]])
    execute_process(COMMAND ${Python_EXECUTABLE} -c "${search}" OUTPUT_VARIABLE packages ERROR_QUIET)
    list(TRANSFORM packages APPEND /cu${CUDAToolkit_VERSION_MAJOR})
    list(APPEND folders ${packages})
  endif()
endif()

# $1: word for the cache, header, library, library's file in the packages
function(quadric_find_math name header library file)
  find_path(QUADRIC_${name}_INCLUDE_DIR ${header} HINTS ${folders} ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
  find_library(QUADRIC_${name}_LIBRARY NAMES ${library} ${file}
    HINTS ${folders} ${CUDAToolkit_LIBRARY_DIR} PATH_SUFFIXES lib lib64)
  mark_as_advanced(QUADRIC_${name}_INCLUDE_DIR QUADRIC_${name}_LIBRARY)
endfunction()
quadric_find_math(CUBLAS cublas_v2.h cublas libcublas.so.${CUDAToolkit_VERSION_MAJOR})
math(EXPR version_of_solver "${CUDAToolkit_VERSION_MAJOR} - 1")
quadric_find_math(CUSOLVER cusolverDn.h cusolver libcusolver.so.${version_of_solver})
foreach(name IN ITEMS CUBLAS CUSOLVER)
  if(NOT QUADRIC_${name}_INCLUDE_DIR OR NOT QUADRIC_${name}_LIBRARY)
    quadric_without_cuda("cuBLAS or cuSOLVER was not found: install them with the CUDA toolkit, or the PyPI packages \
nvidia-cublas and nvidia-cusolver, and set QUADRIC_NVIDIA_DIR to their folder nvidia/cu${CUDAToolkit_VERSION_MAJOR}")
  endif()
endforeach()

# ---- the compiler ---------------------------------------------------------------------------------------------------

if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  set(ENV{CUDACXX} ${CUDAToolkit_NVCC_EXECUTABLE})
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES "90a-real;90-virtual" CACHE STRING "GPUs to compile for")
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  quadric_without_cuda("${CUDAToolkit_NVCC_EXECUTABLE} does not compile; CUDAHOSTCXX may name a compiler that it takes")
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)

# Full paths: a target of the toolkit would have to be found again by whoever links the installed library.
add_library(quadric_cuda_math INTERFACE)
target_include_directories(quadric_cuda_math SYSTEM INTERFACE
  ${QUADRIC_CUBLAS_INCLUDE_DIR} ${QUADRIC_CUSOLVER_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(quadric_cuda_math INTERFACE ${QUADRIC_CUSOLVER_LIBRARY} ${QUADRIC_CUBLAS_LIBRARY})
set(QUADRIC_HAS_CUDA ON)
message(STATUS "CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}, with ${QUADRIC_CUBLAS_LIBRARY}")
