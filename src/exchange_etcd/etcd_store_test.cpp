// The store over a real etcd of each version that is installed: values, leases, watches, and the
// server's ends and returns.
#include "exchange_etcd/etcd_store.h"

#include <csignal>
#include <cstdlib>
#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "exchange_etcd/store_support.h"
#include "testing/etcd_server.h"
#include "testing/until.h"

namespace nixl::exchange_etcd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testkit::EtcdServer;
using testkit::eventually;
using Lifetime = MetadataStore::Lifetime;

class EtcdStoreTest : public ::testing::TestWithParam<size_t> {
  protected:
    void SetUp() override {
        const std::vector<std::string> programs = testkit::etcdPrograms();
        if (programs.size() <= GetParam()) {
            GTEST_SKIP() << "no etcd number " << GetParam() + 1 << " in PATH";
        }
        const std::string& program = programs[GetParam()];
        const std::string lacking = testkit::lackingBeside(program);
        if (!lacking.empty()) {
            GTEST_SKIP() << lacking;
        }
        server_ = EtcdServer::start(program);
        ASSERT_NE(server_, nullptr) << program << " does not come up";
        store_ = openStore(server_->endpoint(), {{"lease_time", "2"}});
        ASSERT_NE(store_, nullptr);
    }

    std::unique_ptr<EtcdServer> server_;
    StorePtr store_;
};

TEST_P(EtcdStoreTest, WhatIsPutIsThereForOthersByteForByte) {
    std::string bytes;
    for (int i = 0; i < 512; ++i) {
        bytes += static_cast<char>(i);
    }
    ASSERT_TRUE(putNow(*store_, "/t/a", bytes).ok());
    ASSERT_TRUE(putNow(*store_, "/t/empty", "", Lifetime::KEPT).ok());
    const auto got = getNow(*store_, "/t/a");
    ASSERT_TRUE(got.ok());
    const StoreEntry entry = got.value().value_or(StoreEntry());
    EXPECT_EQ(entry.value, bytes);
    EXPECT_GT(entry.revision, 0U);
    EXPECT_EQ(valueNow(*store_, "/t/empty"), "");
    EXPECT_EQ(valueNow(*store_, "/t/none"), "(none)");
    // By etcd's own client: a word that the gateway does not know would store nothing.
    ASSERT_TRUE(putNow(*store_, "/t/text", "read by others").ok());
    EXPECT_THAT(server_->control({"get", "/t/text"}), HasSubstr("read by others"));
    server_->control({"put", "/t/theirs", "put by others"});
    EXPECT_EQ(valueNow(*store_, "/t/theirs"), "put by others");
    EXPECT_EQ(listNow(*store_, "/t/").value().size(), 4U);
    EXPECT_EQ(listNow(*store_, "/nobody/").value().size(), 0U);
    ASSERT_TRUE(removeNow(*store_, "/t/a").ok());
    ASSERT_TRUE(removeNow(*store_, "/t/a").ok()) << "a key that is not there is removed";
    EXPECT_EQ(valueNow(*store_, "/t/a"), "(none)");
}

TEST_P(EtcdStoreTest, LargeValuesAreSplit) {
    std::string large(3'500'000, 'x');
    for (size_t i = 0; i < large.size(); i += 997) {
        large[i] = static_cast<char>(i % 251);
    }
    WatchLog log(*store_, "/t/");
    ASSERT_TRUE(log.has("synced"));
    ASSERT_TRUE(putNow(*store_, "/t/large", large).ok());
    EXPECT_EQ(valueNow(*store_, "/t/large"), large);
    ASSERT_TRUE(log.has("+/t/large=" + large.substr(0, 60)));
    large[0] = 'y';
    ASSERT_TRUE(putNow(*store_, "/t/large", large).ok());
    EXPECT_EQ(valueNow(*store_, "/t/large"), large);
    const auto all = listNow(*store_, "/t/");
    ASSERT_EQ(all.value().size(), 1U);
    EXPECT_EQ(all.value()[0].value, large);
    // A watch that begins later is told the whole too.
    WatchLog late(*store_, "/t/");
    ASSERT_TRUE(late.has("+/t/large=" + large.substr(0, 60)));
    ASSERT_TRUE(putNow(*store_, "/t/large", "small again").ok());
    ASSERT_TRUE(log.has("+/t/large=small again"));
    EXPECT_EQ(server_->control({"get", "--prefix", "--keys-only", "/t/"}), "/t/large\n\n");
    ASSERT_TRUE(putNow(*store_, "/t/large", large).ok());
    ASSERT_TRUE(removeNow(*store_, "/t/large").ok());
    EXPECT_EQ(server_->control({"get", "--prefix", "--keys-only", "/t/"}), "");
    const Status most = putNow(*store_, "/t/large", std::string((256U << 20) + 1, 'x'));
    EXPECT_THAT(most.message(), HasSubstr("at most 256 MiB"));
}

TEST_P(EtcdStoreTest, PartsThatAreMissingAreAnError) {
    ASSERT_TRUE(putNow(*store_, "/t/large", std::string(2'500'000, 'x')).ok());
    WatchLog log(*store_, "/t/");
    server_->control({"del", "--prefix", "/t/large/parts/"});
    EXPECT_THAT(valueNow(*store_, "/t/large").substr(0, 200),
                HasSubstr("\"/t/large\" lacks parts"));
    server_->control({"put", "/t/large", "NIXLSPLIT1 0123456789abcdef 99999999 5 1"});
    EXPECT_THAT(valueNow(*store_, "/t/large"), HasSubstr("lacks parts"));
    server_->control({"put", "/t/after", "goes on"});
    EXPECT_TRUE(log.has("+/t/after=goes on"));
}

TEST_P(EtcdStoreTest, OrderOfPutsAndRemovesOfAKeyIsKept) {
    WatchLog log(*store_, "/t/");
    ASSERT_TRUE(log.has("synced"));
    for (int i = 0; i < 200; ++i) {
        store_->put("/t/k", std::to_string(i), Lifetime::OWNER, [](const Status&) {});
        if (i % 10 == 5) {
            store_->remove("/t/k", [](const Status&) {});
        }
    }
    ASSERT_TRUE(putNow(*store_, "/t/k", "last").ok());
    EXPECT_EQ(valueNow(*store_, "/t/k"), "last");
    ASSERT_TRUE(log.has("+/t/k=last"));
    std::vector<std::string> wanted{"synced"};
    for (int i = 0; i < 200; ++i) {
        wanted.push_back("+/t/k=" + std::to_string(i));
        if (i % 10 == 5) {
            wanted.emplace_back("-/t/k");
        }
    }
    wanted.emplace_back("+/t/k=last");
    EXPECT_EQ(log.words(), wanted);
}

TEST_P(EtcdStoreTest, OwnedKeysLiveLongerThanTheLeaseAndGoWithTheOwner) {
    ASSERT_TRUE(putNow(*store_, "/t/owned", "here").ok());
    ASSERT_TRUE(putNow(*store_, "/t/kept", "here", Lifetime::KEPT).ok());
    // sleeps: longer than the lease lasts unless it is kept alive
    std::this_thread::sleep_for(std::chrono::seconds(5));
    EXPECT_EQ(valueNow(*store_, "/t/owned"), "here");
    store_.reset();
    EXPECT_EQ(server_->control({"get", "--prefix", "--keys-only", "/t/"}), "/t/kept\n\n")
        << "they are taken back at once";
}

TEST_P(EtcdStoreTest, KeysOfAKilledProcessGoWithTheLease) {
    const StorePtr other = openStore(server_->endpoint(), {{"lease_time", "3"}});
    WatchLog log(*other, "/t/");
    ASSERT_TRUE(log.has("synced"));
    const pid_t child = fork();
    if (child == 0) {
        // The parent's store is not to be touched here; another one is made.
        const StorePtr mine = openStore(server_->endpoint(), {{"lease_time", "2"}});
        const bool put = mine != nullptr && putNow(*mine, "/t/child", "alive").ok();
        pause();
        _exit(put ? 0 : 1);
    }
    ASSERT_TRUE(log.has("+/t/child=alive"));
    kill(child, SIGKILL);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
    EXPECT_TRUE(log.has("-/t/child"));
}

TEST_P(EtcdStoreTest, ALeaseThatRanOutIsMadeAnew) {
    ASSERT_TRUE(putNow(*store_, "/t/a", "first").ok());
    ASSERT_TRUE(putNow(*store_, "/t/b", "mine").ok());
    WatchLog log(*store_, "/t/");
    ASSERT_TRUE(log.has("+/t/b=mine"));
    // As if this process had been stopped for longer than the lease: another takes "/t/b".
    const std::string list = server_->control({"lease", "list"});
    const std::string lease = list.substr(list.find('\n') + 1, 16);
    server_->control({"lease", "revoke", lease.substr(0, lease.find('\n'))});
    server_->control({"put", "/t/b", "theirs"});
    EXPECT_TRUE(eventually([&] { return valueNow(*store_, "/t/a") == "first"; }));
    EXPECT_EQ(valueNow(*store_, "/t/b"), "theirs") << "what came meanwhile stays";
    ASSERT_TRUE(putNow(*store_, "/t/b", "again mine").ok());
    EXPECT_EQ(valueNow(*store_, "/t/b"), "again mine");
}

TEST_P(EtcdStoreTest, RemovingWhatSomebodyElseHasTakenLeavesIt) {
    ASSERT_TRUE(putNow(*store_, "/t/a", "mine").ok());
    server_->control({"put", "/t/a", "theirs"});
    ASSERT_TRUE(removeNow(*store_, "/t/a").ok());
    EXPECT_EQ(valueNow(*store_, "/t/a"), "theirs");
}

TEST_P(EtcdStoreTest, AWatchTellsWhatIsThereThenTheChanges) {
    server_->control({"put", "/t/a", "1"});
    server_->control({"put", "/tother", "not below the prefix"});
    WatchLog log(*store_, "/t/");
    ASSERT_TRUE(log.has("synced"));
    server_->control({"put", "/t/a", "2"});
    server_->control({"del", "/t/a"});
    ASSERT_TRUE(log.has("-/t/a"));
    EXPECT_THAT(log.words(), ElementsAre("+/t/a=1", "synced", "+/t/a=2", "-/t/a"));
}

TEST_P(EtcdStoreTest, AWatchMayEndItselfInItsCall) {
    std::unique_ptr<exchange::StoreWatch> watch;
    std::promise<void> set;
    std::promise<void> called;
    std::atomic<int> calls{0};
    watch = store_->watch("/t/", [&, ready = set.get_future().share()](const StoreEvent&) {
        ready.wait();
        watch.reset();
        if (++calls == 1) {
            called.set_value();
        }
    });
    set.set_value();
    called.get_future().wait();
    ASSERT_TRUE(putNow(*store_, "/t/a", "x").ok());
    EXPECT_EQ(calls, 1);
}

// The gateway ends a stream with an error when its server ends, and without one when it is killed.
TEST_P(EtcdStoreTest, AWatchGoesOnWhereItWasAfterTheServersEnd) {
    WatchLog log(*store_, "/t/");
    ASSERT_TRUE(log.has("synced"));
    for (const int number : {SIGTERM, SIGKILL}) {
        server_->stop(number);
        EXPECT_TRUE(log.has("failed: etcd at " + server_->endpoint()));
        ASSERT_TRUE(server_->startAgain());
        const std::string word = "after" + std::to_string(number);
        server_->control({"put", "/t/a", word});
        EXPECT_TRUE(log.has("+/t/a=" + word));
        EXPECT_THAT(log.words(), ::testing::Not(::testing::Contains("reset")));
    }
}

TEST_P(EtcdStoreTest, ACompactedWatchReadsAnew) {
    server_->control({"put", "/t/a", "1"});
    WatchLog log(*store_, "/t/");
    ASSERT_TRUE(log.has("synced"));
    // The watch must come too late: its server is stopped while changes are made and forgotten.
    server_->stop(SIGKILL);
    ASSERT_TRUE(log.has("failed"));
    const StorePtr other = openStore(server_->endpoint(), {{"timeout", "30"}});
    ASSERT_TRUE(server_->startAgain());
    std::string said;
    for (int i = 0; i < 20; ++i) {
        said = server_->control({"put", "/t/b", std::to_string(i), "-w", "json"});
    }
    const size_t at = said.find("\"revision\":") + 11;
    server_->control({"compact", said.substr(at, said.find_first_not_of("0123456789", at) - at)});
    server_->control({"put", "/t/c", "last"});
    ASSERT_TRUE(log.has("+/t/c=last"));
    EXPECT_TRUE(log.has("+/t/b=19"));
}

TEST_P(EtcdStoreTest, AnEmptiedServerIsNoticed) {
    for (int i = 0; i < 20; ++i) {
        ASSERT_TRUE(putNow(*store_, "/t/a", std::to_string(i)).ok());
    }
    WatchLog log(*store_, "/t/");
    ASSERT_TRUE(log.has("synced"));
    server_->stop(SIGKILL);
    server_->emptyData();
    ASSERT_TRUE(server_->startAgain());
    EXPECT_TRUE(log.has("reset"));
    EXPECT_TRUE(eventually([&] { return valueNow(*store_, "/t/a") == "19"; }))
        << "what is owned is put back";
}

TEST_P(EtcdStoreTest, AServerThatIsAwayIsAnErrorThenWaitedFor) {
    server_->stop(SIGKILL);
    const StorePtr hasty = openStore(server_->endpoint(), {{"timeout", "0.3"}});
    const Status away = putNow(*hasty, "/t/later", "put when it is back");
    EXPECT_EQ(away.code(), ErrorCode::BACKEND);
    EXPECT_THAT(away.message(), HasSubstr("etcd at " + server_->endpoint()));
    EXPECT_THAT(away.message(), HasSubstr("refused"));
    EXPECT_THAT(valueNow(*hasty, "/t/later"), HasSubstr("cannot be reached"));
    WatchLog log(*hasty, "/t/");
    EXPECT_TRUE(log.has("failed: etcd at"));
    ASSERT_TRUE(server_->startAgain());
    EXPECT_TRUE(log.has("+/t/later=put when it is back"));
}

TEST_P(EtcdStoreTest, ASlowServerIsATimeoutNotAHang) {
    const StorePtr hasty = openStore(server_->endpoint(), {{"timeout", "0.5"}});
    ASSERT_TRUE(eventually([&] { return putNow(*hasty, "/t/a", "1").ok(); }));
    server_->signal(SIGSTOP);  // its threads stop one after the other
    std::string why;
    ASSERT_TRUE(eventually([&] {
        why = putNow(*hasty, "/t/a", "2").message();
        return !why.empty();
    }));
    EXPECT_THAT(why, HasSubstr("cannot be reached"));
    server_->signal(SIGCONT);
    EXPECT_TRUE(eventually([&] { return putNow(*hasty, "/t/a", "3").ok(); }));
}

TEST_P(EtcdStoreTest, TheEndTellsWhoStillWaits) {
    StorePtr other = openStore(server_->endpoint(), {{"timeout", "40"}});
    server_->signal(SIGSTOP);
    std::promise<Status> put;
    std::promise<Status> again;
    other->put("/t/a", "1", Lifetime::OWNER, [&](const Status& status) { put.set_value(status); });
    other->put("/t/a", "2", Lifetime::OWNER,
               [&](const Status& status) { again.set_value(status); });
    other.reset();
    EXPECT_EQ(put.get_future().get().code(), ErrorCode::CANCELED);
    EXPECT_EQ(again.get_future().get().code(), ErrorCode::CANCELED);
    server_->signal(SIGCONT);
}

TEST_P(EtcdStoreTest, WhatIsNoEtcdIsNamed) {
    const std::string peers = server_->control({"member", "list"});
    const size_t at = peers.find("http://127.0.0.1:");
    const std::string peer = peers.substr(at, peers.find(',', at) - at);
    const StorePtr wrong = openStore(peer, {{"timeout", "0.5"}});
    const std::string why = valueNow(*wrong, "/t/a");
    EXPECT_THAT(why, HasSubstr(peer + " answers, but not as etcd's v3 gateway (HTTP 404"));
    const StorePtr tls = openStore("https" + server_->endpoint().substr(4), {{"timeout", "0.5"}});
    EXPECT_THAT(valueNow(*tls, "/t/a"), HasSubstr("cannot be reached"));
}

TEST_P(EtcdStoreTest, SameSettingsShareOneClient) {
    EXPECT_EQ(openStore(server_->endpoint(), {{"lease_time", "2"}}), store_);
    EXPECT_NE(openStore(server_->endpoint(), {{"lease_time", "9"}}), store_);
}

TEST(EtcdServerTest, TellsAtOnceWhichProgramIsNotThere) {
    std::string folder = ::testing::TempDir() + "nixl-etcd-path-XXXXXX";
    ASSERT_NE(mkdtemp(folder.data()), nullptr);
    const std::string path = std::getenv("PATH");
    setenv("PATH", folder.c_str(), 1);
    const auto install = [&folder](const std::string& name) {
        std::filesystem::create_symlink("/proc/self/exe", folder + "/" + name);
    };
    EXPECT_TRUE(testkit::etcdPrograms().empty());
    install("etcd");
    EXPECT_THAT(testkit::etcdPrograms(), ElementsAre(folder + "/etcd"));
    EXPECT_THAT(testkit::lackingBeside(folder + "/etcd"), HasSubstr("no etcdctl beside " + folder));
    install("etcdctl");
    EXPECT_EQ(testkit::lackingBeside("/elsewhere/etcd"), "no curl in PATH");
    install("curl");
    EXPECT_EQ(testkit::lackingBeside(folder + "/etcd"), "");
    setenv("PATH", path.c_str(), 1);
    std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Versions, EtcdStoreTest, ::testing::Range<size_t>(0, 2));

}  // namespace
}  // namespace nixl::exchange_etcd
