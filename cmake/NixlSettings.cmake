# How everything of the project is compiled: language, warnings, sanitizers, cache, layout.
include(GNUInstallDirs)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "Build type" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
# Link by RUNPATH relative to the file itself, in the build tree as in the installed one.
set(CMAKE_BUILD_RPATH_USE_ORIGIN ON)

# One layout for build tree and prefix: lib/libnixl.so.1, lib/nixl/plugins/. Inside a wheel the
# install prefix is the package folder: nixl/lib/libnixl.so.1, nixl/lib/plugins/.
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib")
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
set(NIXL_BUILD_PLUGIN_DIR "${CMAKE_BINARY_DIR}/lib/nixl/plugins")
set(NIXL_BUILD_PYTHON_DIR "${CMAKE_BINARY_DIR}/python")
if(SKBUILD)
  set(CMAKE_INSTALL_LIBDIR lib)
  set(NIXL_INSTALL_PLUGIN_DIR lib/plugins)
  set(NIXL_PLUGIN_RPATH "$ORIGIN/..")
else()
  set(NIXL_INSTALL_PLUGIN_DIR "${CMAKE_INSTALL_LIBDIR}/nixl/plugins")
  set(NIXL_PLUGIN_RPATH "$ORIGIN/../..")
endif()

# The same flags everywhere, so that precompiled headers and the compiler cache can be shared.
add_compile_options(-Wall -Wextra -Wno-unknown-warning-option)
add_compile_options("-ffile-prefix-map=${PROJECT_SOURCE_DIR}/=")
add_link_options(LINKER:--enable-new-dtags LINKER:--as-needed)
if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wthread-safety>)
endif()

if(NIXL_SANITIZE OR NIXL_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES Clang)
    message(FATAL_ERROR "NIXL_SANITIZE=${NIXL_SANITIZE} NIXL_FUZZ=${NIXL_FUZZ}: needs clang, "
                        "this is ${CMAKE_CXX_COMPILER_ID}; use -DCMAKE_CXX_COMPILER=clang++")
  endif()
  if(NIXL_SANITIZE STREQUAL "address")
    set(flags -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  elseif(NIXL_SANITIZE STREQUAL "thread")
    set(flags -fsanitize=thread -fno-omit-frame-pointer)
  elseif(NIXL_SANITIZE)
    message(FATAL_ERROR "NIXL_SANITIZE=${NIXL_SANITIZE}: must be empty, address or thread")
  endif()
  if(NIXL_FUZZ)
    list(APPEND flags -fsanitize=fuzzer-no-link)
  endif()
  add_compile_options(${flags})
  add_link_options(${flags})
else()
  add_link_options($<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,SHARED_LIBRARY>:LINKER:--no-undefined>
                   $<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,MODULE_LIBRARY>:LINKER:-z,noexecstack>)
endif()

# ccache: results are shared between checkouts (relative paths) and work with precompiled headers.
if(NIXL_CCACHE)
  find_program(NIXL_CCACHE_PROGRAM ccache)
  if(NIXL_CCACHE_PROGRAM)
    foreach(language IN ITEMS C CXX)
      set(CMAKE_${language}_COMPILER_LAUNCHER
          ${CMAKE_COMMAND} -E env "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}" CCACHE_NOHASHDIR=1
          CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
          ${NIXL_CCACHE_PROGRAM})
    endforeach()
    if(NIXL_PCH AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
      add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
    elseif(NIXL_PCH AND CMAKE_CXX_COMPILER_ID MATCHES Clang)
      add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-Xclang -fno-pch-timestamp>")
    endif()
  endif()
endif()

find_package(Threads REQUIRED)
configure_file("${PROJECT_SOURCE_DIR}/cmake/version.h.in"
               "${CMAKE_BINARY_DIR}/generated/nixl/version.h" @ONLY)
