// Turns to connect, for all agents of this process: more at once would only wait for each other,
// and in the end in vain. Who finds none free waits in line and costs nothing meanwhile.
// Thread-safe; a forked child begins with all turns free.
#pragma once

#include <functional>
#include <memory>

#include "exchange_tcp/core.h"

namespace nixl::exchange_tcp {

class ConnectTurns {
  public:
    // Ends with its last reference, on any thread.
    using Turn = std::shared_ptr<void>;

    // Calls `go` at once where a turn is free, else on the reactor of `gate` when the ones who
    // asked before have had theirs. A turn whose reactor is gone by then is the next one's.
    static void ask(std::shared_ptr<ReactorGate> gate, std::function<void(Turn)> go);

    static constexpr size_t kMost = 64;
};

}  // namespace nixl::exchange_tcp
