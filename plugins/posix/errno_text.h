// Texts of errno values. Any thread.
#pragma once

#include <string>

namespace nixl::posix {

// "Operation not permitted".
std::string errnoText(int error);

}  // namespace nixl::posix
