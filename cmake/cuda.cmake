# The CUDA kernels. With TAPIR_CUDA (cmake --preset cuda) nvcc compiles them into the library. Else,
# where tests are built, the same sources are compiled as C++ and run on the CPU by
# tests/cuda_on_cpu, so that every machine tests them.
option(TAPIR_CUDA "compile the CUDA kernels with nvcc" OFF)

file(GLOB CUDA_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/core/*.cu ${CMAKE_SOURCE_DIR}/ops/*.cu
     ${CMAKE_SOURCE_DIR}/ops/*/*.cu)
if(TAPIR_CUDA OR TAPIR_TESTS)
  enable_language(CXX)
  set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1")
  set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g")
endif()

# The project's options, less what g++ takes for C only, and C++20.
function(tapir_cxx_options target)
  get_target_property(options ${target} COMPILE_OPTIONS)
  list(REMOVE_ITEM options -Wstrict-prototypes -Wmissing-prototypes)
  set_target_properties(${target} PROPERTIES COMPILE_OPTIONS "${options}" CXX_STANDARD 20
                        CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS ON)
  target_compile_options(${target} PRIVATE -fno-exceptions -fno-rtti -Wno-psabi -Wno-unknown-pragmas
                         -Wno-pedantic)
endfunction()

if(TAPIR_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES "80;90a-real" CACHE STRING "GPU architectures")
  enable_language(CUDA)
elseif(TAPIR_TESTS)
  include(${CMAKE_SOURCE_DIR}/cmake/cuda_on_cpu.cmake)
endif()

# Not the project's options, which are gcc's. -std: CMake 3.25 does not know it of CUDA 13.
# --fmad=false: fused only where the source says fmaf, as on the CPU. -compress-all: a fifth of the size.
function(tapir_nvcc_options target)
  set_target_properties(${target} PROPERTIES COMPILE_OPTIONS "")
  target_compile_options(${target} PRIVATE -std=c++20 --fmad=false -Xptxas=-v -Xfatbin=-compress-all
                         "-Xcompiler=-Wall,-Wno-missing-field-initializers,-Wno-unused-function"
                         -diag-suppress=177)
endfunction()

# nvcc, for sm_80, sm_90a (Hopper's own instructions) and compute_80, which the driver compiles for
# whatever comes later: a GPU runs no other generation's machine code.
function(tapir_cuda)
  find_package(CUDAToolkit REQUIRED)
  add_library(tapir_cuda OBJECT ${CUDA_SOURCES})
  target_include_directories(tapir_cuda PRIVATE ${CMAKE_SOURCE_DIR})
  tapir_nvcc_options(tapir_cuda)
  if(CMAKE_CUDA_ARCHITECTURES MATCHES "90a") # else Hopper runs what Ampere does
    target_compile_definitions(tapir_cuda PRIVATE TAPIR_SM90A)
  endif()
  target_compile_definitions(tapir PRIVATE TAPIR_CUDA)
  # As one object, of no language: otherwise whoever links the library would have to speak CUDA.
  set(kernels ${CMAKE_BINARY_DIR}/cuda_kernels.o)
  add_custom_command(OUTPUT ${kernels} COMMAND ${CMAKE_LINKER} -r -o ${kernels} $<TARGET_OBJECTS:tapir_cuda>
                     DEPENDS $<TARGET_OBJECTS:tapir_cuda> COMMAND_EXPAND_LISTS VERBATIM)
  set_source_files_properties(${kernels} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  target_sources(tapir PRIVATE ${kernels})
  target_link_libraries(tapir PRIVATE CUDA::cudart CUDA::cublasLt stdc++)
endfunction()

# A program of tests/cuda/: linked with the kernels of this build.
function(tapir_cuda_program name)
  add_executable(${name} ${ARGN})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests/lib)
  if(NOT TAPIR_CUDA)
    target_link_libraries(${name} PRIVATE cuda_emulated cuda_on_cpu)
    set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
  endif()
endfunction()

# A test of the device: without a GPU it is skipped, where nvcc built the kernels. One at a time, as
# a context takes all of the GPU's memory.
function(tapir_cuda_test name)
  if(TAPIR_CUDA)
    add_test(NAME ${name} COMMAND sh ${CMAKE_SOURCE_DIR}/tests/cuda/on_gpu.sh $<TARGET_FILE:tapir_bin> ${ARGN})
    set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 RESOURCE_LOCK gpu)
  else()
    add_test(NAME ${name} COMMAND ${ARGN})
  endif()
endfunction()

function(tapir_cuda_tests ops)
  if(NOT TAPIR_CUDA)
    tapir_cuda_on_cpu()
    tapir_cuda_kernels_on_cpu(cuda_emulated ${CUDA_SOURCES})
  endif()
  tapir_cuda_program(cuda_op_test ${CMAKE_SOURCE_DIR}/tests/cuda/cuda_op_test.c)
  target_link_libraries(cuda_op_test PRIVATE tapir_testlib tapir)
  # tests/cuda/NAME_test.c(c) is the test cuda.NAME. hopper_test has kernels of its own.
  file(GLOB programs CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/cuda/*_test.c ${CMAKE_SOURCE_DIR}/tests/cuda/*_test.cc)
  list(FILTER programs EXCLUDE REGEX "/cuda_op_test\\.c$")
  if(TAPIR_CUDA)
    set_source_files_properties(${CMAKE_SOURCE_DIR}/tests/cuda/hopper_test.cc PROPERTIES LANGUAGE CUDA)
  endif()
  if(TAPIR_SANITIZE) # two wrong copies of kernels, which UBSan would compile for a minute; the right one has it
    set_source_files_properties(${CMAKE_SOURCE_DIR}/tests/cuda/attention_tiles_test.cc PROPERTIES
                                COMPILE_OPTIONS -fno-sanitize=undefined)
  endif()
  foreach(src ${programs})
    get_filename_component(name ${src} NAME_WE)
    tapir_cuda_program(cuda_${name} ${src})
    if(name STREQUAL "alloc_test")
      target_link_libraries(cuda_${name} PRIVATE tapir_failing)
    endif()
    target_link_libraries(cuda_${name} PRIVATE tapir_testlib tapir)
    if(src MATCHES "/hopper_test\\.cc$" AND TAPIR_CUDA)
      tapir_nvcc_options(cuda_${name})
    elseif(src MATCHES "\\.cc$")
      tapir_cxx_options(cuda_${name})
    endif()
    if(TAPIR_CUDA)
      target_link_libraries(cuda_${name} PRIVATE CUDA::cudart)
    endif()
    string(REGEX REPLACE "_test$" "" test ${name})
    tapir_cuda_test(cuda.${test} $<TARGET_FILE:cuda_${name}>)
  endforeach()
  if(NOT TAPIR_CUDA) # the program itself, with its kernels on the CPU
    tapir_cuda_program(tapir_emulated ${CLI_SOURCES})
    target_include_directories(tapir_emulated PRIVATE ${CMAKE_BINARY_DIR})
    target_link_libraries(tapir_emulated PRIVATE tapir_trainer PkgConfig::TAPIR_DEPS)
    set(tapir_with_cuda tapir_emulated)
  else()
    set(tapir_with_cuda tapir_bin)
  endif()
  foreach(name train grpo ranks)
    tapir_cuda_test(cuda.${name} sh ${CMAKE_SOURCE_DIR}/tests/cuda/${name}.sh $<TARGET_FILE:${tapir_with_cuda}>
                    ${CMAKE_SOURCE_DIR} $<$<BOOL:${TAPIR_SANITIZE}>:short>)
  endforeach()
  set_tests_properties(cuda.ranks PROPERTIES SKIP_RETURN_CODE 77 PROCESSORS 4)
  set(widths "$<$<NOT:$<BOOL:${TAPIR_CUDA}>>:short>") # real ones are a GPU's
  tapir_cuda_test(cuda.wide sh ${CMAKE_SOURCE_DIR}/tests/cuda/wide.sh $<TARGET_FILE:${tapir_with_cuda}> ${CMAKE_SOURCE_DIR} ${widths})
  # docs/lessons/10-cuda.md: the kernel that its debugger stops in, with all its variables
  if(NOT TAPIR_CUDA)
    tapir_cuda_kernels_on_cpu(lesson_kernel ${CMAKE_SOURCE_DIR}/ops/attention/attention_sm80.cu)
    target_compile_options(lesson_kernel PRIVATE -O0 -g)
    add_executable(lesson_cuda_flash ${CMAKE_SOURCE_DIR}/docs/lessons/code/cuda/flash.c)
    target_link_libraries(lesson_cuda_flash PRIVATE tapir lesson_kernel cuda_on_cpu
      $<FILTER:$<TARGET_OBJECTS:cuda_emulated>,EXCLUDE,attention_sm80>)
    set_target_properties(lesson_cuda_flash PROPERTIES LINKER_LANGUAGE CXX)
  endif()
  add_test(NAME cuda.registers COMMAND sh ${CMAKE_SOURCE_DIR}/tests/cuda/registers.sh ${CMAKE_SOURCE_DIR})
  add_test(NAME cuda.ptx COMMAND sh ${CMAKE_SOURCE_DIR}/tests/cuda/ptx.sh ${CMAKE_BINARY_DIR} ${CMAKE_SOURCE_DIR})
  set_tests_properties(cuda.registers cuda.ptx PROPERTIES SKIP_RETURN_CODE 77 LABELS slow)
  set_tests_properties(cuda.ptx PROPERTIES PROCESSORS 2) # as many as there are, for part of the time
  # bench/cuda/NAME.c is the program bench_cuda_NAME; on the CPU it only shows that it works.
  file(GLOB benches CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bench/cuda/*.c)
  list(FILTER benches EXCLUDE REGEX "/bench/cuda/bench\\.c$")
  foreach(src ${benches})
    get_filename_component(name ${src} NAME_WE)
    tapir_cuda_program(bench_cuda_${name} ${src} ${CMAKE_SOURCE_DIR}/bench/cuda/bench.c)
    target_link_libraries(bench_cuda_${name} PRIVATE tapir)
    tapir_cuda_test(cuda.bench_${name} $<TARGET_FILE:bench_cuda_${name}> --small)
  endforeach()
  foreach(op ${ops})
    tapir_cuda_test(cuda.${op} $<TARGET_FILE:cuda_op_test> ${op})
  endforeach()
endfunction()
