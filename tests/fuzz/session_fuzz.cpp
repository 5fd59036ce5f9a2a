// Fuzzes what a peer sends before and in a session: handshake frames on both sides, the control
// connection, connection info, answers about shared mappings.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>

#include "base/socket.h"
#include "connect/endpoints.h"
#include "lanes/host/map_wire.h"
#include "lanes/host/maps.h"
#include "lanes/host/pages.h"
#include "session/handshake.h"
#include "session/session.h"

namespace {

using namespace nixl::peer;  // NOLINT(google-build-using-namespace)

class AnyAdmission final : public Admission {
  public:
    std::optional<Key> grantKey(GrantId /*grant*/) override { return Key{}; }
    std::optional<nixl::base::Digest> sessionKey(const Identity& /*peer*/) override {
        return nixl::base::Digest{};
    }
    std::optional<Reject> checkIncoming(const Identity& /*peer*/) override { return std::nullopt; }
    std::optional<Earlier> earlier(const Identity& /*peer*/) override { return Earlier{}; }
    std::optional<Reject> admit(const HandshakeResult& /*result*/) override { return std::nullopt; }
};

void control(std::string_view bytes) {
    Session session("peer", {});
    const Time now = Time{} + std::chrono::hours(1);
    session.attach(now, {1, 0, 0}, false);
    std::string message(100'000, 'x');
    if (!session.send(message, 1).ok()) {
        __builtin_trap();
    }
    std::string out;
    session.produce(out, 200'000);
    // In two pieces, so that incomplete frames are kept.
    const size_t half = bytes.size() / 2;
    if (session.receive(bytes.substr(0, half), now).ok()) {
        static_cast<void>(session.receive(bytes.substr(half), now).ok());
    }
    for (const auto& event : session.takeEvents()) {
        session.delivered(session.epoch(), event.sequence);
    }
    out.clear();
    session.produce(out, 1 << 20);
    Time next;
    static_cast<void>(session.tick(now + std::chrono::seconds(1), next).ok());
    session.fail(nixl::Status::disconnected("end"));
}

void handshake(std::string_view bytes) {
    AnyAdmission admission;
    const HandshakeSelf self{{"me", {1}}, {}, 0, {}};
    const auto type = static_cast<FrameType>(bytes.empty() ? 0 : bytes[0]);
    const std::string_view body = bytes.empty() ? bytes : bytes.substr(1);
    Acceptor acceptor(self, admission);
    static_cast<void>(acceptor.onFrame(type, body).ok());
    static_cast<void>(acceptor.onFrame(FrameType::AUTH, body).ok());
    Connector connector(self, {"peer", {2}}, ConnectionKind::CONTROL, "secret", 1, {});
    connector.start();
    static_cast<void>(connector.onFrame(type, body).ok());
}

// An answer about shared mappings, with as many real files as it says.
void maps(std::string_view bytes) {
    static_cast<void>(MapRequest::decode(bytes).ok());
    auto reply = MapReply::decode(bytes);
    if (!reply.ok()) {
        return;
    }
    static const auto* const kFile = new nixl::base::Fd([] {
        nixl::base::Fd fd(memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING));
        static_cast<void>(posix_fallocate(fd.get(), 0, 1 << 16));
        fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK);
        return fd;
    }());
    std::vector<nixl::base::Fd> files;
    while (files.size() < reply.value().files) {
        files.push_back(duplicateFd(*kFile));
    }
    HostMaps table;
    std::vector<RegionMapPtr> wanted;
    for (const auto& region : reply.value().regions) {
        wanted.push_back(table.want(region.id, region.generation));
    }
    Grant grant;
    table.nextRequest(Grants(Key{1}), grant);
    static_cast<void>(table.take(reply.value(), files).ok());
    for (const auto& region : wanted) {
        const MappedRegionPtr mapped = region->mapped();
        if (mapped == nullptr) {
            continue;
        }
        for (const auto& piece : mapped->pieces) {
            uint64_t room = 0;
            // What is mapped can be touched, from end to end.
            volatile const char* const first = mapped->find(piece.begin, room);
            static_cast<void>(first[0]);
            static_cast<void>(first[room - 1]);
        }
    }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    if (bytes.empty()) {
        return 0;
    }
    const std::string_view rest = bytes.substr(1);
    switch (bytes[0] % 5) {
        case 0:
            control(rest);
            break;
        case 1:
            handshake(rest);
            break;
        case 2: {
            auto endpoints = Endpoints::decode(rest);
            if (endpoints.ok()) {
                targetsOf(endpoints.value(), endpoints.value().bootId);
            }
            break;
        }
        case 3:
            maps(rest);
            break;
        default:
            static_cast<void>(HostOffer::decode(rest).ok());
            static_cast<void>(LaneMessage::decode(rest).ok());
            break;
    }
    return 0;
}
