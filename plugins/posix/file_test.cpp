// File specifications, registration errors, the descriptor cache and queries.
#include "file.h"

#include <fstream>

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "posix_test_support.h"

namespace nixl::posix {
namespace {

using testing::HasSubstr;

size_t openDescriptors() {
    size_t count = 0;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
        count += entry.path().empty() ? 0 : 1;
    }
    return count;
}

class FileTest : public testing::Test {
  protected:
    Result<std::unique_ptr<File>> open(const std::string& metadata, uint64_t device = 1) {
        return File::open({MemType::FILE, 0, 4096, device, metadata}, cache_,
                          [this](const auto& text) { log_ += text; });
    }

    std::shared_ptr<FdCache> cache_ = std::make_shared<FdCache>(4);
    TempFolder folder_;
    std::string log_;
};

TEST(FileSpecTest, LabelsAreNoPaths) {
    for (const char* label :
         {"", "a label", "kv:/cache", "direct:/x", "rwx:/x", "/rw:/x", "c:ro"}) {
        const auto spec = parseFileSpec(label);
        ASSERT_TRUE(spec.ok()) << label;
        EXPECT_FALSE(spec.value()) << label;
    }
}

TEST(FileSpecTest, FlagsInAnyOrder) {
    const auto spec = parseFileSpec("rw,create,direct:/a:b,c");
    ASSERT_TRUE(spec.ok() && spec.value());
    EXPECT_EQ(spec.value()->path, "/a:b,c");
    EXPECT_TRUE(spec.value()->write && spec.value()->create && spec.value()->direct);
    const auto turned = parseFileSpec("direct,ro:/x");
    ASSERT_TRUE(turned.ok() && turned.value());
    EXPECT_TRUE(turned.value()->direct);
    EXPECT_FALSE(turned.value()->write);
}

TEST(FileSpecTest, MistakesAreNamed) {
    const std::map<std::string, std::string> mistakes = {
        {"rw,crate:/x", "unknown flag \"crate\""},
        {"ro,create:/x", "ro contradicts create"},
        {"ro,rw:/x", "ro contradicts rw"},
        {"rw:", "the path is empty"},
    };
    for (const auto& [spec, part] : mistakes) {
        const auto parsed = parseFileSpec(spec);
        ASSERT_FALSE(parsed.ok()) << spec;
        EXPECT_EQ(parsed.status().code(), ErrorCode::INVALID_PARAM);
        EXPECT_THAT(parsed.status().message(), HasSubstr(part));
        EXPECT_THAT(parsed.status().message(), HasSubstr(spec));
    }
}

TEST_F(FileTest, MissingFile) {
    for (const std::string flags : {"ro:", "rw:", "ro,direct:", "rw,direct:"}) {
        const auto file = open(flags + (folder_ / "missing"));
        ASSERT_FALSE(file.ok());
        EXPECT_EQ(file.status().code(), ErrorCode::NOT_FOUND);
        EXPECT_EQ(file.status().systemErrno(), ENOENT);
        EXPECT_THAT(file.status().message(), HasSubstr("/missing\": No such file"));
        EXPECT_FALSE(std::filesystem::exists(folder_ / "missing"));
    }
}

TEST_F(FileTest, DescriptorClosesAtDeregister) {
    const size_t before = openDescriptors();
    {
        const auto file = open("rw,create:" + (folder_ / "f"));
        ASSERT_TRUE(file.ok());
        EXPECT_EQ(openDescriptors(), before + 1);
    }
    EXPECT_EQ(openDescriptors(), before);
}

TEST_F(FileTest, CacheKeepsItsLimit) {
    const size_t before = openDescriptors();
    std::vector<std::unique_ptr<File>> files;
    for (int i = 0; i < 100; ++i) {
        auto file = open("rw,create:" + (folder_ / std::to_string(i)));
        ASSERT_TRUE(file.ok()) << file.status().message();
        files.push_back(std::move(file).value());
    }
    EXPECT_EQ(openDescriptors(), before + 4);
    // The least recently used one went; pinned ones stay, however many they are.
    std::vector<int> pinned;
    for (const auto& file : files) {
        pinned.push_back(file->acquire(false));
        ASSERT_GE(pinned.back(), 0);
    }
    EXPECT_EQ(openDescriptors(), before + 100);
    for (const auto& file : files) {
        file->release(false);
    }
    EXPECT_EQ(cache_->openCount(), 4U);
    EXPECT_EQ(openDescriptors(), before + 4);
}

TEST_F(FileTest, UsesRecentDescriptorsAgain) {
    auto file = open("rw,create:" + (folder_ / "f"));
    ASSERT_TRUE(file.ok());
    const int first = file.value()->acquire(false);
    file.value()->release(false);
    EXPECT_EQ(file.value()->acquire(false), first);
    EXPECT_EQ(fcntl(first, F_GETFD), FD_CLOEXEC);
    file.value()->release(false);
}

TEST_F(FileTest, NotAFile) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    const auto pipe_file = open("", static_cast<uint64_t>(ends[0]));
    ASSERT_FALSE(pipe_file.ok());
    EXPECT_THAT(pipe_file.status().message(), HasSubstr("it is a pipe"));
    close(ends[0]);
    close(ends[1]);
    const auto closed = open("just a label", static_cast<uint64_t>(ends[0]));
    ASSERT_FALSE(closed.ok());
    EXPECT_THAT(closed.status().message(), HasSubstr("Bad file descriptor"));
    EXPECT_THAT(closed.status().message(), HasSubstr("no \"rw:/path\""));
    const auto huge = open("", 1ULL << 40);
    ASSERT_FALSE(huge.ok());
    EXPECT_THAT(huge.status().message(), HasSubstr("1099511627776: no file descriptor"));
    ASSERT_EQ(mkfifo((folder_ / "fifo").c_str(), 0600), 0);
    const auto fifo = open("ro:" + (folder_ / "fifo"));  // must not wait for a writer
    ASSERT_FALSE(fifo.ok());
    EXPECT_THAT(fifo.status().message(), HasSubstr("it is a pipe"));
    const auto folder = open("ro:/tmp");
    ASSERT_FALSE(folder.ok());
    EXPECT_THAT(folder.status().message(), HasSubstr("it is a directory"));
}

TEST_F(FileTest, FileSystemWithoutDirectIo) {
    // procfs refuses O_DIRECT at open.
    const auto file = open("ro,direct:/proc/self/status");
    ASSERT_TRUE(file.ok()) << file.status().message();
    EXPECT_FALSE(file.value()->direct(1));
    EXPECT_THAT(log_, HasSubstr("/proc/self/status: its file system refuses O_DIRECT"));
}

TEST_F(FileTest, TwinIsTheSameFileWithoutDirectIo) {
    auto file = open("rw,create,direct:" + (folder_ / "f"));
    ASSERT_TRUE(file.ok());
    if (!file.value()->direct(1)) {
        GTEST_SKIP() << "no O_DIRECT in " << (folder_ / "f");
    }
    const int main = file.value()->acquire(false);
    const int twin = file.value()->acquire(true);
    EXPECT_NE(fcntl(main, F_GETFL) & O_DIRECT, 0);
    EXPECT_EQ(fcntl(twin, F_GETFL) & O_DIRECT, 0);
    struct stat a {};
    struct stat b {};
    fstat(main, &a);
    fstat(twin, &b);
    EXPECT_EQ(a.st_ino, b.st_ino);
    file.value()->release(false);
    file.value()->release(true);
}

TEST_F(FileTest, Query) {
    std::ofstream(folder_ / "f") << "12345";
    for (const std::string prefix : {"", "ro:", "rw,create:"}) {
        const auto found = queryFile({MemType::FILE, 0, 0, 0, prefix + (folder_ / "f")});
        ASSERT_TRUE(found.ok() && found.value()) << prefix;
        EXPECT_EQ(found.value()->at("size"), "5");
        EXPECT_EQ(found.value()->at("type"), "file");
        EXPECT_GT(std::stod(found.value()->at("mtime")), 1e9);
        const auto missing = queryFile({MemType::FILE, 0, 0, 0, prefix + (folder_ / "g")});
        ASSERT_TRUE(missing.ok()) << prefix;
        EXPECT_FALSE(missing.value());
    }
    const int fd = ::open((folder_ / "f").c_str(), O_RDONLY | O_CLOEXEC);
    const auto by_fd = queryFile({MemType::FILE, 0, 0, static_cast<uint64_t>(fd), ""});
    close(fd);
    ASSERT_TRUE(by_fd.ok() && by_fd.value());
    EXPECT_EQ(by_fd.value()->at("size"), "5");
    const auto bad = queryFile({MemType::FILE, 0, 0, 0, "rw,nonsense:/x"});
    EXPECT_FALSE(bad.ok());
}

}  // namespace
}  // namespace nixl::posix
