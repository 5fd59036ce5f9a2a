// See s3.h.
#include "s3.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>
#include <random>

#include <curl/curl.h>

#include "crypto.h"
#include "xml.h"

namespace nixl::obj {

namespace {

constexpr const char* kEmptyHash =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr size_t kMaxText = 500;  // of a store's own words in a message

// Text of a store's for one line of a message.
std::string printable(std::string_view text) {
    std::string out;
    for (const char letter : text.substr(0, kMaxText)) {
        out += static_cast<unsigned char>(letter) < 0x20 ? ' ' : letter;
    }
    return out;
}

bool oneOf(std::string_view word, std::initializer_list<std::string_view> words) {
    return std::find(words.begin(), words.end(), word) != words.end();
}

bool mentions(std::string_view text, std::string_view word) {
    const auto same = [](char a, char b) { return (a | 0x20) == (b | 0x20); };
    return std::search(text.begin(), text.end(), word.begin(), word.end(), same) != text.end();
}

// What the store says of an error, where it says it in S3's way.
S3Error errorOf(const HttpAnswer& answer) {
    S3Error error = parseError(answer.body).value_or(S3Error());
    if (error.requestId.empty()) {
        error.requestId = answer.header("x-amz-request-id");
    }
    return error;
}

double randomPart() {
    thread_local std::minstd_rand engine{std::random_device{}()};
    return std::uniform_real_distribution<double>(0.5, 1.0)(engine);
}

std::optional<double> retryAfter(const HttpAnswer& answer) {
    const std::string text(answer.header("retry-after"));
    uint64_t seconds = 0;
    if (parseDecimal(text, seconds)) {
        return static_cast<double>(seconds);
    }
    if (const time_t when = text.empty() ? -1 : curl_getdate(text.c_str(), nullptr); when >= 0) {
        return std::max<double>(0, static_cast<double>(when - std::time(nullptr)));
    }
    return std::nullopt;
}

}  // namespace

int64_t unixTime() {
    return static_cast<int64_t>(std::time(nullptr));
}

void KeyTurns::enter(const std::string& key, std::function<void()> go) {
    {
        const std::lock_guard lock(mutex_);
        const auto [place, first] = waiting_.try_emplace(key);
        if (!first) {
            place->second.push_back(std::move(go));
            return;
        }
    }
    go();
}

void KeyTurns::leave(const std::string& key) {
    std::function<void()> go;
    {
        const std::lock_guard lock(mutex_);
        const auto place = waiting_.find(key);
        if (place->second.empty()) {
            waiting_.erase(place);
            return;
        }
        go = std::move(place->second.front());
        place->second.pop_front();
    }
    go();
}

std::string Store::name(std::string_view key) const {
    std::string text = "\"" + settings.bucket;
    if (!key.empty()) {
        text += "/" + printable(key);
    }
    return text + "\"";
}

int errnoOf(const HttpAnswer& answer) {
    if (answer.curlCode != 0) {
        return answer.systemErrno != 0 ? answer.systemErrno : EIO;
    }
    switch (answer.status) {
        case 404:
            return ENOENT;
        case 401:
        case 403:
            return EACCES;
        case 412:
            return ESTALE;
        case 416:
            return 0;
        case 507:
            return ENOSPC;
        default:
            return EIO;
    }
}

bool S3Task::prepare(HttpRequest& request) {
    S3Request asked;
    if (Status status = fill(asked); !status.ok()) {
        ended(std::move(status));
        return false;
    }
    used_ = nullptr;
    if (store_.credentials != nullptr) {
        auto keys = store_.credentials->current();
        if (!keys.ok()) {
            ended(failure(keys.status().message().substr(5), EACCES));
            return false;
        }
        used_ = keys.value();
    }
    ++tries_;
    withChecksum_ = std::any_of(asked.headers.begin(), asked.headers.end(), [](const auto& one) {
        return one.first.starts_with("x-amz-checksum-") && one.first != "x-amz-checksum-mode";
    });
    sign(asked, request);
    return true;
}

void S3Task::sign(const S3Request& asked, HttpRequest& request) {
    const Settings& settings = store_.settings;
    const Endpoint& endpoint = settings.endpoint;
    const std::string host =
        endpoint.virtualHost ? settings.bucket + "." + endpoint.host : endpoint.host;
    SignRequest signing;
    signing.method = asked.method;
    signing.path = endpoint.prefix;
    if (!endpoint.virtualHost) {
        signing.path += "/" + uriEncode(settings.bucket, false);
    }
    if (!asked.key.empty() || endpoint.virtualHost) {
        signing.path += "/" + uriEncode(asked.key, true);
    }
    std::string query;
    for (const auto& [name, value] : asked.query) {
        signing.query.emplace_back(uriEncode(name, false), uriEncode(value, false));
        query += (query.empty() ? "?" : "&") + signing.query.back().first + "=" +
                 signing.query.back().second;
    }
    request.method = asked.method;
    request.url = endpoint.scheme + "://" + host + signing.path + query;
    request.hasBody = asked.hasBody;
    request.bodySize = asked.bodySize;
    request.source = asked.source;
    request.sink = asked.sink;
    for (const auto& [name, value] : asked.headers) {
        request.headers.push_back(name + ": " + value);
    }
    if (used_ == nullptr) {
        return;
    }
    signing.region = settings.region;
    signing.time = signingTime(unixTime() + store_.clockShift.load());
    signing.payloadHash = !asked.payloadHash.empty() ? asked.payloadHash
                          : asked.bodySize == 0      ? kEmptyHash
                                                     : "UNSIGNED-PAYLOAD";
    signing.headers = {{"host", host},
                       {"x-amz-content-sha256", signing.payloadHash},
                       {"x-amz-date", signing.time}};
    if (used_->sessionToken != nullptr) {
        signing.headers.emplace_back("x-amz-security-token", used_->sessionToken->view());
    }
    for (size_t i = 1; i < signing.headers.size(); ++i) {
        request.headers.push_back(signing.headers[i].first + ": " + signing.headers[i].second);
    }
    for (const auto& header : asked.headers) {
        if (header.first.starts_with("x-amz-")) {
            signing.headers.push_back(header);
        }
    }
    request.headers.push_back(
        "Authorization: " +
        obj::sign(signing, used_->accessKey, used_->secretKey->view()).authorization);
}

std::optional<std::chrono::milliseconds> S3Task::finished(HttpAnswer& answer) {
    Verdict verdict = judge(answer);
    const bool last = tries_ >= store_.settings.attempts;
    if (verdict.kind == Verdict::AGAIN && !last && !canceled()) {
        store_.services.count("retries", 1);
        const auto wait = delay(answer);
        if (store_.services.logs(LogLevel::DEBUG)) {
            store_.log(LogLevel::DEBUG, verdict.status.message() + "; again in " +
                                            std::to_string(wait.count()) + " ms");
        }
        return wait;
    }
    if (verdict.kind == Verdict::NEXT) {
        tries_ = 0;
        return std::chrono::milliseconds(0);
    }
    if (verdict.kind == Verdict::DONE) {
        ended({});
    } else if (verdict.kind == Verdict::AGAIN && tries_ > 1) {
        ended(Status(verdict.status.code(),
                     verdict.status.message() + " (tried " + std::to_string(tries_) + " times)",
                     verdict.status.systemErrno()));
    } else {
        ended(std::move(verdict.status));
    }
    return std::nullopt;
}

void S3Task::dropped() {
    ended(Status::canceled("OBJ: " + what() + ": canceled"));
}

Verdict S3Task::judge(HttpAnswer& answer) {
    const bool stopped =
        answer.curlCode == CURLE_WRITE_ERROR || answer.curlCode == CURLE_ABORTED_BY_CALLBACK;
    if (stopped && cutShort()) {
        return accept(answer);
    }
    if (answer.curlCode != 0) {
        return judgeTransport(answer);
    }
    if ((answer.status >= 200 && answer.status < 300) || judges(answer.status)) {
        return accept(answer);
    }
    return judgeError(answer);
}

Verdict S3Task::judgeTransport(const HttpAnswer& answer) const {
    Verdict verdict{Verdict::FAILED, failure(answer)};
    switch (answer.curlCode) {
        case CURLE_COULDNT_RESOLVE_PROXY:
        case CURLE_COULDNT_RESOLVE_HOST:
        case CURLE_COULDNT_CONNECT:
        case CURLE_SSL_CONNECT_ERROR:
            verdict.kind = Verdict::AGAIN;
            break;
        case CURLE_UNSUPPORTED_PROTOCOL:  // also an answer that is no HTTP
        case CURLE_WEIRD_SERVER_REPLY:
        case CURLE_PARTIAL_FILE:
        case CURLE_OPERATION_TIMEDOUT:
        case CURLE_GOT_NOTHING:
        case CURLE_SEND_ERROR:
        case CURLE_RECV_ERROR:
        case CURLE_SEND_FAIL_REWIND:
        case CURLE_CHUNK_FAILED:
            verdict.kind = repeatable() || !answer.connected ? Verdict::AGAIN : Verdict::FAILED;
            break;
        default:
            break;  // a certificate, a URL: the next try would end the same
    }
    return verdict;
}

Verdict S3Task::judgeError(const HttpAnswer& answer) {
    const S3Error error = errorOf(answer);
    Verdict verdict{Verdict::FAILED, failure(answer)};
    if (oneOf(error.code, {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired",
                           "RequestExpired"}) &&
        used_ != nullptr) {
        store_.credentials->refused(used_);
        verdict.kind = Verdict::AGAIN;
    } else if (error.code == "RequestTimeTooSkewed" && !clockTried_) {
        clockTried_ = true;
        const std::string date(answer.header("date"));
        const time_t theirs = date.empty() ? -1 : curl_getdate(date.c_str(), nullptr);
        if (theirs >= 0) {
            store_.clockShift = static_cast<int64_t>(theirs) - unixTime();
            verdict.kind = Verdict::AGAIN;
        }
    } else if (withChecksum_ && !store_.settings.checksumRequired &&
               !oneOf(error.code, {"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch"}) &&
               (answer.status == 501 ||
                (answer.status == 400 && mentions(answer.body, "checksum")))) {
        if (!store_.checksumsRefused.exchange(true)) {
            store_.log(LogLevel::INFO, "the store takes no checksums (" + error.code +
                                           "); going without, as req_checksum=supported allows");
        }
        verdict.kind = Verdict::AGAIN;
    } else if (oneOf(error.code, {"RequestTimeout", "RequestTimeoutException", "SlowDown",
                                  "InternalError", "ServiceUnavailable", "OperationAborted",
                                  "BadDigest", "XAmzContentChecksumMismatch"})) {
        verdict.kind = Verdict::AGAIN;  // of a digest: what came there is not what was sent
    } else {
        switch (answer.status) {
            case 408:
            case 429:
            case 500:
            case 502:
            case 503:
            case 504:
                verdict.kind = Verdict::AGAIN;
                break;
            default:
                break;
        }
    }
    return verdict;
}

std::chrono::milliseconds S3Task::delay(const HttpAnswer& answer) const {
    const Settings& settings = store_.settings;
    const double doubled = settings.retryDelay * std::pow(2.0, std::min(tries_ - 1, 30U));
    double seconds = std::min(doubled, settings.retryMaxDelay) * randomPart();
    if (const auto wished = retryAfter(answer)) {
        seconds = std::max(seconds, std::min(*wished, settings.retryMaxDelay));
    }
    return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

Status S3Task::failure(const std::string& cause, int system_errno) const {
    return Status::backend("OBJ: " + what() + ": " + cause, system_errno);
}

Status S3Task::failure(const HttpAnswer& answer) const {
    const std::string place = store_.settings.endpoint.text();
    if (answer.curlCode != 0) {
        return {ErrorCode::BACKEND,
                "OBJ: " + what() + ": " + printable(answer.transport) + " (endpoint " + place + ")",
                errnoOf(answer)};
    }
    const S3Error error = errorOf(answer);
    std::string text = "OBJ: " + what() + ": HTTP " + std::to_string(answer.status);
    if (!error.code.empty()) {
        text += " " + printable(error.code);
    }
    if (!error.message.empty()) {
        text += ": " + printable(error.message);
    }
    const std::string region =
        !error.region.empty() ? error.region : std::string(answer.header("x-amz-bucket-region"));
    if (!region.empty() && region != store_.settings.region) {
        text +=
            "; the bucket is in region " + printable(region) + ", not in " + store_.settings.region;
    }
    text += " (endpoint " + place +
            (error.requestId.empty() ? "" : ", request id " + printable(error.requestId)) + ")";
    const ErrorCode code = answer.status == 404                           ? ErrorCode::NOT_FOUND
                           : answer.status == 401 || answer.status == 403 ? ErrorCode::NOT_ALLOWED
                                                                          : ErrorCode::BACKEND;
    return {code, std::move(text), errnoOf(answer)};
}

}  // namespace nixl::obj
