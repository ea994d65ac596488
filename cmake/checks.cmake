# Other ways to build, which find mistakes: ThreadSanitizer, line coverage, and `lint`, which reads the source only.
option(TAPIR_TSAN "build with ThreadSanitizer" OFF)
option(TAPIR_FUZZ "build fuzz/ for libFuzzer, with clang; fuzz/run.sh does so and runs them" OFF)
option(TAPIR_COVERAGE "count executed lines; the target coverage prints them" OFF)
set(TAPIR_TEST_TIMEOUT 1800 CACHE STRING "seconds after which a test is taken to hang")
if(TAPIR_TSAN)
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
endif()
if(TAPIR_FUZZ)
  if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "TAPIR_FUZZ needs clang: Debian's packages clang, libclang-rt-dev and libomp-dev")
  endif()
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
if(TAPIR_COVERAGE)
  add_compile_options(--coverage -fprofile-update=atomic) # threads count as well
  add_link_options(--coverage)
endif()

# After tests are known. None may hang. coverage: their programs, those that need no GPU and no long run, then a
# line per folder. lint: what .clang-tidy and cppcheck find; both are optional Debian packages.
function(tapir_checks)
  if(TAPIR_COVERAGE AND TAPIR_TESTS)
    get_property(programs GLOBAL PROPERTY TAPIR_TEST_PROGRAMS)
    add_custom_target(coverage COMMAND sh ${CMAKE_SOURCE_DIR}/tests/lib/coverage.sh ${CMAKE_SOURCE_DIR}
                      ${CMAKE_BINARY_DIR} DEPENDS tapir_bin ${programs} USES_TERMINAL VERBATIM)
  endif()
  if(TAPIR_TSAN AND TAPIR_TESTS)
    add_executable(tsan_race tests/tsan_race.c)
    target_link_libraries(tsan_race PRIVATE tapir)
    add_test(NAME tsan_race COMMAND tsan_race)
    add_test(NAME tsan_race.openmp COMMAND tsan_race openmp)
    set_tests_properties(tsan_race tsan_race.openmp PROPERTIES PASS_REGULAR_EXPRESSION "ThreadSanitizer: data race")
  endif()
  get_property(tests DIRECTORY PROPERTY TESTS)
  if(tests) # ctest ends one that hangs, and what it has started
    set_tests_properties(${tests} PROPERTIES TIMEOUT ${TAPIR_TEST_TIMEOUT})
  endif()
  # The longest begin first, seconds as here: at the end one alone would leave the other cores idle.
  foreach(row 600:cuda.ranks 500:cuda.ptx 200:same_bits 160:cuda.train 80:cuda.lce 70:kills_test 70:grpo 60:hostile 50:cuda.registers
          50:cuda.hopper_attention 50:mod_decode_test 50:cuda.attention_tiles 40:cuda.gemm 30:mod_test 20:mpirun 20:infer_test)
    string(REGEX MATCH "^([0-9]+):(.*)$" row ${row})
    if(CMAKE_MATCH_2 IN_LIST tests)
      set_tests_properties(${CMAKE_MATCH_2} PROPERTIES COST ${CMAKE_MATCH_1})
    endif()
  endforeach()
  add_custom_target(lint COMMAND sh ${CMAKE_SOURCE_DIR}/tests/lib/lint.sh ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}
                    DEPENDS tapir USES_TERMINAL VERBATIM)
endfunction()
