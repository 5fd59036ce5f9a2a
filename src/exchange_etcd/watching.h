// One watch of a prefix: reads what is there, then follows the changes, on whatever connection
// there is; catches up by revision, and where that is not possible reads anew. On the loop's
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "exchange_etcd/values.h"

namespace nixl::exchange_etcd {

class Watching {
  public:
    using Event = std::function<void(exchange::StoreEvent)>;

    Watching(Client& client, Values& values, std::string prefix, Event event)
        : client_(client), values_(values), prefix_(std::move(prefix)), event_(std::move(event)) {}
    ~Watching() { end(); }
    Watching(const Watching&) = delete;
    Watching& operator=(const Watching&) = delete;

    void start() { read(); }
    void end();  // no call afterwards
    // Over another endpoint, or again: the connection may be dead without a word.
    void reconnect();
    const std::string& prefix() const { return prefix_; }

  private:
    void read();
    void follow();
    void onMessage(const Json& message);
    void onCanceled(const Json& result);
    void onEvents(const Json& events);
    void readAnew();
    void again(const Status& why);
    void failed(const Status& why);
    void closeStream();
    void tell(exchange::StoreEvent::Kind kind, exchange::StoreEntry entry = {});

    Client& client_;
    Values& values_;
    const std::string prefix_;
    const Event event_;
    Assembler assembler_;
    int64_t revision_ = 0;  // of the last change that was told; 0: nothing was read yet
    uint64_t stream_ = 0;
    uint64_t timer_ = 0;
    unsigned failures_ = 0;  // in a row
    std::string told_;       // the failure that was told last
    // What a callback of the client looks at: it may come after this object has gone.
    struct Life {
        Watching* self;
        uint64_t round = 0;
    };
    std::shared_ptr<Life> life_ = std::make_shared<Life>(Life{this});
};

}  // namespace nixl::exchange_etcd
