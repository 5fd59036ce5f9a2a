// What the tests of the packed store share: a folder of their own, blocks with known bytes, storing
// and fetching as a connector does, and small file systems.
#pragma once

#include <cerrno>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "hicache/store.h"
#include "hicache/system.h"

namespace nixl::hicache {

namespace fs = std::filesystem;

class PackedStore : public testing::Test {
  protected:
    void SetUp() override {
        dir_ = fs::temp_directory_path() / ("nixl-packed-" + randomName());
        fs::create_directories(dir_);
    }
    void TearDown() override {
        if (mounted_) {
            umount2(dir_.c_str(), MNT_DETACH);
        }
        fs::remove_all(dir_);
    }

    // The folder becomes a file system of its own; false where that is not allowed.
    bool mountHere(const char* kind, const char* options) {
        mounted_ = ::mount("nixl-test", dir_.c_str(), kind, 0, options) == 0;
        return mounted_;
    }

    std::unique_ptr<Store> open(DirectoryOptions options = {}) {
        auto store = Store::open({.directories = {dir_.string()}, .directory = options});
        EXPECT_TRUE(store.ok()) << store.status().message();
        return std::move(store).value();
    }

    static std::string payload(const std::string& key, size_t size = 5000) {
        std::mt19937_64 random(std::hash<std::string>()(key));
        std::string out(size, '\0');
        for (char& c : out) {
            c = static_cast<char>(random());
        }
        return out;
    }

    static std::vector<Part> partsOf(const std::vector<std::string>& blocks) {
        std::vector<Part> parts;
        for (const std::string& block : blocks) {
            parts.push_back({reinterpret_cast<uint64_t>(block.data()), block.size(), 0});
        }
        return parts;
    }

    // What a connector does, with plain writes in place of the agent's transfer.
    static std::vector<ItemState> put(Store& store,
                                      const std::vector<std::string>& keys,
                                      const std::vector<std::string>& blocks,
                                      bool replace = false) {
        Batch batch;
        for (size_t i = 0; i < keys.size(); ++i) {
            store.addKey(batch, keys[i], true);
            batch.items[i].length = blocks[i].size();
        }
        const Status reserved = store.reserve(batch, replace);
        std::vector<Row> local;
        std::vector<Row> remote;
        const auto parts = partsOf(blocks);
        store.describe(batch, ItemState::NEW, parts, 1, local, remote);
        for (size_t i = 0; i < local.size(); ++i) {
            const std::string path = store.segmentPath(remote[i].device);
            auto fd = openFile(path, O_WRONLY);
            EXPECT_TRUE(fd.ok());
            EXPECT_TRUE(writeAll(fd.value().get(), path,
                                 reinterpret_cast<const void*>(local[i].address), local[i].length,
                                 remote[i].address)
                            .ok());
        }
        store.checksum(batch, parts, 1);
        const Status committed = store.commit(batch);
        std::vector<ItemState> states;
        for (const Item& item : batch.items) {
            states.push_back(item.state);
        }
        return states;
    }

    // The same, but the store moves the payload itself.
    static ItemState putMoved(Store& store,
                              const std::string& key,
                              const std::string& block,
                              bool direct = false) {
        Batch batch;
        store.addKey(batch, key, true);
        batch.items[0].length = block.size();
        const Status reserved = store.reserve(batch, true);
        const std::vector<Part> mine{{reinterpret_cast<uint64_t>(block.data()), block.size(), 0}};
        const Status moved = store.move(batch, ItemState::NEW, mine, 1, true, direct);
        const Status committed = store.commit(batch);
        return batch.items[0].state;
    }

    static std::vector<std::string> putAll(Store& store, const std::string& prefix, int count) {
        std::vector<std::string> keys;
        std::vector<std::string> blocks;
        for (int i = 0; i < count; ++i) {
            keys.push_back(prefix + std::to_string(i));
            blocks.push_back(payload(keys.back()));
        }
        for (const ItemState state : put(store, keys, blocks)) {
            EXPECT_EQ(state, ItemState::STORED);
        }
        return keys;
    }

    // MISS, CORRUPT, or HIT with the right bytes (anything else fails the test).
    static ItemState get(Store& store, const std::string& key, std::string* out = nullptr) {
        Batch batch;
        store.addKey(batch, key, false);
        EXPECT_TRUE(store.find(batch).ok());
        if (batch.items[0].state != ItemState::HIT) {
            return batch.items[0].state;
        }
        std::string block(batch.items[0].length, '\0');
        const std::vector<Part> parts = partsOf({block});
        std::vector<Part> mine{{reinterpret_cast<uint64_t>(block.data()), block.size(), 0}};
        std::vector<Row> local;
        std::vector<Row> remote;
        store.describe(batch, ItemState::HIT, mine, 1, local, remote);
        for (size_t i = 0; i < local.size(); ++i) {
            const std::string path = store.segmentPath(remote[i].device);
            auto fd = openFile(path, O_RDONLY);
            if (!fd.ok()) {
                return ItemState::FAILED;
            }
            auto got = readAll(fd.value().get(), path, reinterpret_cast<void*>(local[i].address),
                               local[i].length, remote[i].address);
            EXPECT_TRUE(got.ok());
        }
        store.checksum(batch, mine, 1);
        if (batch.items[0].state == ItemState::CORRUPT) {
            EXPECT_TRUE(store.forgetCorrupt(batch).ok());
            return ItemState::CORRUPT;
        }
        EXPECT_TRUE(store.confirm(batch).ok());
        if (out != nullptr) {
            *out = block;
        } else if (batch.items[0].state == ItemState::HIT) {
            EXPECT_EQ(block, payload(key, block.size())) << key;
        }
        return batch.items[0].state;
    }

    std::vector<fs::path> files(const std::string& kind) {
        std::vector<fs::path> out;
        for (const auto& entry : fs::directory_iterator(dir_ / ".nixl-packed" / kind)) {
            out.push_back(entry.path());
        }
        return out;
    }

    // Bytes that the segments take on the disk.
    uint64_t onDisk() {
        uint64_t blocks = 0;
        for (const fs::path& path : files("segments")) {
            struct stat info {};
            EXPECT_EQ(::stat(path.c_str(), &info), 0);
            blocks += static_cast<uint64_t>(info.st_blocks) * 512;
        }
        return blocks;
    }

    fs::path dir_;
    bool mounted_ = false;
};

}  // namespace nixl::hicache
