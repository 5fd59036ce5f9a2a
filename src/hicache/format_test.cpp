// The file `format`: repaired, made anew where nothing is lost, or an error that says what to do;
// and the rights of what is made, and what killed writers leave.
#include "hicache/format.h"

#include <fstream>
#include <iterator>
#include <thread>

#include <sys/file.h>

#include "hicache/store_fixture.h"

namespace nixl::hicache {
namespace {

class Format : public PackedStore {
  protected:
    void SetUp() override {
        PackedStore::SetUp();
        root_ = dir_ / ".nixl-packed";
    }
    static std::string read(const fs::path& path) {
        std::ifstream file(path, std::ios::binary);
        return {std::istreambuf_iterator<char>(file), {}};
    }
    static void write(const fs::path& path, const std::string& bytes) {
        std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    }
    static void makeOld(const fs::path& path) {
        fs::last_write_time(
            path, fs::file_time_type::clock::now() - std::chrono::seconds(kStaleSeconds + 5));
    }
    Status openStatus(bool read_only = false) {
        return Store::open({.directories = {dir_.string()}, .directory = {.readOnly = read_only}})
            .status();
    }

    fs::path root_;
};

TEST_F(Format, isRepairedFromItsCopyWhateverIsDamaged) {
    putAll(*open(), "k", 3);
    const std::string whole = read(root_ / "format");
    ASSERT_EQ(read(root_ / "format.copy"), whole);
    std::vector<std::string> bad = {"", std::string(60, '\0'), whole.substr(0, 40), "nonsense\n"};
    for (size_t at = 0; at < whole.size(); ++at) {
        bad.push_back(whole);
        bad.back()[at] = static_cast<char>(bad.back()[at] ^ 1);
    }
    for (const std::string& text : bad) {
        if (text.starts_with("nixl-hicache packed 0")) {
            continue;
        }
        write(root_ / "format", text);
        EXPECT_EQ(get(*open({.readOnly = true}), "k1"), ItemState::HIT) << text;
        EXPECT_EQ(get(*open(), "k2"), ItemState::HIT) << text;
        EXPECT_EQ(read(root_ / "format"), whole);
        write(root_ / "format.copy", text);
        EXPECT_EQ(get(*open(), "k2"), ItemState::HIT) << text;
        EXPECT_EQ(read(root_ / "format.copy"), whole);
    }
    fs::remove(root_ / "format");
    EXPECT_EQ(get(*open(), "k0"), ItemState::HIT);
}

TEST_F(Format, blankWithNothingStoredIsMadeAnewByAllAtOnce) {
    for (const size_t size : {0U, 60U}) {
        fs::remove_all(root_);
        fs::create_directories(root_);
        write(root_ / "format", std::string(size, '\0'));
        std::vector<std::thread> threads;
        std::vector<HashSecret> secrets(8);
        for (HashSecret& secret : secrets) {
            threads.emplace_back([&] {
                const auto loaded = loadSecret(root_.string(), {});
                EXPECT_TRUE(loaded.ok()) << loaded.status().message();
                secret = loaded.ok() ? loaded.value() : HashSecret{};
            });
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
        for (const HashSecret& secret : secrets) {
            EXPECT_EQ(secret.low, secrets[0].low);
            EXPECT_EQ(secret.high, secrets[0].high);
        }
        putAll(*open(), "k", 1);
        EXPECT_EQ(get(*open(), "k0"), ItemState::HIT);
    }
}

TEST_F(Format, beyondRepairIsAnErrorThatSaysWhatToDo) {
    putAll(*open(), "k", 3);
    for (const char* text : {"", "nonsense"}) {
        write(root_ / "format", text);
        write(root_ / "format.copy", text);
        for (const bool read_only : {false, true}) {
            const std::string message = openStatus(read_only).message();
            EXPECT_NE(message.find("format: damaged"), std::string::npos) << message;
            EXPECT_NE(message.find("remove " + root_.string()), std::string::npos) << message;
        }
        EXPECT_EQ(read(root_ / "format"), text);  // it stays for whoever looks into it
    }
    write(root_ / "format", "nixl-hicache packed 2 secret 00\n");
    EXPECT_NE(openStatus().message().find("version 2"), std::string::npos);
}

TEST_F(Format, aLineWithoutChecksumIsReadAsBefore) {
    fs::create_directories(root_);
    write(root_ / "format", "nixl-hicache packed 1 secret 00000000000000010000000000000002\n");
    const auto loaded = loadSecret(root_.string(), {});
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    EXPECT_EQ(loaded.value().low, 1U);
    EXPECT_EQ(loaded.value().high, 2U);
}

TEST_F(Format, filesAreTheUsersAloneUnlessConfiguredOtherwise) {
    using enum fs::perms;
    const mode_t before = umask(0);
    const auto check = [&](fs::perms file, fs::perms folder) {
        for (const auto& entry : fs::recursive_directory_iterator(dir_)) {
            EXPECT_EQ(entry.status().permissions(), entry.is_directory() ? folder : file)
                << entry.path();
        }
    };
    const fs::path outside = dir_;
    dir_ = outside / "new" / "store";
    putAll(*open(), "k", 3);
    dir_ = outside;
    check(owner_read | owner_write, owner_all);
    fs::remove_all(dir_ / "new");
    umask(077);
    dir_ = outside / "new" / "store";
    putAll(*open({.logRewriteBytes = 0, .fileMode = 0640}), "k", 3);
    dir_ = outside;
    check(owner_read | owner_write | group_read, owner_all | group_read | group_exec);
    umask(before);
}

TEST_F(Format, whatKilledWritersLeftIsRemovedOnceItIsOldAndNobodys) {
    putAll(*open(), "k", 3);
    const fs::path segment = files("segments").at(0);
    const auto paths = [&](const std::string& kind) {
        return std::vector<fs::path>{root_ / ("format." + kind),
                                     root_ / ("logs/" + kind + ".log.new"),
                                     root_ / ("segments/" + kind + "-0")};
    };
    for (const char* kind : {"old", "young", "held"}) {
        for (const fs::path& path : paths(kind)) {
            write(path, "unfinished");
        }
    }
    for (const char* kind : {"old", "held"}) {
        for (const fs::path& path : paths(kind)) {
            makeOld(path);
        }
    }
    auto held = openFile(paths("held")[1].string(), O_RDWR);
    ASSERT_EQ(flock(held.value().get(), LOCK_EX), 0);
    makeOld(segment);  // of a writer whose log is there
    auto store = open();
    for (const fs::path& path : paths("old")) {
        EXPECT_FALSE(fs::exists(path)) << path;
    }
    for (const fs::path& path : paths("young")) {
        EXPECT_TRUE(fs::exists(path)) << path;
    }
    EXPECT_TRUE(fs::exists(paths("held")[1]));
    EXPECT_EQ(get(*store, "k1"), ItemState::HIT);
}

}  // namespace
}  // namespace nixl::hicache
