// Keys to sign with, and where they come from: parameters, environment, files, the endpoint of a
// container, that of an instance. Temporary ones are fetched anew before they end.
//
// Threads: thread-safe; a thread of its own, only where keys end.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "nixl/error.h"
#include "nixl/plugin.h"

#include "http.h"
#include "settings.h"

namespace nixl::obj {

// A secret in pages of its own, which core dumps leave out and which are cleared at the end.
class GuardedText {
  public:
    explicit GuardedText(std::string_view text);
    ~GuardedText();
    GuardedText(const GuardedText&) = delete;
    GuardedText& operator=(const GuardedText&) = delete;
    std::string_view view() const { return {data_, size_}; }

  private:
    char* data_ = nullptr;
    size_t size_ = 0;
    size_t mapped_ = 0;
};

struct Credentials {
    std::string accessKey;
    std::shared_ptr<const GuardedText> secretKey;
    std::shared_ptr<const GuardedText> sessionToken;  // null where there is none
    int64_t expires = 0;                              // seconds since 1970; 0: never
    std::string origin;                               // for people
};
using CredentialsPtr = std::shared_ptr<const Credentials>;

// Where keys may come from: nothing where this place has none, an error where it should have some.
using Provider = std::function<Result<CredentialsPtr>()>;

// The places in order.
std::vector<Provider> providerChain(const Parameters& parameters,
                                    const Profile& profile,
                                    const HttpOptions& http);
// Keys from the JSON of a container's or an instance's endpoint.
Result<CredentialsPtr> parseCredentials(std::string_view json, const std::string& origin);

class CredentialSource {
  public:
    using Log = std::function<void(LogLevel, const std::string&)>;
    CredentialSource(std::vector<Provider> chain, Log log);
    ~CredentialSource();
    CredentialSource(const CredentialSource&) = delete;
    CredentialSource& operator=(const CredentialSource&) = delete;

    // Fetches the first keys; asks the places in order.
    Status open();
    // Never waits. An error where they have ended and could not be renewed.
    Result<CredentialsPtr> current() const;
    // The store says that these have ended: look for newer ones, soon.
    void refused(const CredentialsPtr& used);
    void abandon();  // in a forked child

  private:
    Result<CredentialsPtr> fetch() const;
    void startRenewing();
    void renew();

    const std::vector<Provider> chain_;
    const Log log_;
    std::thread thread_;
    mutable std::mutex mutex_;  // guards what follows
    std::condition_variable wake_;
    CredentialsPtr keys_;
    std::string lastError_;
    bool stop_ = false;
    bool renewNow_ = false;
    bool started_ = false;
};

}  // namespace nixl::obj
