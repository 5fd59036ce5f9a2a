// See credentials.h.
#include "credentials.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <ctime>
#include <fstream>

#include <openssl/crypto.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "crypto.h"

namespace nixl::obj {

namespace {

constexpr int64_t kRenewAhead = 300;  // seconds before keys end
constexpr int64_t kRenewPause = 10;   // between two tries

std::shared_ptr<const GuardedText> guard(std::string_view text) {
    return text.empty() ? nullptr : std::make_shared<const GuardedText>(text);
}

int64_t now() {
    return static_cast<int64_t>(std::time(nullptr));
}

}  // namespace

GuardedText::GuardedText(std::string_view text) : size_(text.size()) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (text.size() + page) / page * page;
    void* const data =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        mapped_ = 0;
        data_ = new char[size_ + 1];
    } else {
        madvise(data, mapped_, MADV_DONTDUMP);
        data_ = static_cast<char*>(data);
    }
    std::memcpy(data_, text.data(), size_);
}

GuardedText::~GuardedText() {
    OPENSSL_cleanse(data_, size_);
    if (mapped_ != 0) {
        munmap(data_, mapped_);
    } else {
        delete[] data_;
    }
}

namespace {

CredentialsPtr make(const std::string& access,
                    std::string_view secret,
                    std::string_view token,
                    std::string origin) {
    auto keys = std::make_shared<Credentials>();
    keys->accessKey = access;
    keys->secretKey = guard(secret);
    keys->sessionToken = guard(token);
    keys->origin = std::move(origin);
    return keys;
}

Status halfGiven(const std::string& where) {
    return Status::invalidParam("OBJ: " + where +
                                ": an access key and a secret key belong together; one is missing");
}

// Both, neither, or an error.
Result<CredentialsPtr> pair(const std::string& access,
                            std::string secret,
                            const std::string& token,
                            const std::string& where) {
    if (access.empty() != secret.empty()) {
        wipe(secret);
        return halfGiven(where);
    }
    CredentialsPtr keys = access.empty() ? nullptr : make(access, secret, token, where);
    wipe(secret);
    return keys;
}

Provider fromParameters(const Parameters& parameters) {
    std::string secret = textSetting(parameters, "secret_key");
    if (secret.empty()) {
        secret = textSetting(parameters, "secrete_key");
    }
    auto made = pair(textSetting(parameters, "access_key"), std::move(secret),
                     textSetting(parameters, "session_token"), "parameters");
    return [made] { return made; };
}

Result<CredentialsPtr> fromVariables() {
    return pair(fromEnvironment({"AWS_ACCESS_KEY_ID"}), fromEnvironment({"AWS_SECRET_ACCESS_KEY"}),
                fromEnvironment({"AWS_SESSION_TOKEN"}), "the environment (AWS_ACCESS_KEY_ID)");
}

Result<CredentialsPtr> fromFiles(const Profile& profile) {
    for (const auto& [values, path] : {std::pair(profile.credentials(), profile.credentialsPath),
                                       std::pair(profile.config(), profile.configPath)}) {
        const auto value = [&values = values](const char* key) {
            const auto found = values.find(key);
            return found != values.end() ? found->second : std::string();
        };
        auto keys = pair(value("aws_access_key_id"), value("aws_secret_access_key"),
                         value("aws_session_token"), "profile " + profile.name + " of " + path);
        if (!keys.ok() || keys.value() != nullptr) {
            return keys;
        }
    }
    return CredentialsPtr();
}

std::string readFile(const std::string& path) {
    std::ifstream file(path);
    std::string text;
    std::getline(file, text);
    return text;
}

// Over plain HTTP only addresses that never leave the machine or its rack.
bool mayAskPlainly(const std::string& url) {
    for (const char* const host :
         {"http://127.", "http://localhost", "http://[::1]", "http://169.254.170.2/",
          "http://169.254.170.2:", "http://169.254.170.23", "http://[fd00:ec2::23]"}) {
        if (url.starts_with(host)) {
            return true;
        }
    }
    return url.starts_with("https://");
}

Result<CredentialsPtr> fromContainer(const HttpOptions& http) {
    std::string url = fromEnvironment({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"});
    if (!url.empty()) {
        url = "http://169.254.170.2" + url;
    } else {
        url = fromEnvironment({"AWS_CONTAINER_CREDENTIALS_FULL_URI"});
    }
    if (url.empty()) {
        return CredentialsPtr();
    }
    const std::string where = "the container's endpoint " + url;
    if (!mayAskPlainly(url)) {
        return Status::invalidParam("OBJ: " + where +
                                    ": only https, or an address of this machine, is asked");
    }
    HttpRequest request{.method = "GET", .url = url, .headers = {}};
    std::string token = fromEnvironment({"AWS_CONTAINER_AUTHORIZATION_TOKEN"});
    const std::string file = fromEnvironment({"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"});
    if (!file.empty()) {
        token = readFile(file);
    }
    if (!token.empty()) {
        request.headers.push_back("Authorization: " + token);
    }
    const HttpAnswer answer = performNow(std::move(request), http);
    if (answer.curlCode != 0 || answer.status != 200) {
        return Status::backend(
            "OBJ: " + where + ": " +
            (answer.curlCode != 0 ? answer.transport : "HTTP " + std::to_string(answer.status)));
    }
    return parseCredentials(answer.body, where);
}

Result<CredentialsPtr> fromInstance(const HttpOptions& http) {
    if (fromEnvironment({"AWS_EC2_METADATA_DISABLED"}) == "true") {
        return CredentialsPtr();
    }
    std::string base = fromEnvironment({"AWS_EC2_METADATA_SERVICE_ENDPOINT"});
    const bool asked = !base.empty();
    if (!asked) {
        base = "http://169.254.169.254";
    }
    while (base.ends_with('/')) {
        base.pop_back();
    }
    HttpRequest first{.method = "PUT",
                      .url = base + "/latest/api/token",
                      .headers = {"X-aws-ec2-metadata-token-ttl-seconds: 21600"}};
    first.hasBody = true;
    const HttpAnswer token = performNow(std::move(first), http);
    const std::string where = "the instance's endpoint " + base;
    if (token.curlCode != 0) {
        return asked ? Result<CredentialsPtr>(
                           Status::backend("OBJ: " + where + ": " + token.transport))
                     : CredentialsPtr();  // this is no instance of AWS
    }
    std::vector<std::string> headers;
    if (token.status == 200) {
        headers.push_back("X-aws-ec2-metadata-token: " + token.body);
    }
    const std::string path = base + "/latest/meta-data/iam/security-credentials/";
    const HttpAnswer role = performNow({.method = "GET", .url = path, .headers = headers}, http);
    if (role.curlCode != 0 || role.status != 200 || role.body.empty()) {
        return CredentialsPtr();  // an instance without a role
    }
    const std::string name = role.body.substr(0, role.body.find_first_of("\r\n"));
    const HttpAnswer keys = performNow(
        {.method = "GET", .url = path + uriEncode(name, false), .headers = headers}, http);
    if (keys.curlCode != 0 || keys.status != 200) {
        return Status::backend(
            "OBJ: " + where + ": role " + name + ": " +
            (keys.curlCode != 0 ? keys.transport : "HTTP " + std::to_string(keys.status)));
    }
    return parseCredentials(keys.body, where);
}

}  // namespace

std::vector<Provider> providerChain(const Parameters& parameters,
                                    const Profile& profile,
                                    const HttpOptions& http) {
    HttpOptions quick = http;  // these answer at once or not at all
    quick.connectTimeout = std::min(http.connectTimeout, 1.0);
    quick.idleTimeout = std::min(http.idleTimeout, 5.0);
    quick.maxBody = 1 << 20;
    quick.proxies = false;
    quick.caBundle.clear();
    return {fromParameters(parameters), fromVariables, [profile] { return fromFiles(profile); },
            [quick] { return fromContainer(quick); }, [quick] { return fromInstance(quick); }};
}

CredentialSource::CredentialSource(std::vector<Provider> chain, Log log)
    : chain_(std::move(chain)), log_(std::move(log)) {}

CredentialSource::~CredentialSource() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) {
        thread_.join();
    }
}

void CredentialSource::abandon() {
    if (thread_.joinable()) {
        thread_.detach();
    }
}

Result<CredentialsPtr> CredentialSource::fetch() const {
    for (const Provider& provider : chain_) {
        auto keys = provider();
        if (!keys.ok() || keys.value() != nullptr) {
            return keys;
        }
    }
    return Status::notAllowed(
        "OBJ: no credentials: neither the parameters access_key and secret_key, nor "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, nor a profile in AWS's files, nor a "
        "container's or instance's endpoint gives any; anonymous=true asks without");
}

Status CredentialSource::open() {
    auto keys = fetch();
    if (!keys.ok()) {
        return keys.status();
    }
    const std::lock_guard lock(mutex_);
    keys_ = keys.value();
    if (keys_->expires != 0) {
        startRenewing();
    }
    return {};
}

Result<CredentialsPtr> CredentialSource::current() const {
    const std::lock_guard lock(mutex_);
    if (keys_->expires != 0 && keys_->expires <= now()) {
        return Status::notAllowed("OBJ: the temporary keys from " + keys_->origin +
                                  " have ended and could not be renewed" +
                                  (lastError_.empty() ? "" : ": " + lastError_));
    }
    return keys_;
}

void CredentialSource::refused(const CredentialsPtr& used) {
    const std::lock_guard lock(mutex_);
    if (used != keys_ || stop_) {
        return;  // there are newer ones already
    }
    renewNow_ = true;
    startRenewing();
    wake_.notify_all();
}

// REQUIRES: the lock
void CredentialSource::startRenewing() {
    if (started_) {
        return;
    }
    started_ = true;
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { renew(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_setname_np(thread_.native_handle(), "nixl-obj-keys");
}

void CredentialSource::renew() {
    std::unique_lock lock(mutex_);
    int64_t not_before = 0;
    while (!stop_) {
        const int64_t time = now();
        const bool due = renewNow_ || (keys_->expires != 0 && keys_->expires - kRenewAhead <= time);
        if (!due || time < not_before) {
            const int64_t until = due                   ? not_before
                                  : keys_->expires != 0 ? keys_->expires - kRenewAhead
                                                        : time + 3600;
            wake_.wait_for(lock, std::chrono::seconds(std::clamp<int64_t>(until - time, 1, 3600)));
            continue;
        }
        renewNow_ = false;
        lock.unlock();
        auto keys = fetch();
        lock.lock();
        not_before = now() + kRenewPause;
        lastError_ = keys.ok() ? std::string() : keys.status().message();
        if (keys.ok()) {
            keys_ = keys.value();
        } else if (!stop_) {
            log_(LogLevel::WARN, "renewing the keys: " + keys.status().message());
        }
    }
}

}  // namespace nixl::obj
