// The fixed limits of a directory: what is noticed, logged, tried and looked past, and how often.
#include <cerrno>
#include <fstream>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hicache/log_file.h"
#include "hicache/store_fixture.h"

namespace {

int locks_to_refuse = 0;  // so many locks are another's from now on

}  // namespace

// In place of the C library's: another process that is always the first to lock a new log.
// NOLINTNEXTLINE(readability-inconsistent-declaration-parameter-name)
extern "C" int flock(int fd, int operation) {
    if (locks_to_refuse > 0 && (operation & LOCK_NB) != 0) {
        --locks_to_refuse;
        errno = EWOULDBLOCK;
        return -1;
    }
    return static_cast<int>(syscall(SYS_flock, fd, operation));
}

namespace nixl::hicache {
namespace {

constexpr uint64_t kSecond = 1000000000;

class Limits : public PackedStore {
  protected:
    // Everything in the only log was done so many seconds earlier.
    void makeOlder(uint64_t seconds) {
        const fs::path path = files("logs").at(0);
        auto log = LogFile::open(path, false);
        ASSERT_TRUE(log.ok());
        std::string records;
        ASSERT_TRUE(log.value()
                        ->readNew([&](Record record) {
                            record.version -= seconds * kSecond;
                            encode(record, records);
                        })
                        .ok());
        std::ofstream(path, std::ios::binary | std::ios::trunc) << records;
    }

    size_t touchesLogged() {
        size_t count = 0;
        for (const fs::path& path : files("logs")) {
            auto log = LogFile::open(path, false);
            EXPECT_TRUE(log.ok());
            const auto look = [&](const Record& record) {
                count += record.type == RecordType::TOUCH ? 1 : 0;
            };
            EXPECT_TRUE(log.value()->readNew(look).ok());
        }
        return count;
    }

    // When the folder of the logs was changed last, in nanoseconds since 1970.
    void setChanged(uint64_t time) {
        const timespec at{static_cast<time_t>(time / kSecond), static_cast<long>(time % kSecond)};
        const timespec both[2]{at, at};
        const std::string logs = dir_ / ".nixl-packed" / "logs";
        ASSERT_EQ(utimensat(AT_FDCWD, logs.c_str(), both, 0), 0);
    }
};

TEST_F(Limits, kTouchSecondsThatABlockWasReadIsLoggedOnceInAWhile) {
    putAll(*open(), "k", 2);
    makeOlder(kTouchSeconds / 2);
    {
        auto store = open({.maxBytes = 1 << 20});
        putAll(*store, "mine", 1);
        EXPECT_EQ(get(*store, "k0"), ItemState::HIT);
    }
    EXPECT_EQ(touchesLogged(), 0U);
    fs::remove_all(dir_ / ".nixl-packed");
    putAll(*open(), "k", 2);
    makeOlder(kTouchSeconds + 1);
    {
        auto store = open({.maxBytes = 1 << 20});
        putAll(*store, "mine", 1);
        for (int i = 0; i < 3; ++i) {
            EXPECT_EQ(get(*store, "k0"), ItemState::HIT);
        }
    }
    EXPECT_EQ(touchesLogged(), 1U);
}

TEST_F(Limits, kUnsettledTheTimeOfAFolderIsBelievedOnceItIsOld) {
    auto reader = open();
    auto writer = open();
    const uint64_t now = wallClockNanoseconds();
    putAll(*writer, "a", 1);
    setChanged(now - kTooRecent - kSecond);
    EXPECT_EQ(get(*reader, "a0"), ItemState::HIT);
    auto another = open();
    putAll(*another, "b", 1);
    setChanged(now - kTooRecent - kSecond);  // nothing tells that there is another log
    EXPECT_EQ(get(*reader, "b0"), ItemState::MISS);
    setChanged(now + 3600 * kSecond);  // as young as can be, also by a clock that is ahead
    EXPECT_EQ(get(*reader, "b0"), ItemState::HIT);
    auto last = open();
    putAll(*last, "c", 1);
    setChanged(now + 3600 * kSecond);  // the same time again: it may have changed within it
    EXPECT_EQ(get(*reader, "c0"), ItemState::HIT);
}

TEST_F(Limits, kCreateAttemptsANewLogIsLeftToWhoLocksItFirst) {
    auto store = open();
    auto another = open();
    locks_to_refuse = kCreateAttempts;
    putAll(*store, "k", 1);
    EXPECT_EQ(locks_to_refuse, 0);
    EXPECT_EQ(files("logs").size(), static_cast<size_t>(kCreateAttempts) + 1);
    locks_to_refuse = kCreateAttempts + 1;
    Batch batch;
    another->addKey(batch, "m", true);
    batch.items[0].length = 1;
    const Status status = another->reserve(batch, false);
    EXPECT_EQ(status.systemErrno(), EWOULDBLOCK) << status.message();
    EXPECT_EQ(locks_to_refuse, 0);
    EXPECT_EQ(get(*store, "k0"), ItemState::HIT);
}

TEST_F(Limits, kEvictionScanSoManyBlocksOfOthersAreLookedPast) {
    // Blocks without their bytes: only the books count here.
    const auto put = [](Store& store, const std::string& prefix, uint32_t count) {
        Batch batch;
        for (uint32_t i = 0; i < count; ++i) {
            store.addKey(batch, prefix + std::to_string(i), true);
            batch.items[i].length = kAlignment;
        }
        const Status reserved = store.reserve(batch, false);
        ASSERT_TRUE(reserved.ok()) << reserved.message();
        ASSERT_TRUE(store.commit(batch).ok());
    };
    constexpr uint64_t kSpare = 8;
    for (const uint32_t older : {kEvictionScan - 1, kEvictionScan}) {
        auto others = open();
        auto mine = open({.maxBytes = (older + kSpare) * kAlignment});
        put(*others, "old", older);
        EXPECT_EQ(get(*mine, "nothing"), ItemState::MISS);  // follows their log
        put(*mine, "mine", kSpare);
        EXPECT_EQ(mine->directory(0).stats().evictions, 0U);
        put(*mine, "more", 1);
        EXPECT_EQ(mine->directory(0).stats().evictions, older < kEvictionScan ? kSpare : 0);
        fs::remove_all(dir_ / ".nixl-packed");
    }
}

}  // namespace
}  // namespace nixl::hicache
