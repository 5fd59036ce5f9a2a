// Prints the names of the plugins that the library finds.
#include <cstdio>

#include <nixl/agent.h>

int main() {
    const nixl::Agent agent("list");
    for (const std::string& name : agent.availablePlugins()) {
        std::puts(name.c_str());
    }
    return 0;
}
