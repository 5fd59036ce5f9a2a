// The store in a directory: what is put is there, whole or not at all, while its owner lives.
#include "exchange_file/file_store.h"

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mutex.h"
#include "exchange_file/entry_file.h"

namespace nixl::exchange_file {
namespace {

using exchange::MetadataStore;
using exchange::StoreEntry;
using exchange::StoreEvent;
using testing::ElementsAre;
using testing::HasSubstr;
using Lifetime = MetadataStore::Lifetime;
namespace fs = std::filesystem;

class FileStoreTest : public testing::Test {
  public:
    FileStoreTest() {
        std::string name = fs::temp_directory_path() / "nixl-store-XXXXXX";
        directory_ = mkdtemp(name.data());
        store_ = open();
    }
    ~FileStoreTest() override {
        store_.reset();
        // The thread of a store that took too long to end may still put a file, or take it away.
        std::error_code failed;
        for (int round = 0; round < 1000 && fs::exists(directory_); ++round) {
            fs::remove_all(directory_, failed);
        }
        EXPECT_FALSE(fs::exists(directory_)) << failed.message();
    }

  protected:
    std::unique_ptr<MetadataStore> open() {
        auto made = makeFileStore(directory_);
        EXPECT_TRUE(made.ok()) << made.status().message();
        return std::move(made).value();
    }
    static Status put(MetadataStore& store,
                      const std::string& key,
                      const std::string& value,
                      Lifetime lifetime = Lifetime::KEPT) {
        std::promise<Status> end;
        store.put(key, value, lifetime, [&](Status status) { end.set_value(std::move(status)); });
        return end.get_future().get();
    }
    static Result<std::optional<StoreEntry>> get(MetadataStore& store, const std::string& key) {
        std::promise<Result<std::optional<StoreEntry>>> end;
        store.get(key, [&](auto found) { end.set_value(std::move(found)); });
        return end.get_future().get();
    }
    // What is there, or an empty one.
    static StoreEntry entryOf(const Result<std::optional<StoreEntry>>& found) {
        return found.ok() ? found.value().value_or(StoreEntry()) : StoreEntry();
    }
    static std::vector<std::string> keys(MetadataStore& store, const std::string& prefix) {
        std::promise<std::vector<std::string>> end;
        store.list(prefix, [&](const auto& all) {
            std::vector<std::string> found;
            for (const StoreEntry& one : all.value()) {
                found.push_back(one.key);
            }
            end.set_value(found);
        });
        return end.get_future().get();
    }
    static Status remove(MetadataStore& store, const std::string& key) {
        std::promise<Status> end;
        store.remove(key, [&](Status status) { end.set_value(std::move(status)); });
        return end.get_future().get();
    }
    fs::path fileOf(const std::string& key) const { return fs::path(directory_) / fileName(key); }

    std::string directory_;
    std::unique_ptr<MetadataStore> store_;
};

TEST_F(FileStoreTest, PutsGetsListsAndRemoves) {
    const std::string binary("a\0b\xff", 4);
    EXPECT_FALSE(get(*store_, "k").value().has_value());
    EXPECT_TRUE(put(*store_, "/ns/a b/1", binary).ok());
    EXPECT_TRUE(put(*store_, "/ns/c", "").ok());
    EXPECT_TRUE(put(*store_, "/other", "x").ok());
    const auto other = open();
    const StoreEntry first = entryOf(get(*other, "/ns/a b/1"));
    EXPECT_EQ(first.value, binary);
    EXPECT_TRUE(put(*other, "/ns/a b/1", "new").ok());
    const StoreEntry second = entryOf(get(*store_, "/ns/a b/1"));
    EXPECT_EQ(second.value, "new");
    EXPECT_GT(second.revision, first.revision);
    EXPECT_THAT(keys(*store_, "/ns/"), ElementsAre("/ns/a b/1", "/ns/c"));
    EXPECT_TRUE(remove(*store_, "/ns/c").ok());
    EXPECT_TRUE(remove(*store_, "/ns/c").ok());
    EXPECT_THAT(keys(*other, "/ns/"), ElementsAre("/ns/a b/1"));
}

TEST_F(FileStoreTest, KeysThatAreNoFileNames) {
    const std::string odd[] = {"..",
                               "../../etc/passwd",
                               std::string(1000, 'x'),
                               "a\nb",
                               std::string(1, '\0'),
                               ".hidden",
                               "%2F",
                               "/",
                               std::string(1000, 'y')};
    for (const std::string& key : odd) {
        EXPECT_TRUE(put(*store_, key, key).ok());
    }
    for (const std::string& key : odd) {
        EXPECT_EQ(entryOf(get(*store_, key)).value, key);
        EXPECT_TRUE(fs::exists(fileOf(key)));
    }
    EXPECT_EQ(keys(*store_, "").size(), std::size(odd));
}

TEST_F(FileStoreTest, DamagedFilesAreToldAndPassedOver) {
    EXPECT_TRUE(put(*store_, "good", "1").ok());
    EXPECT_TRUE(put(*store_, "bad", "12345").ok());
    fs::resize_file(fileOf("bad"), fs::file_size(fileOf("bad")) - 1);
    std::ofstream(fileOf("foreign")) << "something else";
    const auto bad = get(*store_, "bad");
    EXPECT_EQ(bad.status().code(), ErrorCode::INVALID_PARAM);
    EXPECT_THAT(bad.status().message(), HasSubstr("bad.nixl is damaged"));
    EXPECT_THAT(keys(*store_, ""), ElementsAre("good"));
    EXPECT_TRUE(put(*store_, "bad", "again").ok());
    EXPECT_EQ(entryOf(get(*store_, "bad")).value, "again");
}

TEST_F(FileStoreTest, WhatIsOwnedGoesWithItsOwner) {
    EXPECT_TRUE(put(*store_, "mine", "1", Lifetime::OWNER).ok());
    const auto other = open();
    EXPECT_TRUE(get(*other, "mine").value().has_value());
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    const pid_t child = fork();
    if (child == 0) {
        // Another process; nothing of the parent's store is used.
        auto own = makeFileStore(directory_);
        const bool good = put(*own.value(), "childs", "2", Lifetime::OWNER).ok() &&
                          put(*own.value(), "kept", "3").ok();
        static_cast<void>(!write(ready[1], good ? "y" : "n", 1));
        pause();
        _exit(0);
    }
    char answer = 0;
    ASSERT_EQ(read(ready[0], &answer, 1), 1);
    ASSERT_EQ(answer, 'y');
    EXPECT_TRUE(get(*store_, "childs").value().has_value());
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    close(ready[0]);
    close(ready[1]);
    EXPECT_FALSE(get(*store_, "childs").value().has_value());
    EXPECT_FALSE(fs::exists(fileOf("childs")));
    EXPECT_TRUE(get(*store_, "kept").value().has_value());
    store_.reset();
    EXPECT_FALSE(get(*other, "mine").value().has_value());
    store_ = open();
}

TEST_F(FileStoreTest, AWatchTellsWhatIsThereAndWhatChanges) {
    struct Seen {
        Mutex mutex;
        std::condition_variable_any changed;
        std::vector<std::string> events;
    } seen;
    const auto wait = [&](size_t count) {
        seen.mutex.lock();
        while (seen.events.size() < count) {
            seen.changed.wait(seen.mutex);
        }
        auto all = seen.events;
        seen.mutex.unlock();
        return all;
    };
    EXPECT_TRUE(put(*store_, "/a/1", "x").ok());
    EXPECT_TRUE(put(*store_, "/b/1", "x").ok());
    const auto other = open();
    auto watch = other->watch("/a/", [&](const StoreEvent& event) {
        const char* const kinds[] = {"put ", "removed ", "synced", "reset", "failed"};
        seen.mutex.lock();
        seen.events.push_back(kinds[static_cast<int>(event.kind)] + event.entry.key +
                              event.entry.value);
        seen.mutex.unlock();
        seen.changed.notify_all();
    });
    EXPECT_THAT(wait(2), ElementsAre("put /a/1x", "synced"));
    EXPECT_TRUE(put(*store_, "/a/1", "y").ok());
    EXPECT_EQ(wait(3)[2], "put /a/1y");
    EXPECT_TRUE(remove(*store_, "/a/1").ok());
    EXPECT_EQ(wait(4)[3], "removed /a/1");
    watch.reset();
    EXPECT_TRUE(put(*store_, "/a/2", "z").ok());
    EXPECT_THAT(keys(*other, "/a/"), ElementsAre("/a/2"));
    EXPECT_EQ(wait(4).size(), 4U);
}

TEST_F(FileStoreTest, WhatCannotBe) {
    EXPECT_EQ(makeFileStore("").status().code(), ErrorCode::INVALID_PARAM);
    const Status missing = makeFileStore(directory_ + "/a/b").status();
    EXPECT_THAT(missing.message(), HasSubstr("No such file"));
    std::ofstream(directory_ + "/file") << "x";
    EXPECT_THAT(makeFileStore(directory_ + "/file").status().message(), HasSubstr("no directory"));
    fs::remove_all(directory_);
    EXPECT_THAT(put(*store_, "k", "v").message(), HasSubstr(directory_));
}

TEST_F(FileStoreTest, TheEndOfTheStoreEndsWhatWasAsked) {
    for (int round = 0; round < 50; ++round) {
        auto store = open();
        std::atomic<int> told{0};
        for (int i = 0; i < 20; ++i) {
            store->put("k" + std::to_string(i), "v", Lifetime::KEPT,
                       [&](const Status&) { ++told; });
        }
        store.reset();
        EXPECT_EQ(told, 20);
    }
}

}  // namespace
}  // namespace nixl::exchange_file
