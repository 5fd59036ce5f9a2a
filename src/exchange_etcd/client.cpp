// See client.h.
#include "exchange_etcd/client.h"

#include <algorithm>
#include <utility>

namespace nixl::exchange_etcd {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFirstPause{50};
constexpr milliseconds kLongestPause{1000};
constexpr milliseconds kShortestTry{1000};
constexpr const char* kAuthenticate = "/v3/auth/authenticate";

// Codes of gRPC that etcd answers with.
enum Code : uint8_t {
    UNKNOWN = 2,
    INVALID_ARGUMENT = 3,
    DEADLINE_EXCEEDED = 4,
    NOT_FOUND = 5,
    PERMISSION_DENIED = 7,
    RESOURCE_EXHAUSTED = 8,
    UNIMPLEMENTED = 12,
    UNAVAILABLE = 14,
    UNAUTHENTICATED = 16,
};

bool has(const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
}

std::string shortened(std::string text) {
    std::replace_if(
        text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c == 127; }, ' ');
    if (text.size() > 200) {
        text.resize(200);
        text += " ...";
    }
    return text;
}

}  // namespace

bool GatewayError::unavailable() const {
    return code == UNAVAILABLE || code == DEADLINE_EXCEEDED || has(text, "etcdserver: no leader") ||
           has(text, "leader changed") || has(text, "request timed out") ||
           has(text, "server stopped") || has(text, "too many requests");
}

bool GatewayError::wantsNewToken() const {
    return code == UNAUTHENTICATED || has(text, "invalid auth token") ||
           has(text, "user name is empty") ||
           has(text, "revision of the authenticate store is old") || has(text, "auth store is old");
}

bool GatewayError::refusesName() const {
    return has(text, "CommonName of client");
}

GatewayError Client::errorOf(const Json& answer) {
    // A stream wraps its error: {"error":{"grpc_code":…,"message":…}}.
    const Json& inner = field(answer, "error");
    const Json& error = inner.is_object() ? inner : answer;
    GatewayError out;
    out.code = static_cast<int>(numberOf(error, "code"));
    if (out.code == 0) {
        out.code = static_cast<int>(numberOf(error, "grpc_code"));
    }
    out.text = textOf(error, "message");
    if (out.text.empty()) {
        out.text = textOf(error, "error");
    }
    return out;
}

std::string Client::describe() const {
    return "etcd at " + settings_.endpoints[current_];
}

Status Client::explain(const GatewayError& error) const {
    const std::string text = describe() + ": " + shortened(error.text);
    if (has(error.text, "user name is empty") && settings_.user.empty()) {
        return Status::notAllowed(text +
                                  ": it wants a user and a password; set etcd={\"user\": ...,"
                                  " \"password\": ...} or NIXL_ETCD_USER and NIXL_ETCD_PASSWORD");
    }
    if (error.refusesName()) {
        return Status::notAllowed(
            text +
            ": while users are on, the gateway refuses a client certificate with a common"
            " name; use one without");
    }
    if (has(error.text, "bad certificate") || has(error.text, "tls: ") ||
        has(error.text, "authentication handshake failed")) {
        return Status::backend(
            text +
            ": the gateway of this etcd cannot reach its own server; the server's"
            " certificate needs the extended usage clientAuth beside serverAuth");
    }
    switch (error.code) {
        case INVALID_ARGUMENT:
            return has(error.text, "authentication failed")
                       ? Status::notAllowed(text + " (user \"" + settings_.user + "\")")
                       : Status::invalidParam(text);
        case PERMISSION_DENIED:
        case UNAUTHENTICATED:
            return Status::notAllowed(text + " (user \"" + settings_.user + "\")");
        case DEADLINE_EXCEEDED:
            return Status::timeout(text);
        case RESOURCE_EXHAUSTED:
            return Status::backend(text +
                                   (has(error.text, "space")
                                        ? ": compact and defragment it, then disarm the alarm"
                                        : ""));
        default:
            return Status::backend(text);
    }
}

Status Client::unreachable(size_t endpoint, const HttpReply& reply) const {
    return Status::backend("etcd at " + settings_.endpoints[endpoint] +
                           " cannot be reached: " + shortened(reply.error));
}

Status Client::notEtcd(size_t endpoint, const HttpReply& reply) const {
    return Status::backend(settings_.endpoints[endpoint] +
                           " answers, but not as etcd's v3 gateway (HTTP " +
                           std::to_string(reply.status) + ": " + shortened(reply.body) +
                           "); it must be the client address of an etcd 3.4 or later");
}

void Client::call(const char* path, const Json& body, Done done, milliseconds timeout) {
    if (!ended_.ok()) {
        return done(ended_);
    }
    auto call = std::make_shared<Call>();
    call->id = nextCall_++;
    call->path = path;
    call->body = body.dump();
    call->done = std::move(done);
    call->deadline = Clock::now() + (timeout.count() > 0 ? timeout : settings_.timeout);
    calls_[call->id] = call;
    attempt(call);
}

void Client::finish(const CallPtr& call, Result<Json> outcome) {
    if (calls_.erase(call->id) != 0) {
        call->done(std::move(outcome));
    }
}

void Client::endAll(const Status& why) {
    ended_ = why;
    for (auto& [id, call] : std::exchange(calls_, {})) {
        call->done(why);
    }
}

// How long one try may take: with several endpoints each of them gets its turn.
milliseconds Client::patience(const Call& call) const {
    const auto left = std::chrono::ceil<milliseconds>(call.deadline - Clock::now());
    const size_t endpoints = settings_.endpoints.size();
    if (endpoints == 1) {
        return std::max(left, milliseconds(1));
    }
    const auto share = std::max<milliseconds>(settings_.timeout / endpoints, kShortestTry);
    return std::clamp(left, milliseconds(1), share);
}

void Client::attempt(const CallPtr& call) {
    if (!settings_.user.empty() && token_.empty() && call->path != kAuthenticate) {
        authenticate([this, call](const Status& status) {
            if (status.ok()) {
                attempt(call);
            } else {
                finish(call, status);
            }
        });
        return;
    }
    ++call->tries;
    HttpRequest request;
    request.url = settings_.endpoints[current_] + call->path;
    request.body = call->body;
    request.token = call->path == kAuthenticate ? std::string() : token_;
    request.timeout = patience(*call);
    request.done = [this, call, endpoint = current_](const HttpReply& reply) {
        answered(call, endpoint, reply);
    };
    loop_.send(std::move(request));
}

void Client::answered(const CallPtr& call, size_t endpoint, const HttpReply& reply) {
    if (!calls_.contains(call->id)) {
        return;
    }
    if (!reply.arrived) {
        // The last try of several is cut short: an earlier one knows the cause.
        if (!reply.late || call->last.ok()) {
            call->last = unreachable(endpoint, reply);
        }
        rotate(endpoint);
        return tryAgain(call);
    }
    Json answer = Json::parse(reply.body, nullptr, false);
    if (const GatewayError plain{0, reply.body}; !answer.is_object() && plain.refusesName()) {
        return finish(call, explain(plain));
    }
    if (!answer.is_object()) {
        call->last = notEtcd(endpoint, reply);
        rotate(endpoint);
        return tryAgain(call);
    }
    if (reply.status == 200 && !answer.contains("error")) {
        return finish(call, std::move(answer));
    }
    const GatewayError error = errorOf(answer);
    call->last = explain(error);
    if (error.wantsNewToken() && !settings_.user.empty() && call->tokens < 2) {
        ++call->tokens;
        token_.clear();
        return attempt(call);
    }
    if (error.unavailable()) {
        rotate(endpoint);
        return tryAgain(call);
    }
    if (error.code == 0) {
        call->last = notEtcd(endpoint, reply);
    }
    finish(call, call->last);
}

// Each endpoint is tried at once, then after a pause that grows.
void Client::tryAgain(const CallPtr& call) {
    const size_t rounds = call->tries / settings_.endpoints.size();
    const bool pause = call->tries % settings_.endpoints.size() == 0;
    const Clock::time_point now = Clock::now();
    const Clock::time_point when =
        pause ? now + std::min(kFirstPause * (1U << std::min<size_t>(rounds - 1, 6)), kLongestPause)
              : now;
    if (when >= call->deadline) {
        return finish(call, call->last);
    }
    loop_.startTimer(when, [this, call] {
        if (calls_.contains(call->id)) {
            attempt(call);
        }
    });
}

void Client::rotate(size_t from) {
    if (from != current_ || settings_.endpoints.size() == 1) {
        return;
    }
    current_ = (current_ + 1) % settings_.endpoints.size();
    if (moved_) {
        moved_();
    }
}

void Client::authenticate(std::function<void(Status)> then) {
    waitForToken_.push_back(std::move(then));
    if (waitForToken_.size() > 1) {
        return;
    }
    call(kAuthenticate, Json{{"name", settings_.user}, {"password", settings_.password}},
         [this](Result<Json> answer) {
             Status status = answer.ok() ? Status() : answer.status();
             if (status.ok()) {
                 token_ = textOf(answer.value(), "token");
                 if (token_.empty()) {
                     status = Status::backend(describe() + " gave no token for user \"" +
                                              settings_.user + "\"");
                 }
             }
             for (const auto& waiting : std::exchange(waitForToken_, {})) {
                 waiting(status);
             }
         });
}

uint64_t Client::open(const char* path, const Json& body, Stream stream) {
    struct Reading {
        Stream stream;
        std::string rest;  // of a line that is not whole yet
        bool ended = false;
    };
    auto reading = std::make_shared<Reading>();
    reading->stream = std::move(stream);
    HttpRequest request;
    request.url = settings_.endpoints[current_] + path;
    request.body = body.dump();
    request.token = token_;
    request.onData = [reading](std::string_view bytes) {
        reading->rest += bytes;
        size_t from = 0;
        for (size_t end = 0;
             !reading->ended && (end = reading->rest.find('\n', from)) != std::string::npos;
             from = end + 1) {
            const Json message = Json::parse(
                reading->rest.begin() + static_cast<std::ptrdiff_t>(from),
                reading->rest.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
            if (!message.is_null()) {
                reading->stream.line(message);
            }
        }
        reading->rest.erase(0, from);
    };
    request.done = [this, reading, endpoint = current_](const HttpReply& reply) {
        // A message that is not ended by a line is told too: an error may come so.
        const Json last = Json::parse(reading->rest, nullptr, false);
        if (last.is_object()) {
            reading->stream.line(last);
        }
        reading->stream.end(reply.arrived ? Status::backend(describe() + " ended the watch")
                                          : unreachable(endpoint, reply));
    };
    return loop_.send(std::move(request));
}

}  // namespace nixl::exchange_etcd
