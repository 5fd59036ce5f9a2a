// Stands in for the header of the GUSLI client: the part of its published C++ interface that
// plugins/gusli/adapter uses, declared anew. What is private has another layout than the real
// one's, which is why adapters are compiled with the header that belongs to the library. See
// gusli_client.cpp.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

// NOLINTBEGIN(readability-identifier-naming): the names of the client
namespace gusli {

struct backend_bdev_id {
    char uuid[16];
    void set_from(const char* text) {
        memset(uuid, 0, sizeof(uuid));
        memcpy(uuid, text, strnlen(text, sizeof(uuid)));
    }
};

struct bdev_info {
    char name[32];
    int32_t bdev_descriptor;
    uint32_t block_size;
    uint64_t num_total_blocks;
    uint32_t num_max_inflight_io;
};

enum io_type { G_NOP = '0', G_READ = 'R', G_WRITE = 'W' };

enum io_error_codes {
    E_OK = 0,
    E_IN_TRANSFER = -1,
    E_CANCELED_BY_CALLER = -10,
    E_INTERNAL_FAULT = -11,
    E_THROTTLE_RETRY_LATER = -12,
    E_PERM_FAIL_NO_RETRY = -13,
    E_INVAL_PARAMS = -14,
    E_BACKEND_FAULT = -15,
};

enum connect_rv {
    C_OK = 0,
    C_NO_DEVICE = -100,
    C_NO_RESPONSE = -99,
    C_REMAINS_OPEN = -98,
    C_WRONG_ARGUMENTS = -97,
};

struct io_buffer_t {
    void* ptr;
    uint64_t byte_len;
};

class io_request {
  public:
    struct params_t {
        void init_1_rng(io_type wanted, int device, uint64_t at, uint64_t length, void* memory) {
            op = wanted;
            descriptor = device;
            offset = at;
            range = {memory, length};
        }
        template <typename Context, typename Function>
        void set_completion(Context given, Function call) {
            context = static_cast<void*>(given);
            completion = call;
        }

        io_type op = G_NOP;
        int32_t descriptor = -1;
        uint64_t offset = 0;
        io_buffer_t range{};
        void (*completion)(void*) = nullptr;
        void* context = nullptr;
    } params;

    void submit_io() noexcept;
    io_error_codes get_error() noexcept;
    void done() noexcept;

  private:
    friend struct StandinServers;
    int64_t result_ = 0;
    bool submitted_ = false;
};

class clnt_init_exception : public std::exception {
  public:
    explicit clnt_init_exception(int code) : code_(code) {}
    int code() const { return code_; }

  private:
    int code_;
};

class global_clnt_context {
  public:
    struct init_params {
        FILE* log = stdout;
        const char* config_file = nullptr;
        const char* client_name = nullptr;
        unsigned max_num_simultaneous_requests = 256;
    };
    explicit global_clnt_context(const init_params& wanted);
    ~global_clnt_context() noexcept;
    global_clnt_context(const global_clnt_context&) = delete;
    global_clnt_context& operator=(const global_clnt_context&) = delete;

    const char* get_metadata_json() const noexcept;
    connect_rv bdev_connect(const backend_bdev_id& id) const noexcept;
    connect_rv bdev_get_info(const backend_bdev_id& id, bdev_info& info) const noexcept;
    connect_rv bdev_bufs_register(const backend_bdev_id& id,
                                  const std::vector<io_buffer_t>& ranges) const noexcept;
    connect_rv bdev_bufs_unregist(const backend_bdev_id& id,
                                  const std::vector<io_buffer_t>& ranges) const noexcept;
    connect_rv bdev_disconnect(const backend_bdev_id& id) const noexcept;
};

}  // namespace gusli
// NOLINTEND(readability-identifier-naming)
