// What the tests across folders share: agents over MEMORY and UCX, what a process uses, a backend
// that never ends. Functions, any thread.
#pragma once

#include <string>
#include <vector>

#include "nixl/agent.h"

namespace nixl::crosstest {

// MEMORY or UCX.
AgentConfig configFor(const std::string& backend, const BackendParams& params = {});
// The test backend STUCK: its transfers stay in progress, whatever is asked of them, until
// releaseStuck().
AgentConfig stuckConfig();
void releaseStuck();

uint64_t residentBytes();  // of this process
int openDescriptors();
int threadCount();
// Until threadCount() is at most `most`: a joined thread shows for a moment. False after 5 s.
bool threadsEnd(int most);

// How often loops run: NIXL_SOAK multiplies what fits a test.
uint64_t rounds(uint64_t usual);

// A buffer, registered, with a transfer of its first to its second half.
struct Loop {
    Loop(Agent& agent, uint64_t size);
    TransferHandle prepare();
    void fill(char with);
    bool moved() const;

    Agent& agent;
    const uint64_t half;
    std::vector<char> bytes;
    DescriptorList first;
    DescriptorList second;
};

}  // namespace nixl::crosstest
