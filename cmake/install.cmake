# What `cmake --install build --prefix DIR` puts there: library, headers, program, and how others
# find them. The library is static only. Its structs are passed by value and grow from release to
# release, so a shared one would need a new name each time; and a program that carries its kernels
# keeps its bits, whatever is installed later. To link it into a shared object of yours, configure
# with -DCMAKE_POSITION_INDEPENDENT_CODE=ON.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# The public headers, as examples/ and installed programs include them.
set(TAPIR_PUBLIC_HEADERS ${CMAKE_BINARY_DIR}/include)
file(GLOB headers CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/include/*.h ${CMAKE_SOURCE_DIR}/*/*.h ${CMAKE_SOURCE_DIR}/ops/*/*.h)
add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/headers.stamp
                   COMMAND ${CMAKE_COMMAND} -DSOURCE=${CMAKE_SOURCE_DIR} -DOUT=${TAPIR_PUBLIC_HEADERS}/tapir
                           -P ${CMAKE_SOURCE_DIR}/cmake/headers.cmake
                   COMMAND ${CMAKE_COMMAND} -E touch ${CMAKE_BINARY_DIR}/headers.stamp
                   DEPENDS ${headers} cmake/headers.cmake VERBATIM)
add_custom_target(tapir_headers ALL DEPENDS ${CMAKE_BINARY_DIR}/headers.stamp)

function(tapir_install)
  install(TARGETS tapir EXPORT TapirTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
          INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  # The same in the build folder: making room for a longer path later would leave an empty entry there,
  # which means the current folder, whatever lies in it.
  set_target_properties(tapir_bin PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}"
                        INSTALL_RPATH_USE_LINK_PATH ON BUILD_WITH_INSTALL_RPATH ON)
  install(TARGETS tapir_bin RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  if(TARGET tapir_nccl)
    install(TARGETS tapir_nccl LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  endif()
  install(DIRECTORY ${TAPIR_PUBLIC_HEADERS}/tapir DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(FILES cli/completion.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME tapir)

  set(package ${CMAKE_INSTALL_LIBDIR}/cmake/Tapir)
  configure_package_config_file(cmake/TapirConfig.cmake.in ${CMAKE_BINARY_DIR}/TapirConfig.cmake
                                INSTALL_DESTINATION ${package})
  # Before 1.0 a minor release may change what programs see.
  write_basic_package_version_file(${CMAKE_BINARY_DIR}/TapirConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${CMAKE_BINARY_DIR}/TapirConfig.cmake ${CMAKE_BINARY_DIR}/TapirConfigVersion.cmake DESTINATION ${package})
  install(EXPORT TapirTargets NAMESPACE Tapir:: DESTINATION ${package})

  # tapir.pc. Everything stands in Libs, not Libs.private: there is no shared library that could do
  # without, and --static would also ask for what only HDF5's own static library needs.
  set(PC_LIBRARIES ${OpenMP_C_FLAGS} ${HDF5_C_LIBRARIES} ${DNNL_FILE} ${CMAKE_DL_LIBS} pthread m)
  if(MPI_C_FOUND)
    list(APPEND PC_LIBRARIES ${MPI_C_LIBRARIES})
  endif()
  if(TAPIR_CUDA)
    list(APPEND PC_LIBRARIES ${CUDA_cudart_LIBRARY} ${CUDA_cublasLt_LIBRARY} stdc++)
  endif()
  list(TRANSFORM PC_LIBRARIES PREPEND "-l" REGEX "^[^-/]")
  list(JOIN PC_LIBRARIES " " PC_LIBRARIES)
  list(JOIN TAPIR_PKG_CONFIG " " PC_REQUIRES)
  file(RELATIVE_PATH PC_UP /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
  string(REGEX REPLACE "/$" "" PC_UP ${PC_UP})
  configure_file(cmake/tapir.pc.in ${CMAKE_BINARY_DIR}/tapir.pc @ONLY)
  install(FILES ${CMAKE_BINARY_DIR}/tapir.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()
