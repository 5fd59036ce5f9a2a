// Stands in for the GUSLI client (libgusli_clnt.so) and its servers in tests: the interface of
// standins/gusli/gusli_client_api.hpp. The path of a device names a plain file, which is what its
// server serves; a path that is not there is a server that does not answer. As with the real one
// a process has one client, its list must have six words a line and fit into 1023 bytes, shared
// memory gets other pages, and I/O has to lie in it, in whole pages and blocks.
//
// NIXL_GUSLI_STANDIN, read when the client starts, is a list such as "block=8192,fail_every=7":
//   block=N        bytes of a block (4096)
//   threads=N      that serve (3); requests end in any order
//   most=N         requests in flight, more are put off (what the client was started with)
//   fail_every=N   every N-th request fails in the server
//   fail_at=N      requests that hold byte N of their device fail in the server
//   refuse_share=1 no memory can be shared
//   hold=PATH      requests wait while this file is there
//
// Thread-safe beyond what the real one promises.
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gusli/gusli_client_api.hpp"

namespace gusli {

namespace {

constexpr uint64_t kPage = 4096;

struct Range {
    char* begin;
    uint64_t bytes;
    unsigned devices;  // that share it
};

struct Server {
    std::string path;
    bool writable = false;
    int fd = -1;
    int32_t descriptor = -1;
    uint64_t bytes = 0;
    unsigned shared = 0;  // ranges
    unsigned inFlight = 0;
};

uint64_t option(const std::string& name, uint64_t fallback) {
    const char* const text = std::getenv("NIXL_GUSLI_STANDIN");
    std::istringstream words(text != nullptr ? text : "");
    for (std::string word; std::getline(words, word, ',');) {
        if (word.starts_with(name + "=")) {
            return std::strtoull(word.c_str() + name.size() + 1, nullptr, 10);
        }
    }
    return fallback;
}

std::string optionText(const std::string& name) {
    const char* const text = std::getenv("NIXL_GUSLI_STANDIN");
    std::istringstream words(text != nullptr ? text : "");
    for (std::string word; std::getline(words, word, ',');) {
        if (word.starts_with(name + "=")) {
            return word.substr(name.size() + 1);
        }
    }
    return {};
}

std::string nameOf(const backend_bdev_id& id) {
    return {id.uuid, strnlen(id.uuid, sizeof(id.uuid))};
}

}  // namespace

// All that the client and its servers are; one of a process.
struct StandinServers {
    StandinServers(const global_clnt_context::init_params& wanted, int& code)
        : block(option("block", 4096)),
          most(option("most", wanted.max_num_simultaneous_requests)),
          failEvery(option("fail_every", 0)),
          failAt(option("fail_at", UINT64_MAX)),
          hold(optionText("hold")) {
        code = parse(wanted.config_file);
        if (code != 0) {
            return;
        }
        for (uint64_t i = 0; i < option("threads", 3); ++i) {
            threads.emplace_back([this] { serve(); });
        }
    }
    ~StandinServers() {
        {
            const std::lock_guard lock(mutex);
            ending = true;
            changed.notify_all();
        }
        for (std::thread& thread : threads) {
            thread.join();
        }
    }
    StandinServers(const StandinServers&) = delete;
    StandinServers& operator=(const StandinServers&) = delete;

    // The real one counts lines of its source below 0; the values say nothing.
    int parse(const char* config) {
        const std::string text = config != nullptr ? config : "";
        if (!text.starts_with("# version=1") || text.size() > 1023) {
            return -1;
        }
        std::istringstream lines(text);
        for (std::string line; std::getline(lines, line);) {
            std::istringstream words(line);
            std::string id, kind, access, direct, path, cookie, more;
            words >> id >> kind >> access >> direct >> path >> cookie;
            if (line.starts_with('#')) {
                continue;
            }
            if (cookie.empty() || (words >> more) || id.size() > 16 || path.size() > 64 ||
                cookie.size() > 15) {
                return -2;
            }
            servers[id].path = path;
            servers[id].writable = access != "R";
        }
        return 0;
    }

    Server* find(const backend_bdev_id& id) {
        const auto found = servers.find(nameOf(id));
        return found == servers.end() ? nullptr : &found->second;
    }

    Range* containing(const io_buffer_t& part) {
        for (Range& range : ranges) {
            const auto* const begin = static_cast<const char*>(part.ptr);
            if (begin >= range.begin && begin + part.byte_len <= range.begin + range.bytes) {
                return &range;
            }
        }
        return nullptr;
    }

    // Why a request cannot be sent; E_OK where it can.
    io_error_codes check(const io_request& request, const Server* server) {
        const auto& wanted = request.params;
        const uint64_t places = wanted.offset | wanted.range.byte_len;
        const auto address = reinterpret_cast<uint64_t>(wanted.range.ptr);
        if (server == nullptr || wanted.range.byte_len == 0 || places % block != 0 ||
            (address | wanted.range.byte_len) % kPage != 0 || address % block != 0 ||
            wanted.offset > server->bytes ||
            wanted.range.byte_len > server->bytes - wanted.offset ||
            containing(wanted.range) == nullptr) {
            return E_INVAL_PARAMS;
        }
        return server->inFlight >= most ? E_THROTTLE_RETRY_LATER : E_OK;
    }

    void serve() {
        std::unique_lock lock(mutex);
        for (;;) {
            changed.wait(lock, [this] { return ending || !queue.empty(); });
            if (queue.empty()) {
                return;
            }
            // From either end in turn, so that the order says nothing.
            const bool last = (++served & 1) != 0;
            io_request* const request = last ? queue.back() : queue.front();
            last ? queue.pop_back() : queue.pop_front();
            const uint64_t number = served;
            lock.unlock();
            while (!hold.empty() && access(hold.c_str(), F_OK) == 0) {
                usleep(1000);  // sleeps: the test takes the file away when it likes
            }
            const int64_t result = perform(*request, number);
            lock.lock();
            --find(request)->inFlight;
            void (*const told)(void*) = request->params.completion;
            void* const context = request->params.context;
            request->result_ = result;
            lock.unlock();
            told(context);  // after it the request may be gone
            lock.lock();
        }
    }

    Server* find(const io_request* request) {
        for (auto& [id, server] : servers) {
            if (server.descriptor == request->params.descriptor && server.fd >= 0) {
                return &server;
            }
        }
        return nullptr;
    }

    int64_t perform(const io_request& request, uint64_t number) {
        const auto& wanted = request.params;
        int fd = -1;
        {
            const std::lock_guard lock(mutex);
            fd = find(&request)->fd;
        }
        const bool hit = failAt >= wanted.offset && failAt - wanted.offset < wanted.range.byte_len;
        if (hit || (failEvery != 0 && number % failEvery == 0)) {
            return E_BACKEND_FAULT;
        }
        const auto at = static_cast<off_t>(wanted.offset);
        const ssize_t moved = wanted.op == G_WRITE
                                  ? pwrite(fd, wanted.range.ptr, wanted.range.byte_len, at)
                                  : pread(fd, wanted.range.ptr, wanted.range.byte_len, at);
        return moved == static_cast<ssize_t>(wanted.range.byte_len) ? moved
                                                                    : int64_t{E_BACKEND_FAULT};
    }

    const uint64_t block;
    const uint64_t most;
    const uint64_t failEvery;
    const uint64_t failAt;
    const std::string hold;
    std::vector<std::thread> threads;

    std::mutex mutex;  // guards what follows
    std::condition_variable changed;
    std::map<std::string, Server> servers;
    std::vector<Range> ranges;
    std::deque<io_request*> queue;
    uint64_t served = 0;
    int32_t descriptors = 100;
    bool ending = false;
};

namespace {
std::unique_ptr<StandinServers> g_servers;  // NOLINT(cert-err58-cpp): of a test library
}  // namespace

global_clnt_context::global_clnt_context(const init_params& wanted) {
    if (g_servers != nullptr) {
        throw clnt_init_exception(EEXIST);
    }
    int code = 0;
    g_servers = std::make_unique<StandinServers>(wanted, code);
    if (code != 0) {
        g_servers.reset();
        throw clnt_init_exception(code);
    }
    fprintf(wanted.log, "stand-in of the GUSLI client: %s\n", wanted.client_name);
}

global_clnt_context::~global_clnt_context() noexcept {
    for (const auto& [id, server] : g_servers->servers) {
        if (server.fd >= 0) {
            fprintf(stderr, "stand-in of the GUSLI client: device %s is still open\n", id.c_str());
            std::abort();
        }
    }
    g_servers.reset();
}

const char* global_clnt_context::get_metadata_json() const noexcept {
    return "{\"stand-in\":{\"breaking_api_version\" : 1}}";
}

connect_rv global_clnt_context::bdev_connect(const backend_bdev_id& id) const noexcept {
    const std::lock_guard lock(g_servers->mutex);
    Server* const server = g_servers->find(id);
    if (server == nullptr) {
        return C_NO_DEVICE;
    }
    if (server->fd >= 0) {
        return C_REMAINS_OPEN;
    }
    struct stat info {};
    server->fd = open(server->path.c_str(), (server->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (server->fd < 0 || fstat(server->fd, &info) < 0) {
        return C_NO_RESPONSE;
    }
    server->descriptor = g_servers->descriptors++;
    server->bytes = static_cast<uint64_t>(info.st_size) / g_servers->block * g_servers->block;
    return C_OK;
}

connect_rv global_clnt_context::bdev_get_info(const backend_bdev_id& id,
                                              bdev_info& info) const noexcept {
    const std::lock_guard lock(g_servers->mutex);
    const Server* const server = g_servers->find(id);
    if (server == nullptr || server->fd < 0) {
        return server == nullptr ? C_NO_DEVICE : C_NO_RESPONSE;
    }
    info = {};
    strncpy(info.name, "stand-in", sizeof(info.name) - 1);
    info.bdev_descriptor = server->descriptor;
    info.block_size = static_cast<uint32_t>(g_servers->block);
    info.num_total_blocks = server->bytes / g_servers->block;
    info.num_max_inflight_io = static_cast<uint32_t>(g_servers->most);
    return C_OK;
}

connect_rv global_clnt_context::bdev_bufs_register(
    const backend_bdev_id& id, const std::vector<io_buffer_t>& wanted) const noexcept {
    const std::lock_guard lock(g_servers->mutex);
    Server* const server = g_servers->find(id);
    if (server == nullptr || server->fd < 0) {
        return server == nullptr ? C_NO_DEVICE : C_NO_RESPONSE;
    }
    for (const io_buffer_t& range : wanted) {
        const auto address = reinterpret_cast<uint64_t>(range.ptr);
        if (range.byte_len == 0 || (address | range.byte_len) % kPage != 0 ||
            option("refuse_share", 0) != 0) {
            return C_WRONG_ARGUMENTS;
        }
        const auto same = [&range](const Range& known) {
            return known.begin == range.ptr && known.bytes == range.byte_len;
        };
        const auto known = std::find_if(g_servers->ranges.begin(), g_servers->ranges.end(), same);
        if (known != g_servers->ranges.end()) {
            ++known->devices;
        } else {
            const int fd = memfd_create("gusli-standin", MFD_CLOEXEC);
            void* const other = fd < 0 || ftruncate(fd, static_cast<off_t>(range.byte_len)) < 0
                                    ? MAP_FAILED
                                    : mmap(range.ptr, range.byte_len, PROT_READ | PROT_WRITE,
                                           MAP_SHARED | MAP_FIXED, fd, 0);
            close(fd);
            if (other == MAP_FAILED) {
                return C_WRONG_ARGUMENTS;
            }
            g_servers->ranges.push_back({static_cast<char*>(range.ptr), range.byte_len, 1});
        }
        ++server->shared;
    }
    return wanted.empty() ? C_WRONG_ARGUMENTS : C_OK;
}

connect_rv global_clnt_context::bdev_bufs_unregist(
    const backend_bdev_id& id, const std::vector<io_buffer_t>& wanted) const noexcept {
    const std::lock_guard lock(g_servers->mutex);
    Server* const server = g_servers->find(id);
    if (server == nullptr || server->fd < 0 || server->inFlight > 0) {
        return server == nullptr ? C_NO_DEVICE : C_WRONG_ARGUMENTS;
    }
    for (const io_buffer_t& range : wanted) {
        const auto same = [&range](const Range& known) {
            return known.begin == range.ptr && known.bytes == range.byte_len;
        };
        const auto known = std::find_if(g_servers->ranges.begin(), g_servers->ranges.end(), same);
        if (known == g_servers->ranges.end()) {
            return C_WRONG_ARGUMENTS;
        }
        if (--known->devices == 0) {
            g_servers->ranges.erase(known);
        }
        --server->shared;
    }
    return C_OK;
}

connect_rv global_clnt_context::bdev_disconnect(const backend_bdev_id& id) const noexcept {
    const std::lock_guard lock(g_servers->mutex);
    Server* const server = g_servers->find(id);
    if (server == nullptr || server->fd < 0) {
        return server == nullptr ? C_NO_DEVICE : C_NO_RESPONSE;
    }
    if (server->shared > 0 || server->inFlight > 0) {
        return C_REMAINS_OPEN;
    }
    close(server->fd);
    server->fd = -1;
    return C_OK;
}

// What cannot be sent ends inside the call, with its callback.
void io_request::submit_io() noexcept {
    if (submitted_) {
        fprintf(stderr, "stand-in of the GUSLI client: a request again before done()\n");
        std::abort();
    }
    submitted_ = true;
    result_ = E_IN_TRANSFER;
    {
        const std::lock_guard lock(g_servers->mutex);
        Server* const server = g_servers->find(this);
        const io_error_codes wrong = g_servers->check(*this, server);
        if (wrong == E_OK) {
            ++server->inFlight;
            g_servers->queue.push_back(this);
            g_servers->changed.notify_one();
            return;
        }
        result_ = wrong;
    }
    params.completion(params.context);
}

io_error_codes io_request::get_error() noexcept {
    const std::lock_guard lock(g_servers->mutex);
    return result_ > 0 ? E_OK : static_cast<io_error_codes>(result_);
}

void io_request::done() noexcept {
    submitted_ = false;
}

}  // namespace gusli
