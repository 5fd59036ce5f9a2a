# Builds for aarch64 on another Linux with Debian's g++-aarch64-linux-gnu, and runs what was built
# under qemu-user. Libraries of this machine are not looked at, but for its Python's headers, which
# are the same for both (64 bits, little endian).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_STRIP aarch64-linux-gnu-strip)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)
find_program(NIXL_QEMU_AARCH64 qemu-aarch64)
if(NIXL_QEMU_AARCH64)
  set(CMAKE_CROSSCOMPILING_EMULATOR "${NIXL_QEMU_AARCH64};-L;/usr/aarch64-linux-gnu")
endif()
