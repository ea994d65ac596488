# The emulator that runs CUDA kernels on the CPU (tests/cuda_on_cpu/), and how .cu files are compiled
# for it: as host C++, without a CUDA toolkit.
include_guard()
include(CheckCSourceRuns)

# Most of a kernel's arithmetic is fmaf: an instruction where this machine has it, else a call of libm
# with the same bits. The programs that run kernels here are built and run on one machine.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT CMAKE_CROSSCOMPILING)
  check_c_source_runs("int main(void) { return !__builtin_cpu_supports(\"fma\"); }" TAPIR_HAVE_FMA)
endif()

# The OBJECT library cuda_on_cpu.
function(tapir_cuda_on_cpu)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/cuda_on_cpu/*.cc)
  add_library(cuda_on_cpu OBJECT ${sources})
  target_include_directories(cuda_on_cpu BEFORE PUBLIC ${CMAKE_SOURCE_DIR}/tests/cuda_on_cpu
                             ${CMAKE_SOURCE_DIR})
  target_compile_definitions(cuda_on_cpu PUBLIC TP_CUDA_ON_CPU)
  tapir_cxx_options(cuda_on_cpu)
  if(TAPIR_SANITIZE) # its time is most of what kernels take here; the release build tests it as well
    target_compile_options(cuda_on_cpu PRIVATE -O2 -fno-sanitize=undefined)
  endif()
  if(EXISTS ${CMAKE_SOURCE_DIR}/tests/cuda_on_cpu_test.cc)
    tapir_cuda_on_cpu_tests()
  endif()
endfunction()

# tapir_cuda_kernels_on_cpu(NAME a.cu b.cu ...): an OBJECT library of kernels. Programs link it and
# cuda_on_cpu.
function(tapir_cuda_kernels_on_cpu name)
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX)
  add_library(${name} OBJECT ${ARGN})
  target_include_directories(${name} BEFORE PUBLIC ${CMAKE_SOURCE_DIR}/tests/cuda_on_cpu
                             ${CMAKE_SOURCE_DIR})
  target_compile_definitions(${name} PUBLIC TP_CUDA_ON_CPU)
  tapir_cxx_options(${name})
  if(TAPIR_HAVE_FMA)
    target_compile_options(${name} PRIVATE -mfma)
  endif()
endfunction()

function(tapir_cuda_on_cpu_tests)
  pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)
  foreach(name cuda_on_cpu cuda_on_cpu_host)
    add_executable(${name}_test ${CMAKE_SOURCE_DIR}/tests/${name}_test.cc)
    target_link_libraries(${name}_test PRIVATE cuda_on_cpu PkgConfig::CMOCKA)
    tapir_cxx_options(${name}_test)
    add_test(NAME ${name} COMMAND ${name}_test)
  endforeach()
endfunction()
