# cmake -DINPUT=file -DOUTPUT=file.cpp -P embed.cmake: the bytes of a file as kKernelImage; without
# an input none.
set(bytes "0")
set(size 0)
if(INPUT)
  file(READ "${INPUT}" hex HEX)
  string(LENGTH "${hex}" digits)
  math(EXPR size "${digits} / 2")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${hex}")
endif()
file(WRITE "${OUTPUT}" "#include \"kernel_image.h\"
namespace nixl::gpunetio {
alignas(16) const char kKernelImage[] = {${bytes}};
const size_t kKernelImageSize = ${size};
}
")
