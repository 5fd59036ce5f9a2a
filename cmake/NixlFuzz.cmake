# Fuzz targets: tests/fuzz/NAME_fuzz.cpp defines LLVMFuzzerTestOneInput and becomes the program
# fuzz_NAME. With NIXL_FUZZ (clang) libFuzzer drives it; in every other tree a small main replays
# tests/fuzz/corpus/NAME/ as one test, so that a stored finding stays found.
function(nixl_fuzz name)
  set(source "${PROJECT_SOURCE_DIR}/tests/fuzz/${name}_fuzz.cpp")
  set(corpus "${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${name}")
  add_executable(fuzz_${name} "${source}")
  target_link_libraries(fuzz_${name} PRIVATE nixl_static $<TARGET_NAME_IF_EXISTS:nixl_testing>
                                             Threads::Threads ${CMAKE_DL_LIBS})
  target_include_directories(fuzz_${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  if(TARGET plugin_${name}_objects) # the parsers of a plugin
    target_sources(fuzz_${name} PRIVATE $<TARGET_OBJECTS:plugin_${name}_objects>)
    target_include_directories(fuzz_${name} PRIVATE "${PROJECT_SOURCE_DIR}/plugins/${name}"
                               $<TARGET_PROPERTY:plugin_${name}_objects,INCLUDE_DIRECTORIES>)
    target_link_libraries(fuzz_${name}
                          PRIVATE $<TARGET_PROPERTY:plugin_${name}_objects,LINK_LIBRARIES>)
  elseif(EXISTS "${PROJECT_SOURCE_DIR}/plugins/${name}/CMakeLists.txt")
    set_target_properties(fuzz_${name} PROPERTIES EXCLUDE_FROM_ALL TRUE)
    return() # the plugin is off, or inside the library
  endif()
  if(NIXL_FUZZ)
    target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  else()
    target_sources(fuzz_${name} PRIVATE "${PROJECT_SOURCE_DIR}/cmake/fuzz_replay.cpp")
  endif()
  if(NIXL_TESTS AND IS_DIRECTORY "${corpus}")
    set(options "")
    if(NIXL_FUZZ)
      set(options -runs=0)
    endif()
    add_test(NAME fuzz_replay.${name} COMMAND fuzz_${name} ${options} "${corpus}")
    set_tests_properties(fuzz_replay.${name} PROPERTIES TIMEOUT 120 LABELS fuzz)
  endif()
endfunction()

if(NIXL_FUZZ OR NIXL_TESTS)
  file(GLOB fuzz_sources CONFIGURE_DEPENDS RELATIVE "${PROJECT_SOURCE_DIR}/tests/fuzz"
       "${PROJECT_SOURCE_DIR}/tests/fuzz/*_fuzz.cpp")
  foreach(file IN LISTS fuzz_sources)
    string(REGEX REPLACE "_fuzz\\.cpp$" "" name "${file}")
    nixl_fuzz(${name})
  endforeach()
endif()
