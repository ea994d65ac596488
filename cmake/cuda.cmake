# The CUDA kernels. With TAPIR_CUDA (cmake --preset cuda) nvcc compiles them into the library. Else,
# where tests are built, the same sources are compiled as C++ and run on the CPU by
# tests/cuda_on_cpu, so that every machine tests them.
option(TAPIR_CUDA "compile the CUDA kernels with nvcc" OFF)

file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/core/*.cu ${CMAKE_SOURCE_DIR}/ops/*.cu
     ${CMAKE_SOURCE_DIR}/ops/*/*.cu)

# nvcc, for sm_80 (runs on everything later as well) and sm_90a (Hopper's own instructions).
function(tapir_cuda)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real" CACHE STRING "GPU architectures")
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  add_library(tapir_cuda OBJECT ${CUDA_SOURCES})
  target_include_directories(tapir_cuda PRIVATE ${CMAKE_SOURCE_DIR})
  target_compile_features(tapir_cuda PRIVATE cuda_std_20)
  # fused only where the source says fmaf, as on the CPU
  target_compile_options(tapir_cuda PRIVATE --fmad=false -Xptxas=-v
                         "-Xcompiler=-Wall,-Wno-missing-field-initializers" -diag-suppress=177)
  target_compile_definitions(tapir PUBLIC TAPIR_CUDA)
  target_link_libraries(tapir PUBLIC $<TARGET_OBJECTS:tapir_cuda> CUDA::cudart CUDA::cublasLt)
  add_dependencies(tapir tapir_cuda)
endfunction()

# The kernels as C++ for the CPU, with what stands in for CUDA: link it to a program of tapir's.
function(tapir_cuda_emulated)
  enable_language(CXX)
  include(${CMAKE_SOURCE_DIR}/cmake/cuda_on_cpu.cmake)
  tapir_cuda_on_cpu()
  set_source_files_properties(${CUDA_SOURCES} PROPERTIES LANGUAGE CXX)
  add_library(cuda_emulated OBJECT ${CUDA_SOURCES})
  set_target_properties(cuda_emulated PROPERTIES CXX_STANDARD 20 CXX_EXTENSIONS ON)
  target_include_directories(cuda_emulated PUBLIC ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/tests/cuda_on_cpu)
  target_compile_definitions(cuda_emulated PUBLIC TP_CUDA_ON_CPU)
  target_compile_options(cuda_emulated PRIVATE -O2 -Wno-unknown-pragmas -Wno-pedantic)
endfunction()

# A program of tests/cuda/: linked with the kernels of this build.
function(tapir_cuda_program name)
  add_executable(${name} ${ARGN})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests/lib)
  if(NOT TAPIR_CUDA)
    target_compile_definitions(${name} PRIVATE TP_CUDA_ON_CPU)
    target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests/cuda_on_cpu)
    target_link_libraries(${name} PRIVATE $<TARGET_OBJECTS:cuda_emulated> $<TARGET_OBJECTS:cuda_on_cpu>)
    set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
  endif()
endfunction()

function(tapir_cuda_tests ops)
  if(NOT EXISTS ${CMAKE_SOURCE_DIR}/cmake/cuda_on_cpu.cmake)
    return()
  endif()
  if(NOT TAPIR_CUDA)
    tapir_cuda_emulated()
  endif()
  tapir_cuda_program(cuda_op_test ${CMAKE_SOURCE_DIR}/tests/cuda/cuda_op_test.c)
  target_link_libraries(cuda_op_test PRIVATE tapir_testlib tapir)
  foreach(op ${ops})
    add_test(NAME cuda.${op} COMMAND cuda_op_test ${op})
  endforeach()
endfunction()
