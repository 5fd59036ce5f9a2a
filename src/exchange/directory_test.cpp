// The directory over a store that says what the test wants.
#include "exchange/directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nixl::exchange {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class SaidStore final : public MetadataStore {
  public:
    std::string describe() const override { return "a store"; }
    void put(std::string /*key*/,
             std::string /*value*/,
             Lifetime /*lifetime*/,
             std::function<void(Status)> done) override {
        done({});
    }
    void get(std::string /*key*/,
             std::function<void(Result<std::optional<StoreEntry>>)> done) override {
        done(std::optional<StoreEntry>());
    }
    void list(std::string /*prefix*/,
              std::function<void(Result<std::vector<StoreEntry>>)> done) override {
        done(std::vector<StoreEntry>());
    }
    void remove(std::string /*key*/, std::function<void(Status)> done) override { done({}); }
    std::unique_ptr<StoreWatch> watch(std::string prefix,
                                      std::function<void(StoreEvent)> event) override {
        EXPECT_EQ(prefix, "/n/");
        ++watches;
        said = std::move(event);
        return watchable ? std::make_unique<StoreWatch>() : nullptr;
    }

    bool watchable = true;
    int watches = 0;
    std::function<void(StoreEvent)> said;
};

class Told final : public Directory::Listener {
  public:
    void entered(const EntryPtr& now, const EntryPtr& before) override {
        words.push_back((before == nullptr ? "new " : "more ") + now->who.name + " " +
                        std::to_string(now->version) + "+" + std::to_string(now->changes.size()));
    }
    void left(const EntryPtr& was, bool withdrawn) override {
        words.push_back((withdrawn ? "withdrawn " : "left ") + was->who.name);
    }
    void synced() override { words.emplace_back("synced"); }
    std::vector<std::string> taken() { return std::exchange(words, {}); }

    std::vector<std::string> words;
};

class DirectoryTest : public ::testing::Test {
  protected:
    DirectoryTest() { directory_->subscribe(told_); }

    static std::string blob(const std::string& name,
                            uint8_t incarnation,
                            uint64_t version,
                            uint64_t base = 0) {
        metadata::Blob out;
        out.name = name;
        out.incarnation[0] = incarnation;
        out.version = version;
        out.base = base;
        out.partial = base != 0;
        out.connection = base == 0;
        return metadata::encodeBlob(out);
    }
    void put(const std::string& key, std::string value) {
        store_->said({StoreEvent::Kind::PUT, {key, std::move(value), 1}, {}});
    }
    void removed(const std::string& key) {
        store_->said({StoreEvent::Kind::REMOVED, {key, {}, 1}, {}});
    }
    void say(StoreEvent::Kind kind, Status status = {}) {
        store_->said({kind, {}, std::move(status)});
    }

    const std::shared_ptr<SaidStore> store_ = std::make_shared<SaidStore>();
    const std::shared_ptr<Directory> directory_ = Directory::open(store_, "/n/");
    const std::shared_ptr<Told> told_ = std::make_shared<Told>();
};

TEST_F(DirectoryTest, OneForAllOfAProcess) {
    EXPECT_EQ(Directory::open(store_, "/n/"), directory_);
    EXPECT_EQ(store_->watches, 1);
    EXPECT_TRUE(directory_->follows());
    const auto other = std::make_shared<SaidStore>();
    other->watchable = false;
    EXPECT_FALSE(Directory::open(other, "/n/")->follows());
}

TEST_F(DirectoryTest, BothFormsOfAKey) {
    put("/n/a/", "");
    put("/n/a/metadata", blob("a", 1, 1));
    put("/n//b/metadata", blob("b", 1, 1));
    put("/n//c/d/metadata", blob("c/d", 1, 1));
    put("/n///e/metadata", blob("/e", 1, 1));
    put("/n/a/label", blob("a", 1, 1));
    EXPECT_THAT(directory_->names(), ElementsAre("/e", "a", "b", "c/d"));
    removed("/n/b/metadata");  // not that one's key
    removed("/n//b/metadata");
    removed("/n//b/metadata");
    EXPECT_THAT(directory_->names(), ElementsAre("/e", "a", "c/d"));
}

TEST_F(DirectoryTest, ChangesBeforeAndAfterTheWhole) {
    put("/n/a/changes/0000000000000003", blob("a", 1, 3, 2));
    put("/n/a/changes/0000000000000009", blob("a", 2, 9, 1));  // of another of the name
    put("/n/a/changes/0000000000000002", blob("a", 1, 2, 1));
    put("/n/a/metadata", blob("a", 1, 1));
    put("/n/a/changes/0000000000000004", blob("a", 1, 4, 3));
    put("/n/a/changes/0000000000000006", blob("a", 1, 6, 5));  // what it builds on is not there
    put("/n/a/changes/0000000000000004", blob("a", 1, 4, 3));  // again
    EXPECT_THAT(told_->taken(), ElementsAre("new a 3+2", "more a 4+3"));
    put("/n/a/metadata", blob("a", 1, 5));
    EXPECT_THAT(told_->taken(), ElementsAre("more a 6+1"));
    removed("/n/a/changes/0000000000000006");
    put("/n/a/metadata", blob("a", 1, 7));
    put("/n/a/metadata", blob("a", 2, 1));  // the one whose change has waited
    EXPECT_THAT(told_->taken(), ElementsAre("more a 7+0", "more a 9+1"));
}

TEST_F(DirectoryTest, WhoIsNotSeenAfterAResetHasLeft) {
    put("/n/a/metadata", blob("a", 1, 1));
    put("/n/b/metadata", blob("b", 1, 1));
    say(StoreEvent::Kind::SYNCED);
    EXPECT_THAT(told_->taken(), ElementsAre("new a 1+0", "new b 1+0", "synced"));
    say(StoreEvent::Kind::RESET);
    put("/n/b/metadata", blob("b", 1, 1));
    EXPECT_THAT(directory_->names(), ElementsAre("a", "b")) << "nobody goes before all are read";
    say(StoreEvent::Kind::SYNCED);
    EXPECT_THAT(told_->taken(), ElementsAre("left a", "synced"));
}

TEST_F(DirectoryTest, WithdrawnIsTold) {
    put("/n/a/metadata", blob("a", 1, 1));
    put("/n/a/metadata", std::string(Directory::kWithdrawn));
    removed("/n/a/metadata");
    EXPECT_THAT(told_->taken(), ElementsAre("new a 1+0", "withdrawn a"));
    EXPECT_EQ(directory_->find("a"), nullptr);
}

TEST_F(DirectoryTest, WhatIsNoMetadataIsLeftOutWithItsReason) {
    put("/n/a/metadata", "rubbish");
    EXPECT_THAT(directory_->unreadable("a").message(),
                HasSubstr("a store, \"/n/a/metadata\": these 7 bytes are not agent metadata"));
    put("/n/b/metadata", blob("somebody", 1, 1));
    EXPECT_THAT(directory_->unreadable("b").message(), HasSubstr("another name, \"somebody\""));
    put("/n/c/metadata", "nixlSerDes|x");
    EXPECT_THAT(directory_->unreadable("c").message(), HasSubstr("published package"));
    put("/n/d/changes/0000000000000001", blob("d", 1, 0, 0));
    EXPECT_THAT(directory_->unreadable("d").message(), HasSubstr("without a version"));
    put("/elsewhere/e/metadata", blob("e", 1, 1));
    put("/n/metadata", blob("f", 1, 1));
    put("/n//metadata", blob("f", 1, 1));
    EXPECT_THAT(told_->taken(), IsEmpty());
    put("/n/a/metadata", blob("a", 1, 1));
    EXPECT_TRUE(directory_->unreadable("a").ok());
    put("/n/a/metadata", "rubbish again");
    EXPECT_THAT(told_->taken(), ElementsAre("new a 1+0", "left a"));
}

TEST_F(DirectoryTest, TroubleLastsUntilTheNextWord) {
    say(StoreEvent::Kind::FAILED, Status::backend("away"));
    EXPECT_EQ(directory_->trouble().message(), "away");
    EXPECT_FALSE(directory_->isSynced());
    say(StoreEvent::Kind::SYNCED);
    EXPECT_TRUE(directory_->trouble().ok());
    EXPECT_TRUE(directory_->isSynced());
}

}  // namespace
}  // namespace nixl::exchange
