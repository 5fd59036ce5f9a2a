// One initiator's transfers to one region of the target over one data connection: the two state
// machines of the stream lane with a network between them that cuts anywhere and stalls.
// Not thread-safe.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "lanes/stream/client.h"
#include "lanes/stream/target.h"
#include "testing/sim/world.h"

namespace nixl::sim {

class StreamModel {
  public:
    // `calm`: nothing happens to this initiator, so nothing of its may fail.
    StreamModel(World& world, uint64_t region, bool calm);

    // Starts a transfer in a random free cell; gives the cell where it is a WRITE.
    std::optional<size_t> submit();
    void move();    // one step of one end of the connection
    void cancel();  // a random transfer; its memory must not change from here on
    void fail();    // the connection is lost
    void revoke();  // the target deregisters the region

    // WRITEs that have ended DONE. Their cells stay as they are until they are released.
    std::vector<size_t> takeDone();
    // Whether the target's memory holds what was written from the cell.
    bool arrived(size_t cell) const;
    void release(size_t cell) { cells_[cell].held = false; }

    void check();  // what holds at every step
    bool busy() const;

  private:
    static constexpr size_t kCells = 4;
    static constexpr size_t kCellBytes = 6000;
    static constexpr size_t kPipeLimit = 200'000;

    struct Cell {
        bool busy = false;
        bool canary = false;  // canceled: local bytes are 'c' and must stay so
        bool held = false;    // DONE; waits for its notification
        OpType op = OpType::READ;
        class Owner final : public peer::PartOwner {
            void partDone(Status /*status*/, const SegmentFailure& /*failure*/) override {}
        };
        std::shared_ptr<peer::PartOwner> owner = std::make_shared<Owner>();
    };

    void open();
    void finishParts();
    void fillCell(size_t at);
    template <typename From>
    void produce(From& from, std::string& pipe);
    template <typename To>
    void consume(To& to, std::string& pipe);

    World& world_;
    const uint64_t region_;
    const bool calm_;
    std::vector<char> remote_;
    std::vector<char> local_;
    std::vector<char> fenced_;
    bool revoked_ = false;
    std::array<Cell, kCells> cells_;
    std::vector<size_t> done_;
    std::unique_ptr<peer::StreamClient> client_;
    std::unique_ptr<peer::StreamTarget> target_;
    std::string toTarget_;
    std::string toInitiator_;
};

}  // namespace nixl::sim
