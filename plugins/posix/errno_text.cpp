// See errno_text.h.
#include "errno_text.h"

#include <cstring>

namespace nixl::posix {

std::string errnoText(int error) {
    char buffer[128] = {};
    return strerror_r(error, buffer, sizeof(buffer));  // the GNU form, which returns the text
}

}  // namespace nixl::posix
