# `cmake --install`: headers, library, plugins, CMake package and pkg-config file.
include(CMakePackageConfigHelpers)

function(nixl_install_package)
  install(
    TARGETS nixl
    EXPORT nixl-targets
    LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT runtime NAMELINK_COMPONENT development)
  if(SKBUILD)
    return()
  endif()
  foreach(folder IN ITEMS include/nixl include/nixl_compat)
    if(EXISTS "${PROJECT_SOURCE_DIR}/${folder}")
      install(DIRECTORY "${PROJECT_SOURCE_DIR}/${folder}"
              DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT development)
    endif()
  endforeach()
  install(FILES "${CMAKE_BINARY_DIR}/generated/nixl/version.h"
          DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/nixl" COMPONENT development)

  set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/nixl")
  install(EXPORT nixl-targets NAMESPACE nixl:: DESTINATION "${package_dir}"
          COMPONENT development)
  set(config "${CMAKE_BINARY_DIR}/cmake")
  configure_package_config_file(
    "${PROJECT_SOURCE_DIR}/cmake/nixlConfig.cmake.in" "${config}/nixlConfig.cmake"
    INSTALL_DESTINATION "${package_dir}" PATH_VARS NIXL_INSTALL_PLUGIN_DIR)
  write_basic_package_version_file("${config}/nixlConfigVersion.cmake"
                                   COMPATIBILITY SameMajorVersion)
  install(FILES "${config}/nixlConfig.cmake" "${config}/nixlConfigVersion.cmake"
          DESTINATION "${package_dir}" COMPONENT development)

  # pkg-config finds everything from where its own file lies, so that a prefix can be moved.
  file(RELATIVE_PATH NIXL_PC_PREFIX "/p/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/p")
  configure_file("${PROJECT_SOURCE_DIR}/cmake/nixl.pc.in" "${config}/nixl.pc" @ONLY)
  install(FILES "${config}/nixl.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig"
          COMPONENT development)
endfunction()
