# Helpers that make targets: modules of the core, plugins, tests.
#
#   nixl_module(NAME [LINK lib…])                 one folder of src/, part of libnixl
#   nixl_plugin(NAME [SOURCES f…] [LINK lib…])    one folder of plugins/, libplugin_name.so
#     (EXPORTER: a telemetry exporter, libtelemetry_exporter_name.so)
#   nixl_plugin_part(NAME SOURCES f… [LINK lib…]) code that several plugins hold
#   nixl_test(NAME SOURCES f… [LINK lib…])        one GoogleTest program
#   nixl_add_folder(DIR)                          add_subdirectory where the folder exists
include(GoogleTest)

# What a program needs to run: library, plugins, Python modules; no tests.
add_custom_target(nixl_runtime)

define_property(GLOBAL PROPERTY NIXL_CORE_MODULES)
define_property(GLOBAL PROPERTY NIXL_CORE_LINK)
define_property(GLOBAL PROPERTY NIXL_STATIC_PLUGIN_TARGETS)

function(nixl_add_folder folder)
  if(EXISTS "${PROJECT_SOURCE_DIR}/${folder}/CMakeLists.txt")
    add_subdirectory("${PROJECT_SOURCE_DIR}/${folder}" "${PROJECT_BINARY_DIR}/${folder}")
  endif()
endfunction()

# Gives `target` the standard headers precompiled; `kind` is core or test.
function(nixl_use_pch target kind)
  if(NOT NIXL_PCH)
    return()
  endif()
  if(NOT TARGET nixl_pch_${kind})
    add_library(nixl_pch_${kind} OBJECT "${PROJECT_SOURCE_DIR}/cmake/pch.cpp")
    target_compile_features(nixl_pch_${kind} PRIVATE cxx_std_20)
    target_link_libraries(nixl_pch_${kind} PRIVATE Threads::Threads)
    if(kind STREQUAL "test")
      target_link_libraries(nixl_pch_test PRIVATE GTest::gmock GTest::gtest)
      target_precompile_headers(nixl_pch_test PRIVATE "${PROJECT_SOURCE_DIR}/cmake/pch_test.h")
    else()
      target_precompile_headers(nixl_pch_core PRIVATE "${PROJECT_SOURCE_DIR}/cmake/pch.h")
    endif()
  endif()
  target_precompile_headers(${target} REUSE_FROM nixl_pch_${kind})
endfunction()

# With NIXL_UNITY compiles the files of `target` together, a few at a time so that two processors
# have something to do: most of the time goes into templates that each file makes anew
# (docs/decisions/0010-unity-builds.md).
function(nixl_use_unity target)
  if(NIXL_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
  endif()
endfunction()

# The include path of public headers, for targets inside this build.
function(nixl_public_includes target scope)
  target_include_directories(
    ${target} ${scope} $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
    $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/generated>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endfunction()

# Code that is loaded into other people's processes runs nothing before it is called.
function(nixl_no_global_constructors target)
  if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
    target_compile_options(${target} PRIVATE -Wglobal-constructors)
  endif()
endfunction()

# Sets in the caller `sources` and `tests`: the *.cpp below the current folder.
function(nixl_glob folder)
  file(GLOB_RECURSE all CONFIGURE_DEPENDS "${folder}/*.cpp")
  set(tests ${all})
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
  list(FILTER all EXCLUDE REGEX "_test\\.cpp$")
  set(sources ${all} PARENT_SCOPE)
  set(tests ${tests} PARENT_SCOPE)
endfunction()

function(nixl_module name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "LINK")
  nixl_glob("${PROJECT_SOURCE_DIR}/src/${name}")
  if(sources)
    add_library(nixl_${name} OBJECT ${sources})
    nixl_public_includes(nixl_${name} PUBLIC)
    target_include_directories(nixl_${name} PUBLIC "${PROJECT_SOURCE_DIR}/src")
    nixl_no_global_constructors(nixl_${name})
    target_link_libraries(nixl_${name} PRIVATE Threads::Threads ${arg_LINK})
    nixl_use_pch(nixl_${name} core)
    nixl_use_unity(nixl_${name})
    set_property(GLOBAL APPEND PROPERTY NIXL_CORE_MODULES nixl_${name})
    set_property(GLOBAL APPEND PROPERTY NIXL_CORE_LINK ${arg_LINK})
  endif()
  if(tests AND NIXL_TESTS)
    nixl_test(${name}_test SOURCES ${tests} LINK ${arg_LINK})
  endif()
endfunction()

# libnixl.so.1 of all modules, and the same objects as nixl_static, through which tests reach
# what the shared library does not export.
function(nixl_core)
  get_property(modules GLOBAL PROPERTY NIXL_CORE_MODULES)
  get_property(links GLOBAL PROPERTY NIXL_CORE_LINK)
  set(objects)
  foreach(module IN LISTS modules)
    list(APPEND objects $<TARGET_OBJECTS:${module}>)
  endforeach()
  add_library(nixl SHARED "${PROJECT_SOURCE_DIR}/cmake/version.cpp" ${objects})
  add_library(nixl::nixl ALIAS nixl)
  add_dependencies(nixl_runtime nixl)
  add_library(nixl_static STATIC EXCLUDE_FROM_ALL "${PROJECT_SOURCE_DIR}/cmake/version.cpp"
                                                  ${objects})
  target_include_directories(nixl_static PUBLIC "${PROJECT_SOURCE_DIR}/src")
  foreach(target IN ITEMS nixl nixl_static)
    nixl_public_includes(${target} PUBLIC)
    target_compile_features(${target} PUBLIC cxx_std_20)
    target_link_libraries(${target} PRIVATE Threads::Threads ${CMAKE_DL_LIBS} ${links})
  endforeach()
  set(map "${PROJECT_SOURCE_DIR}/cmake/libnixl.map")
  set_target_properties(
    nixl
    PROPERTIES SOVERSION ${PROJECT_VERSION_MAJOR}
               LINK_DEPENDS "${map}"
               INSTALL_RPATH "$ORIGIN")
  if(NOT SKBUILD) # a wheel cannot hold symbolic links: there the file is libnixl.so.1 itself
    set_target_properties(nixl PROPERTIES VERSION ${PROJECT_VERSION})
  endif()
  target_link_options(nixl PRIVATE "LINKER:--version-script=${map}")
endfunction()

# A plugin is a folder; its files include only <nixl/…> and its own. *_test.cpp beside them become
# the program plugin_NAME_test, which holds the plugin's objects and the whole core.
function(nixl_plugin name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "EXPORTER" ""
                        "SOURCES;SHARED_SOURCES;TESTS;LINK;DEFINITIONS;INCLUDES;TEST_LINK")
  string(TOLOWER "${name}" file_name)
  if(arg_EXPORTER)
    string(PREPEND file_name telemetry_exporter_)
  else()
    string(PREPEND file_name plugin_)
  endif()
  nixl_glob("${CMAKE_CURRENT_SOURCE_DIR}")
  if(arg_SOURCES)
    set(sources ${arg_SOURCES})
  endif()
  if(arg_TESTS)
    set(tests ${arg_TESTS})
  endif()
  set(objects plugin_${name}_objects)
  add_library(${objects} OBJECT ${sources} ${arg_SHARED_SOURCES}) # these of another plugin's folder
  nixl_public_includes(${objects} PUBLIC)
  target_include_directories(${objects} PRIVATE ${arg_INCLUDES})
  target_compile_definitions(${objects} PRIVATE ${arg_DEFINITIONS})
  target_link_libraries(${objects} PRIVATE Threads::Threads ${arg_LINK})
  nixl_no_global_constructors(${objects})
  nixl_use_pch(${objects} core)
  nixl_use_unity(${objects})
  if(NIXL_STATIC_PLUGINS STREQUAL "ALL" OR name IN_LIST NIXL_STATIC_PLUGINS)
    target_compile_definitions(${objects} PRIVATE NIXL_STATIC_PLUGIN_NAME=${name})
    target_sources(nixl PRIVATE $<TARGET_OBJECTS:${objects}>)
    target_sources(nixl_static PRIVATE $<TARGET_OBJECTS:${objects}>)
    target_link_libraries(nixl PRIVATE ${arg_LINK})
    target_link_libraries(nixl_static PRIVATE ${arg_LINK})
    set_property(GLOBAL APPEND PROPERTY NIXL_STATIC_PLUGIN_TARGETS ${name})
  else()
    add_library(plugin_${name} MODULE $<TARGET_OBJECTS:${objects}>)
    set_target_properties(
      plugin_${name}
      PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${NIXL_BUILD_PLUGIN_DIR}"
                 OUTPUT_NAME "${file_name}"
                 LINKER_LANGUAGE CXX
                 INSTALL_RPATH "${NIXL_PLUGIN_RPATH}")
    target_link_libraries(plugin_${name} PRIVATE nixl ${arg_LINK})
    add_dependencies(nixl_runtime plugin_${name})
    set(map "${PROJECT_SOURCE_DIR}/cmake/plugin.map")
    set_property(TARGET plugin_${name} PROPERTY LINK_DEPENDS "${map}")
    target_link_options(plugin_${name} PRIVATE "LINKER:--version-script=${map}")
    install(TARGETS plugin_${name} LIBRARY DESTINATION "${NIXL_INSTALL_PLUGIN_DIR}"
                                           COMPONENT runtime)
  endif()
  message(STATUS "nixl: plugin ${name}: on")
  if(tests AND NIXL_TESTS)
    set(test_objects)
    if(TARGET plugin_${name})
      set(test_objects $<TARGET_OBJECTS:${objects}>)
    endif()
    nixl_test(
      plugin_${name}_test
      SOURCES ${tests} OBJECTS ${test_objects}
      LINK ${arg_LINK} ${arg_TEST_LINK}
      INCLUDES "${CMAKE_CURRENT_SOURCE_DIR}" ${arg_INCLUDES}
      DEFINITIONS ${arg_DEFINITIONS})
    if(TARGET plugin_${name})
      add_dependencies(plugin_${name}_test plugin_${name})
    endif()
  endif()
endfunction()

# Code that several plugins hold a copy of: LINK plugin_part_NAME of nixl_plugin. As a plugin it
# includes only <nixl/…>; those that use it include it as "FOLDER/…".
function(nixl_plugin_part name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK;DEFINITIONS")
  set(part plugin_part_${name})
  add_library(${part} OBJECT ${arg_SOURCES})
  nixl_public_includes(${part} PUBLIC)
  target_include_directories(${part} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/plugins>)
  target_compile_definitions(${part} PRIVATE ${arg_DEFINITIONS})
  target_link_libraries(${part} PUBLIC Threads::Threads ${arg_LINK})
  nixl_no_global_constructors(${part})
  nixl_use_pch(${part} core)
  nixl_use_unity(${part})
endfunction()

# One line for a plugin that turns itself off, the same everywhere.
function(nixl_plugin_off name reason)
  message(STATUS "nixl: plugin ${name}: off (${reason})")
endfunction()

# Writes the list of the plugins inside libnixl, which the loader (src/backend/) includes and asks
# before it looks for files.
function(nixl_static_plugins)
  get_property(names GLOBAL PROPERTY NIXL_STATIC_PLUGIN_TARGETS)
  list(TRANSFORM names REPLACE "(.+)" "NIXL_STATIC_PLUGIN(\\1)\n" OUTPUT_VARIABLE lines)
  list(JOIN lines "" text)
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/generated/nixl/static_plugins.inc" CONTENT "${text}")
  foreach(name IN LISTS names)
    message(STATUS "nixl: plugin ${name}: inside the library")
  endforeach()
endfunction()

# GoogleTest: the installed one, or for another architecture the sources that Debian installs.
macro(nixl_find_gtest)
  if(NOT CMAKE_CROSSCOMPILING)
    find_package(GTest REQUIRED)
  elseif(NOT TARGET GTest::gtest)
    set(BUILD_GMOCK ON)
    set(INSTALL_GTEST OFF)
    add_subdirectory(/usr/src/googletest "${PROJECT_BINARY_DIR}/googletest" EXCLUDE_FROM_ALL)
    foreach(part IN ITEMS gtest gmock gmock_main)
      if(NOT TARGET GTest::${part})
        add_library(GTest::${part} ALIAS ${part})
      endif()
    endforeach()
  endif()
endmacro()

# A GoogleTest program over the whole core. testing/ is linked where it exists.
function(nixl_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "NO_DISCOVERY" "TIMEOUT"
                        "SOURCES;OBJECTS;LINK;INCLUDES;DEFINITIONS;LABELS")
  nixl_find_gtest()
  # An object library, since a program's own files are compiled with other flags than the
  # precompiled header's.
  add_library(${name}_objects OBJECT ${arg_SOURCES})
  target_compile_definitions(${name}_objects PRIVATE ${arg_DEFINITIONS})
  target_include_directories(${name}_objects PRIVATE ${arg_INCLUDES} "${PROJECT_SOURCE_DIR}")
  set(libraries ${arg_LINK} $<TARGET_NAME_IF_EXISTS:nixl_testing> nixl_static GTest::gmock
                GTest::gtest Threads::Threads)
  target_link_libraries(${name}_objects PRIVATE ${libraries})
  nixl_use_pch(${name}_objects test)
  add_executable(${name} $<TARGET_OBJECTS:${name}_objects> ${arg_OBJECTS})
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(${name} PRIVATE ${libraries} GTest::gmock_main ${CMAKE_DL_LIBS})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  gtest_discover_tests(
    ${name}
    DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 60
    TEST_PREFIX "${name}."
    PROPERTIES TIMEOUT ${arg_TIMEOUT} ENVIRONMENT "NIXL_PLUGIN_DIR=${NIXL_BUILD_PLUGIN_DIR}"
               LABELS "unit")
endfunction()
