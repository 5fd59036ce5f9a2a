// A framework's store behind the common interface: on a thread of its own, errors with its name,
// and nothing told twice or after its end.
#include "exchange/framework_store.h"

#include <atomic>
#include <future>
#include <map>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/mutex.h"

namespace nixl::exchange {
namespace {

using testing::HasSubstr;
using Lifetime = MetadataStore::Lifetime;

class Dictionary final : public FrameworkStore {
  public:
    std::string describe() const override { return "a dictionary"; }
    Status set(const std::string& key, const std::string& value) override {
        ++calls;
        thread = std::this_thread::get_id();
        if (held.valid()) {
            held.wait();
        }
        if (broken) {
            return Status::backend("on fire", 5);
        }
        values[key] = value;
        return {};
    }
    Result<std::optional<std::string>> get(const std::string& key) override {
        if (broken) {
            return Status::backend("on fire", 5);
        }
        const auto found = values.find(key);
        return found == values.end() ? std::optional<std::string>() : found->second;
    }
    Status remove(const std::string& key) override {
        values.erase(key);
        return {};
    }

    std::map<std::string, std::string> values;
    std::atomic<int> calls{0};
    std::thread::id thread;
    std::shared_future<void> held;  // set: what set() waits for
    bool broken = false;
};

Status put(MetadataStore& store, const std::string& key, const std::string& value) {
    std::promise<Status> end;
    store.put(key, value, Lifetime::OWNER, [&](const Status& status) { end.set_value(status); });
    return end.get_future().get();
}

Result<std::optional<StoreEntry>> get(MetadataStore& store, const std::string& key) {
    std::promise<Result<std::optional<StoreEntry>>> end;
    store.get(key, [&](auto found) { end.set_value(std::move(found)); });
    return end.get_future().get();
}

TEST(FrameworkStoreTest, PutsGetsAndRemovesOnAThreadOfItsOwn) {
    const auto dictionary = std::make_shared<Dictionary>();
    const auto store = makeFrameworkStore(dictionary);
    EXPECT_EQ(store->describe(), "a dictionary");
    EXPECT_FALSE(get(*store, "k").value().has_value());
    EXPECT_TRUE(put(*store, "k", "v").ok());
    EXPECT_NE(dictionary->thread, std::this_thread::get_id());
    EXPECT_EQ(get(*store, "k").value().value_or(StoreEntry()).value, "v");
    std::promise<Status> removed;
    store->remove("k", [&](const Status& status) { removed.set_value(status); });
    EXPECT_TRUE(removed.get_future().get().ok());
    EXPECT_FALSE(get(*store, "k").value().has_value());
    EXPECT_EQ(store->watch("", nullptr), nullptr);
    store->list("", [](const auto& all) {
        EXPECT_EQ(all.status().code(), ErrorCode::NOT_SUPPORTED);
        EXPECT_THAT(all.status().message(), HasSubstr("a dictionary"));
    });
}

TEST(FrameworkStoreTest, ErrorsNameTheStore) {
    const auto dictionary = std::make_shared<Dictionary>();
    dictionary->broken = true;
    const auto store = makeFrameworkStore(dictionary);
    const Status status = put(*store, "k", "v");
    EXPECT_EQ(status.code(), ErrorCode::BACKEND);
    EXPECT_EQ(status.systemErrno(), 5);
    EXPECT_EQ(status.message(), "a dictionary: on fire");
    EXPECT_EQ(get(*store, "k").status().message(), "a dictionary: on fire");
}

TEST(FrameworkStoreTest, AStoreThatHangsEndsInTime) {
    const auto dictionary = std::make_shared<Dictionary>();
    std::promise<void> release;
    dictionary->held = release.get_future().share();
    std::atomic<int> told{0};
    {
        const auto store = makeFrameworkStore(dictionary);
        for (int i = 0; i < 3; ++i) {
            store->put("k", "v", Lifetime::KEPT, [&](const Status& status) {
                EXPECT_EQ(status.code(), ErrorCode::CANCELED);
                ++told;
            });
        }
        while (dictionary->calls == 0) {
            std::this_thread::yield();
        }
    }
    EXPECT_EQ(told, 3) << "the one inside, and those behind it";
    release.set_value();
    while (dictionary.use_count() > 1) {
        std::this_thread::yield();  // the thread that was left behind ends by itself
    }
    EXPECT_EQ(dictionary->calls, 1);
    EXPECT_EQ(told, 3);
}

}  // namespace
}  // namespace nixl::exchange
