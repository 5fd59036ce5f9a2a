// Whether bytes from outside are text: names of agents, which end up as Python strings.
// Pure; any thread.
#pragma once

#include <string_view>

namespace nixl::base {

// Well-formed UTF-8: shortest forms only, no surrogates, nothing past U+10FFFF.
bool isUtf8(std::string_view text);

}  // namespace nixl::base
