# The Python module and the package around it.
#
#   nixl_python_module(TARGET SOURCES f… [LINK lib…])   a nanobind module inside the package nixl
#
# In the build tree the package stands in build/…/python (links to python/nixl plus the modules);
# `PYTHONPATH=build/…/python` imports it.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module
             OPTIONAL_COMPONENTS Development.SABIModule)
if(NOT nanobind_ROOT)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
    OUTPUT_VARIABLE nanobind_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "NIXL_PYTHON=ON: no nanobind for ${Python_EXECUTABLE}; "
                        "`${Python_EXECUTABLE} -m pip install nanobind`, or -DNIXL_PYTHON=OFF")
  endif()
endif()
find_package(nanobind CONFIG REQUIRED)
if(SKBUILD_SABI_VERSION AND NOT TARGET Python::SABIModule)
  message(FATAL_ERROR "a wheel for the stable ABI ${SKBUILD_SABI_VERSION} needs CMake 3.26 or "
                      "later (this is ${CMAKE_VERSION}); `pip install cmake`")
endif()

if(SKBUILD)
  set(NIXL_INSTALL_PYTHON_DIR ".") # the install prefix is the package folder itself
  set(NIXL_PYTHON_RPATH "$ORIGIN/lib")
else()
  set(NIXL_INSTALL_PYTHON_DIR
      "lib/python${Python_VERSION_MAJOR}.${Python_VERSION_MINOR}/site-packages")
  file(RELATIVE_PATH up "/p/${NIXL_INSTALL_PYTHON_DIR}/nixl" "/p/${CMAKE_INSTALL_LIBDIR}")
  set(NIXL_PYTHON_RPATH "$ORIGIN/${up}")
endif()

# Links every entry of python/PACKAGE into the build tree and installs the package's files.
function(nixl_python_package package)
  set(source "${PROJECT_SOURCE_DIR}/python/${package}")
  if(NOT IS_DIRECTORY "${source}")
    return()
  endif()
  file(GLOB entries CONFIGURE_DEPENDS LIST_DIRECTORIES true RELATIVE "${source}" "${source}/*")
  list(REMOVE_ITEM entries __pycache__)
  file(MAKE_DIRECTORY "${NIXL_BUILD_PYTHON_DIR}/${package}")
  foreach(entry IN LISTS entries)
    file(CREATE_LINK "${source}/${entry}" "${NIXL_BUILD_PYTHON_DIR}/${package}/${entry}" SYMBOLIC)
  endforeach()
  if(NOT SKBUILD) # in a wheel scikit-build-core takes the folders itself
    install(DIRECTORY "${source}" DESTINATION "${NIXL_INSTALL_PYTHON_DIR}" COMPONENT python
            PATTERN __pycache__ EXCLUDE)
  endif()
endfunction()
foreach(package IN ITEMS nixl nixl_cu12 nixl_cu13)
  nixl_python_package(${package})
endforeach()

function(nixl_python_module target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
  # Stable ABI from 3.12 on, declared safe without the GIL, nanobind's own code inside.
  nanobind_add_module(${target} STABLE_ABI FREE_THREADED NB_STATIC NB_SUPPRESS_WARNINGS
                      ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE nixl ${arg_LINK})
  nixl_use_unity(${target})
  # nanobind's own library as one file, as its nb_combined.cpp does.
  get_target_property(linked ${target} LINK_LIBRARIES)
  list(FILTER linked INCLUDE REGEX "^nanobind-static")
  if(NIXL_UNITY AND linked)
    set_target_properties(${linked} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
  endif()
  add_dependencies(nixl_runtime ${target})
  set_target_properties(
    ${target} PROPERTIES LIBRARY_OUTPUT_DIRECTORY "${NIXL_BUILD_PYTHON_DIR}/nixl"
                         INSTALL_RPATH "${NIXL_PYTHON_RPATH}")
  if(SKBUILD)
    install(TARGETS ${target} LIBRARY DESTINATION . COMPONENT python)
  else()
    install(TARGETS ${target} LIBRARY DESTINATION "${NIXL_INSTALL_PYTHON_DIR}/nixl"
                                      COMPONENT python)
  endif()
endfunction()
