// Logs that are damaged at any byte: every key has its newest value, or is a miss.
#include <fstream>
#include <iterator>
#include <map>

#include "hicache/store_fixture.h"

namespace nixl::hicache {
namespace {

class DamagedLog : public PackedStore {
  protected:
    // Two writers with replaced, erased and cleared keys; what each key is now in `truth_`.
    void writeHistory() {
        auto a = open();
        auto b = open();
        set(*a, "old");
        set(*b, "old-b");
        EXPECT_TRUE(a->clear().ok());
        truth_ = {{"old", ""}, {"old-b", ""}};
        for (const char* key : {"a", "k", "swap", "erased"}) {
            set(*a, key);
        }
        for (const char* key : {"b", "swap", "erased-b"}) {
            set(*b, key);
        }
        set(*a, "k");
        set(*a, "swap");
        EXPECT_TRUE(a->erase({"erased"}).ok());
        EXPECT_TRUE(b->erase({"erased-b"}).ok());
        truth_["erased"] = truth_["erased-b"] = "";
        set(*b, "of-y", scopeOf(2, 2));
        set(*b, "of-z", scopeOf(2, 2));
        EXPECT_TRUE(a->clearOwners({"-y"}).ok());
        truth_["of-y"] = "";
        set(*b, "k");
    }

    void set(Store& store, const std::string& key, uint32_t scope = 0) {
        const std::string value = key + " " + std::to_string(++count_);
        Batch batch;
        store.addKey(batch, key, true, scope);
        batch.items[0].length = value.size();
        EXPECT_TRUE(store.reserve(batch, true).ok());
        const std::vector<Part> mine{{reinterpret_cast<uint64_t>(value.data()), value.size(), 0}};
        EXPECT_TRUE(store.move(batch, ItemState::NEW, mine, 1, true, false).ok());
        EXPECT_TRUE(store.commit(batch).ok());
        truth_[key] = value;
    }

    // How many keys have a value, none of them another one than the newest.
    size_t hits(Store& store, const std::string& where) {
        size_t count = 0;
        for (const auto& [key, wanted] : truth_) {
            std::string value;
            if (get(store, key, &value) == ItemState::HIT) {
                EXPECT_EQ(value, wanted) << key << " " << where;
                ++count;
            }
        }
        return count;
    }

    size_t alive() const {
        size_t count = 0;
        for (const auto& [key, value] : truth_) {
            count += value.empty() ? 0 : 1;
        }
        return count;
    }

    static std::string read(const fs::path& path) {
        std::ifstream file(path, std::ios::binary);
        return {std::istreambuf_iterator<char>(file), {}};
    }
    static void write(const fs::path& path, const std::string& bytes) {
        std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    }

    std::map<std::string, std::string> truth_;
    int count_ = 0;
};

TEST_F(DamagedLog, noKeyHasAnOlderValueAndNothingComesBack) {
    writeHistory();
    EXPECT_EQ(hits(*open({.readOnly = true}), "whole"), alive());
    for (const fs::path& log : files("logs")) {
        const std::string whole = read(log);
        size_t lost_one = 0;
        for (size_t at = 0; at < whole.size(); ++at) {
            for (const int bits : {0x01, 0xff}) {
                std::string bad = whole;
                bad[at] = static_cast<char>(bad[at] ^ bits);
                write(log, bad);
                const std::string where = "byte " + std::to_string(at);
                lost_one += hits(*open({.readOnly = true}), where) + 1 == alive() ? 1 : 0;
            }
        }
        for (size_t at = 0; at < whole.size(); at += 8) {
            for (const size_t size : {8, 64, 200}) {
                std::string bad = whole;
                std::fill(bad.begin() + static_cast<ptrdiff_t>(at),
                          bad.begin() + static_cast<ptrdiff_t>(std::min(at + size, bad.size())),
                          '\0');
                write(log, bad);
                hits(*open({.readOnly = true}), "zeros at " + std::to_string(at));
            }
        }
        EXPECT_GT(lost_one, 50U);  // mostly the key of a damaged record is known
        write(log, whole);
    }
}

TEST_F(DamagedLog, whatWasLostStaysLostOnceTheDamageIsRepaired) {
    writeHistory();
    const fs::path copy = dir_.string() + "-copy";
    fs::copy(dir_, copy, fs::copy_options::recursive);
    for (const fs::path& log : files("logs")) {
        const std::string whole = read(log);
        for (size_t at = 5; at < whole.size(); at += 23) {
            std::string bad = whole;
            bad[at] = static_cast<char>(bad[at] ^ 0x10);
            write(log, bad);
            const std::string where = "byte " + std::to_string(at);
            hits(*open(), where);  // adopts and repairs
            auto store = open();
            EXPECT_EQ(store->directory(0).stats().damagedLogBytes, 0U) << where;
            hits(*store, where + " again");
            const std::string value = "new " + where;
            ASSERT_EQ(put(*store, {"k"}, {value}, true)[0], ItemState::STORED);
            std::string now;
            EXPECT_EQ(get(*open({.readOnly = true}), "k", &now), ItemState::HIT) << where;
            EXPECT_EQ(now, value);
            store.reset();
            fs::remove_all(dir_);
            fs::copy(copy, dir_, fs::copy_options::recursive);
        }
    }
    fs::remove_all(copy);
}

}  // namespace
}  // namespace nixl::hicache
