// Bytes of earlier days: today's code reads every stored blob and session of the versions it
// speaks, and writes those of the newest again, byte for byte. tests/golden/README.md says how the
// files were made (not by this code) and what a new version adds.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include <gtest/gtest.h>
#include <sys/mman.h>

#include "nixl/descriptor.h"

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/socket.h"
#include "connect/endpoints.h"
#include "lanes/stream/client.h"
#include "lanes/stream/target.h"
#include "metadata/blob.h"
#include "session/handshake.h"
#include "session/session.h"
#include "session/testing_access.h"

namespace nixl {
namespace {

using peer::FrameType;

const std::filesystem::path kGolden = NIXL_GOLDEN_DIR;

std::string golden(const std::string& name) {
    std::ifstream file(kGolden / name, std::ios::binary);
    EXPECT_TRUE(file.good()) << kGolden / name;
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

// The versions that a format has folders for.
std::set<int> versions(const std::string& format) {
    std::set<int> found;
    for (const auto& entry : std::filesystem::directory_iterator(kGolden / format)) {
        found.insert(std::stoi(entry.path().filename()));
    }
    return found;
}

peer::Key rising(uint8_t first) {
    peer::Key key{};
    for (size_t i = 0; i < key.size(); ++i) {
        key[i] = static_cast<uint8_t>(first + i);
    }
    return key;
}

peer::Key filled(uint8_t byte) {
    peer::Key key{};
    key.fill(byte);
    return key;
}

const peer::Identity kAlice{"alice", rising(1)};
const peer::Identity kBob{"bob", rising(33)};
const peer::Key kGrant = rising(65);
constexpr uint64_t kMemory = 0x7ea0'0000'0000;

// Every version that this code claims to speak has its files: the newest, and the one before.
TEST(Golden, EveryVersionIsKept) {
    const std::set<int> protocol = versions("protocol");
    EXPECT_EQ(*protocol.rbegin(), peer::kProtocolVersion);
    EXPECT_TRUE(protocol.contains(peer::kOldestVersion));
    EXPECT_LE(peer::kOldestVersion, std::max(1, peer::kProtocolVersion - 1));
    EXPECT_EQ(*versions("blob").rbegin(), metadata::kBlobVersion);
    EXPECT_EQ(*versions("descriptors").rbegin(), 1);
}

// Blobs.

metadata::Blob fullBlob() {
    peer::Endpoints endpoints;
    endpoints.bootId = rising(97);
    endpoints.uid = 1000;
    endpoints.abstract = "nixl-0123456789abcdef";
    endpoints.path = "/run/nixl/a.sock";
    endpoints.port = 48879;
    endpoints.addresses = {
        {"\xc0\x00\x02\x07", 4},
        {"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07", 16}};
    metadata::Blob blob;
    blob.name = kAlice.name;
    blob.incarnation = kAlice.incarnation;
    blob.grant = kGrant;
    blob.session = endpoints.encode();
    blob.backends = {{"UCX", ""}, {"OTHER", std::string("opaque\0", 7)}};
    for (uint64_t i = 0; i < 5; ++i) {
        blob.regions.push_back(
            {0x7f00'0000'1000 + i * 0x2000, 0x1000, 0, i + 1, 0, 3, MemType::DRAM});
    }
    blob.regions.push_back({0x7f00'0010'0000, 77, 0, 9, 4, 3, MemType::DRAM});
    blob.regions.push_back({1ULL << 63, 4096, 2, 10, 0, 2, MemType::VRAM});
    blob.keys = {{1, 10, "remote key"}};
    return blob;
}

void expectSame(const metadata::Blob& got, const metadata::Blob& wanted) {
    EXPECT_EQ(got.name, wanted.name);
    EXPECT_EQ(got.incarnation, wanted.incarnation);
    EXPECT_EQ(got.grant, wanted.grant);
    EXPECT_EQ(got.connection, wanted.connection);
    EXPECT_EQ(got.partial, wanted.partial);
    EXPECT_EQ(got.session, wanted.session);
    ASSERT_EQ(got.backends.size(), wanted.backends.size());
    for (size_t i = 0; i < wanted.backends.size(); ++i) {
        EXPECT_EQ(got.backends[i].name, wanted.backends[i].name);
        EXPECT_EQ(got.backends[i].connection, wanted.backends[i].connection);
    }
    ASSERT_EQ(got.regions.size(), wanted.regions.size());
    for (size_t i = 0; i < wanted.regions.size(); ++i) {
        const auto& a = got.regions[i];
        const auto& b = wanted.regions[i];
        EXPECT_EQ(std::tie(a.address, a.size, a.deviceId, a.id, a.generation, a.backends, a.type),
                  std::tie(b.address, b.size, b.deviceId, b.id, b.generation, b.backends, b.type))
            << i;
    }
    ASSERT_EQ(got.keys.size(), wanted.keys.size());
    for (size_t i = 0; i < wanted.keys.size(); ++i) {
        EXPECT_EQ(got.keys[i].backend, wanted.keys[i].backend);
        EXPECT_EQ(got.keys[i].region, wanted.keys[i].region);
        EXPECT_EQ(got.keys[i].key, wanted.keys[i].key);
    }
}

TEST(GoldenBlob, Full) {
    const std::string bytes = golden("blob/1/full.bin");
    auto blob = metadata::decodeBlob(bytes);
    ASSERT_TRUE(blob.ok()) << blob.status().message();
    expectSame(blob.value(), fullBlob());
    EXPECT_EQ(metadata::encodeBlob(fullBlob()), bytes);
    auto endpoints = peer::Endpoints::decode(blob.value().session);
    ASSERT_TRUE(endpoints.ok()) << endpoints.status().message();
    EXPECT_EQ(endpoints.value().port, 48879);
    EXPECT_EQ(endpoints.value().path, "/run/nixl/a.sock");
}

TEST(GoldenBlob, Partial) {
    metadata::Blob wanted = fullBlob();
    wanted.connection = false;
    wanted.partial = true;
    wanted.session.clear();
    wanted.backends.resize(1);
    wanted.regions.resize(1);
    wanted.regions[0].backends = 1;
    wanted.keys.clear();
    const std::string bytes = golden("blob/1/partial.bin");
    auto blob = metadata::decodeBlob(bytes);
    ASSERT_TRUE(blob.ok()) << blob.status().message();
    expectSame(blob.value(), wanted);
    EXPECT_EQ(metadata::encodeBlob(wanted), bytes);
}

TEST(GoldenBlob, SectionsOfALaterLibraryAreSkipped) {
    auto blob = metadata::decodeBlob(golden("blob/1/unknown_section.bin"));
    ASSERT_TRUE(blob.ok()) << blob.status().message();
    expectSame(blob.value(), fullBlob());
}

TEST(GoldenBlob, OfALaterVersionIsRefused) {
    std::string bytes = golden("blob/1/full.bin");
    bytes[6] = static_cast<char>(metadata::kBlobVersion + 1);
    bytes.resize(bytes.size() - 4);
    base::ByteWriter seal;
    seal.fixed(base::crc32c(bytes));
    EXPECT_EQ(metadata::decodeBlob(bytes + seal.bytes()).status().code(), ErrorCode::MISMATCH);
}

// Descriptor lists.

TEST(GoldenDescriptors, Transfer) {
    const std::string bytes = golden("descriptors/1/transfer.bin");
    auto list = DescriptorList::deserialize(bytes);
    ASSERT_TRUE(list.ok()) << list.status().message();
    DescriptorList wanted(MemType::DRAM);
    wanted.appendRun({0x1000, 4096, 0, 8192, 100});
    wanted.append(1ULL << 63, 5, 3);
    EXPECT_TRUE(list.value() == wanted);
    EXPECT_EQ(wanted.serialize(), bytes);
}

TEST(GoldenDescriptors, Registration) {
    const std::string bytes = golden("descriptors/1/registration.bin");
    auto list = RegistrationList::deserialize(bytes);
    ASSERT_TRUE(list.ok()) << list.status().message();
    ASSERT_EQ(list.value().entries.size(), 2U);
    EXPECT_EQ(list.value().type(), MemType::FILE);
    EXPECT_EQ(list.value().entries[0].metadata, std::string("rw:/data/a\0b", 12));
    EXPECT_EQ(list.value().entries[1].address, 8192U);
    EXPECT_EQ(list.value().serialize(), bytes);
}

// Handshakes.

// The nth call of a side fills with its first byte + n, as the files' maker does.
uint8_t next_alice = 0;
uint8_t next_bob = 0;
void randomOfAlice(std::span<uint8_t> out) {
    std::fill(out.begin(), out.end(), next_alice++);
}
void randomOfBob(std::span<uint8_t> out) {
    std::fill(out.begin(), out.end(), next_bob++);
}

struct Frame {
    FrameType type{};
    std::string body;
    std::string all;  // header and body
};

std::vector<Frame> framesOf(std::string_view bytes) {
    std::vector<Frame> frames;
    while (!bytes.empty()) {
        auto header = peer::readHeader(bytes);
        if (!header.ok()) {
            ADD_FAILURE() << header.status().message();
            break;
        }
        const size_t size = peer::kFrameHeader + header.value().length;
        frames.push_back({header.value().type,
                          std::string(bytes.substr(peer::kFrameHeader, header.value().length)),
                          std::string(bytes.substr(0, size))});
        bytes.remove_prefix(size);
    }
    return frames;
}

class GoldenAdmission : public peer::Admission {
  public:
    std::optional<peer::Key> grantKey(peer::GrantId grant) override {
        return grant == peer::grantId(kGrant) ? std::optional(kGrant) : std::nullopt;
    }
    std::optional<base::Digest> sessionKey(const peer::Identity& peer) override {
        return peer == kAlice ? session : std::nullopt;
    }
    std::optional<peer::Reject> checkIncoming(const peer::Identity& /*peer*/) override {
        return {};
    }
    std::optional<peer::Earlier> earlier(const peer::Identity& /*peer*/) override { return kept; }
    std::optional<peer::Reject> admit(const peer::HandshakeResult& /*result*/) override {
        return {};
    }
    std::optional<base::Digest> session;
    std::optional<peer::Earlier> kept;
};

class GoldenHandshake : public testing::TestWithParam<const char*> {
  protected:
    GoldenHandshake() {
        next_alice = 0xa1;
        next_bob = 0xb1;
        if (data()) {
            const std::string key = golden("protocol/1/handshake_open.key.bin");
            std::copy(key.begin(), key.end(), sessionKey_.begin());
            secret_ = key;
            grant_ = 0;
        }
        if (std::string_view(GetParam()) == "resumed") {
            for (size_t i = 0; i < earlierKey_.size(); ++i) {
                earlierKey_[i] = static_cast<uint8_t>(i);
            }
            aliceKept_ = {{0x1122'3344'5566'7788, 5, 700}, earlierKey_};
            bobKept_ = {{0x1122'3344'5566'7788, 9, 1300}, earlierKey_};
        }
        const std::string name = std::string("protocol/1/handshake_") + GetParam();
        std::string connector = golden(name + ".connector.bin");
        EXPECT_TRUE(connector.starts_with(peer::kMagic));
        connector.erase(0, peer::kMagic.size());
        connector_ = framesOf(connector);
        acceptor_ = framesOf(golden(name + ".acceptor.bin"));
        key_ = golden(name + ".key.bin");
    }
    bool data() const { return std::string_view(GetParam()) == "data"; }
    std::string_view authKey() const {
        const std::string_view name = GetParam();
        return name == "key" || name == "resumed" ? "a golden key, 24 bytes.." : "";
    }

    std::vector<Frame> connector_;
    std::vector<Frame> acceptor_;
    std::string key_;
    std::string secret_{base::asView(kGrant)};
    peer::GrantId grant_ = peer::grantId(kGrant);
    base::Digest sessionKey_{};
    base::Digest earlierKey_{};
    std::optional<peer::Earlier> aliceKept_;
    std::optional<peer::Earlier> bobKept_;
};

TEST_P(GoldenHandshake, Connector) {
    ASSERT_EQ(connector_.size(), 2U);
    ASSERT_EQ(acceptor_.size(), 2U);
    const peer::HandshakeSelf alice{kAlice, authKey(), 0x1000, filled(0xaa), randomOfAlice};
    peer::Connector connector(alice, kBob,
                              data() ? peer::ConnectionKind::DATA : peer::ConnectionKind::CONTROL,
                              secret_, grant_, aliceKept_);
    EXPECT_EQ(connector.start(), std::string(peer::kMagic) + connector_[0].all);
    auto auth = connector.onFrame(acceptor_[0].type, acceptor_[0].body);
    ASSERT_TRUE(auth.ok()) << auth.status().message();
    EXPECT_EQ(auth.value(), connector_[1].all);
    auto last = connector.onFrame(acceptor_[1].type, acceptor_[1].body);
    ASSERT_TRUE(last.ok()) << last.status().message();
    EXPECT_TRUE(connector.done());
    EXPECT_EQ(base::asView(connector.result().key), key_);
    EXPECT_EQ(connector.result().peer, kBob);
    EXPECT_EQ(connector.result().cookieAt, 0x2000U);
    EXPECT_EQ(connector.result().resumed, aliceKept_.has_value());
    EXPECT_EQ(connector.result().peerResume.received, aliceKept_ ? 9U : 0U);
}

TEST_P(GoldenHandshake, Acceptor) {
    ASSERT_EQ(connector_.size(), 2U);
    ASSERT_EQ(acceptor_.size(), 2U);
    const peer::HandshakeSelf bob{kBob, authKey(), 0x2000, filled(0xbb), randomOfBob};
    GoldenAdmission admission;
    admission.session = sessionKey_;
    admission.kept = bobKept_;
    peer::Acceptor acceptor(bob, admission);
    auto challenge = acceptor.onFrame(connector_[0].type, connector_[0].body);
    ASSERT_TRUE(challenge.ok()) << challenge.status().message();
    EXPECT_EQ(challenge.value(), acceptor_[0].all);
    auto ready = acceptor.onFrame(connector_[1].type, connector_[1].body);
    ASSERT_TRUE(ready.ok()) << ready.status().message();
    EXPECT_EQ(ready.value(), acceptor_[1].all);
    EXPECT_TRUE(acceptor.done());
    EXPECT_EQ(base::asView(acceptor.result().key), key_);
    EXPECT_EQ(acceptor.result().peer, kAlice);
    EXPECT_EQ(acceptor.result().resumed, bobKept_.has_value());
}

INSTANTIATE_TEST_SUITE_P(Version1,
                         GoldenHandshake,
                         testing::Values("open", "key", "resumed", "data"),
                         [](const auto& info) { return std::string(info.param); });

// Notifications.

std::vector<std::string> goldenMessages() {
    std::string large(65537, '\0');
    for (size_t i = 0; i < large.size(); ++i) {
        large[i] = static_cast<char>(i % 251);
    }
    return {"", std::string("a\0b", 3), large};
}

TEST(GoldenNotifications, Sender) {
    peer::Session session("bob", {});
    session.attach(peer::Time{}, {1, 0, 0}, false);
    session.sendFrame(FrameType::PING, "12345678");
    for (const std::string& message : goldenMessages()) {
        ASSERT_TRUE(session.send(message, 1).ok());
    }
    std::string out;
    session.produce(out, 1 << 20);
    EXPECT_EQ(out, golden("protocol/1/notifications.sender.bin"));
    const std::string answer = golden("protocol/1/notifications.receiver.bin");
    const Status status = session.receive(answer, peer::Time{});
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(session.takeEvents().size(), 3U);  // all three have arrived
    EXPECT_EQ(session.waiting(), 0U);
}

TEST(GoldenNotifications, Receiver) {
    peer::Session session("alice", {});
    session.attach(peer::Time{}, {1, 0, 0}, false);
    std::string out;
    session.produce(out, 1 << 20);
    const std::string bytes = golden("protocol/1/notifications.sender.bin");
    const Status status = session.receive(bytes, peer::Time{});
    ASSERT_TRUE(status.ok()) << status.message();
    std::vector<std::string> got;
    for (const peer::Session::Event& event : session.takeEvents()) {
        ASSERT_EQ(event.kind, peer::Session::Event::Kind::DELIVER);
        got.push_back(event.text);
        session.delivered(session.epoch(), event.sequence);
        session.consumed(session.epoch(), event.token);
    }
    EXPECT_EQ(got, goldenMessages());
    out.clear();
    session.produce(out, 1 << 20);
    EXPECT_EQ(out, golden("protocol/1/notifications.receiver.bin"));
}

TEST(GoldenNotifications, Bye) {
    const std::string bytes = golden("protocol/1/bye.bin");
    peer::Session session("alice", {});
    session.attach(peer::Time{}, {1, 0, 0}, false);
    std::string out;
    session.produce(out, 1 << 20);
    ASSERT_TRUE(session.receive(bytes, peer::Time{}).ok());
    const auto events = session.takeEvents();
    ASSERT_EQ(events.size(), 1U);
    EXPECT_EQ(events[0].kind, peer::Session::Event::Kind::BYE);
    base::ByteWriter body;
    peer::Reject{peer::RejectCode::CLOSING, "the agent has been closed"}.encode(body);
    session.sendFrame(FrameType::BYE, body.bytes());
    out.clear();
    session.produce(out, 1 << 20);
    EXPECT_EQ(out, bytes);
}

// A data connection: a WRITE and a READ of two regions with checksums, and a READ that is refused.

class GoldenStream : public testing::Test {
  protected:
    GoldenStream() {
        const std::string key = golden("protocol/1/stream.key.bin");
        std::copy(key.begin(), key.end(), key_.begin());
    }
    peer::StreamPart part(OpType op, uint64_t id, bool refused = false) {
        peer::Request request;
        request.op = op;
        request.grant = peer::grantId(kGrant);
        if (refused) {
            request.regions = {{5, 1}};
            request.runs = {{kMemory, 8, 0, 1, 0}};
            request.bytes = 8;
        } else {
            request.flags = peer::kRequestChecksum;
            request.regions = {{5, 2}, {6, 0}};
            request.runs = {{kMemory + 64, 100, 200, 5, 0},
                            {kMemory + 2048, 50, static_cast<uint64_t>(-100), 8, 0},
                            {kMemory + 4096, 100, 0, 1, 1}};
            request.bytes = data_.size();
        }
        std::string& local = op == OpType::WRITE ? data_ : read_;
        const std::vector<peer::MemoryRun> here = {
            {reinterpret_cast<uint64_t>(local.data()), request.bytes, 0, 1, 0}};
        return {std::make_shared<peer::PreparedRequest>(request, kGrant, here, 0), id, nullptr};
    }

    base::Digest key_{};
    const std::string client_ = golden("protocol/1/stream.client.bin");
    const std::string target_ = golden("protocol/1/stream.target.bin");
    std::string data_ = golden("protocol/1/stream.data.bin");
    std::string read_ = std::string(data_.size(), '\0');
};

// What it wants to send, all of it.
std::string sendAll(auto& side) {
    std::string out;
    while (side.wantsOutput()) {
        iovec vectors[64];
        const size_t count = side.output(vectors, 64);
        size_t bytes = 0;
        for (size_t i = 0; i < count; ++i) {
            out.append(static_cast<const char*>(vectors[i].iov_base), vectors[i].iov_len);
            bytes += vectors[i].iov_len;
        }
        side.sent(bytes);
        if (bytes == 0) {
            break;
        }
    }
    return out;
}

// Gives it as much as it takes; the answers it has to give in between are appended to `answers`.
Status giveAll(auto& side, std::string_view bytes, std::string& answers) {
    while (!bytes.empty()) {
        iovec vectors[64];
        const size_t count = side.inputSpace(vectors, 64);
        size_t given = 0;
        for (size_t i = 0; i < count && !bytes.empty(); ++i) {
            const size_t n = std::min(vectors[i].iov_len, bytes.size());
            std::memcpy(vectors[i].iov_base, bytes.data(), n);
            bytes.remove_prefix(n);
            given += n;
        }
        NIXL_RETURN_IF_ERROR(side.received(given));
        const std::string said = sendAll(side);
        answers += said;
        if (given == 0 && said.empty()) {
            return Status::timeout("it takes nothing and says nothing");
        }
    }
    NIXL_RETURN_IF_ERROR(side.received(0));  // what waited for the last answer
    answers += sendAll(side);
    return {};
}

TEST_F(GoldenStream, Initiator) {
    peer::StreamClient client("bob", key_);
    client.submit(part(OpType::WRITE, 1));
    client.submit(part(OpType::READ, 2));
    client.submit(part(OpType::READ, 3, true));
    EXPECT_EQ(sendAll(client), client_);
    std::string more;
    const Status status = giveAll(client, target_, more);
    ASSERT_TRUE(status.ok()) << status.message();
    const auto finished = client.takeFinished();
    ASSERT_EQ(finished.size(), 3U);
    EXPECT_TRUE(finished[0].status.ok()) << finished[0].status.message();
    EXPECT_TRUE(finished[1].status.ok()) << finished[1].status.message();
    EXPECT_EQ(finished[2].status.code(), ErrorCode::NOT_FOUND);
    EXPECT_EQ(read_, data_);
}

TEST_F(GoldenStream, Target) {
    void* const memory = mmap(reinterpret_cast<void*>(kMemory), 8192, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (memory != reinterpret_cast<void*>(kMemory)) {
        GTEST_SKIP() << "the address that the stored session names is taken here";
    }
    peer::TestAccess access(kGrant);
    access.enter(5, memory, 4096, 2);
    access.enter(6, static_cast<char*>(memory) + 4096, 4096, 0);
    peer::StreamTarget target(access, key_);
    std::string answers;
    const Status status = giveAll(target, client_, answers);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(answers, target_);
    const auto* const bytes = static_cast<const char*>(memory);
    EXPECT_EQ(std::string(bytes + 64, 100), data_.substr(0, 100));
    EXPECT_EQ(std::string(bytes + 264, 100), data_.substr(100, 100));
    EXPECT_EQ(std::string(bytes + 1948, 50), data_.substr(550, 50));
    EXPECT_EQ(std::string(bytes + 4096, 100), data_.substr(900, 100));
    munmap(memory, 8192);
}

}  // namespace
}  // namespace nixl
