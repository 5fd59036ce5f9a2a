// See ucx_worker.h.
#include "ucx_worker.h"

#include <algorithm>
#include <mutex>

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "of_process.h"

namespace nixl::ucx {

namespace {

// Leak checkers see it here.
void keepForEver(std::shared_ptr<void> thing) {
    static constinit OfProcess<std::vector<std::shared_ptr<void>>> kept;
    kept.hold().value.push_back(std::move(thing));
}

}  // namespace

// One connection. Its keys stay until its operations have ended: UCX looks at them until then.
struct UcxWorker::Endpoint {
    explicit Endpoint(const UcxLibrary& library) : ucx(library) {}
    ~Endpoint() {
        for (auto& [key, rkey] : rkeys) {
            ucx.rkeyDestroy(rkey);
        }
    }
    Endpoint(const Endpoint&) = delete;
    Endpoint& operator=(const Endpoint&) = delete;

    const UcxLibrary& ucx;
    ucp_ep_h handle = nullptr;
    ucs_status_t failed = UCS_OK;
    void* flushing = nullptr;  // of one that is being retired
    Clock::time_point retireBy;
    void* closing = nullptr;
    std::map<std::string, ucp_rkey_h> rkeys;  // by packed key
};

struct UcxWorker::Active {
    Active(UcxWorker& its_owner, UcxJob its_job)
        : owner(its_owner), job(std::move(its_job)), cursor(job.runs) {}

    UcxWorker& owner;
    UcxJob job;
    EndpointPtr endpoint;
    std::vector<ucp_rkey_h> rkeys;  // by remote region index
    SegmentCursor cursor;
    size_t pending = 0;  // operations that UCX has taken and not ended
    unsigned attempts = 0;
    bool begun = false;    // UCX has got a segment
    bool issued = false;   // UCX has got every segment
    bool flushed = false;  // its completion is among `pending` or has come
    std::optional<Clock::time_point> canceled;
    Status error;
};

Result<std::unique_ptr<UcxWorker>> UcxWorker::create(std::shared_ptr<UcxContext> context) {
    std::unique_ptr<UcxWorker> made(new UcxWorker(std::move(context)));
    NIXL_RETURN_IF_ERROR(made->open());
    NIXL_RETURN_IF_ERROR(made->startThread());
    return made;
}

Status UcxWorker::open() {
    ucp_worker_params_t params{};
    params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
    params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
    ucs_status_t status = ucx_.workerCreate(context_->handle(), &params, &worker_);
    if (status != UCS_OK) {
        return Status::backend(context_->text("making a worker", status));
    }
    ucp_address_t* address = nullptr;
    size_t length = 0;
    status = ucx_.workerGetAddress(worker_, &address, &length);
    if (status != UCS_OK) {
        return Status::backend(context_->text("its worker's address", status));
    }
    address_.assign(reinterpret_cast<const char*>(address), length);
    ucx_.workerReleaseAddress(worker_, address);
    if (ucx_.workerGetEfd(worker_, &eventFd_) != UCS_OK) {
        eventFd_ = -1;  // a transport without wake-up: the loop sleeps briefly instead
    }
    wakeFd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return wakeFd_ >= 0 ? Status() : Status::backend("UCX: no eventfd (descriptor limit)", errno);
}

Status UcxWorker::startThread() {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    Status status;
    try {
        thread_ = std::thread([this] { loop(); });
    } catch (const std::system_error& error) {
        status =
            Status::backend(std::string("UCX: no thread: ") + error.what(), error.code().value());
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return status;
}

UcxWorker::~UcxWorker() {
    if (thread_.joinable()) {
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake();
        thread_.join();
    }
    for (const ActivePtr& active : active_) {
        active->job.done(Status::canceled("the agent has ended"));
    }
    if (!closing_.empty() || !retiring_.empty() || busy()) {
        // UCX did not let go in time: what it may still touch stays until the process ends.
        keepForEver(context_);
        std::for_each(closing_.begin(), closing_.end(), keepForEver);
        std::for_each(active_.begin(), active_.end(), keepForEver);
    } else {
        active_.clear();  // keys go before their worker
        if (worker_ != nullptr) {
            ucx_.workerDestroy(worker_);
        }
    }
    if (wakeFd_ >= 0) {
        close(wakeFd_);
    }
}

void UcxWorker::wake() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wakeFd_, &one, sizeof(one));
}

void UcxWorker::post(std::function<void()> task) {
    {
        const std::lock_guard lock(mutex_);
        tasks_.push_back(std::move(task));
    }
    wake();
}

void UcxWorker::addPeer(const std::string& key, std::string address) {
    post([this, key, address = std::move(address)] {
        std::string& known = addresses_[key];
        if (known != address) {
            known = address;
            retire({key, false});
            retire({key, true});
        }
    });
}

void UcxWorker::losePeer(const std::string& key, const Status& why, bool forget) {
    post([this, key, why, forget] {
        for (const ActivePtr& active : active_) {
            if (active->job.peer == key) {
                active->attempts = kAttempts;  // no more
                active->error = active->error.ok() ? why : active->error;
            }
        }
        retire({key, false});
        retire({key, true});
        if (forget) {
            addresses_.erase(key);
        }
    });
}

void UcxWorker::run(UcxJob job) {
    auto active = std::make_shared<Active>(*this, std::move(job));
    post([this, active] {
        active_.push_back(active);
        active->error = connect(*active);
    });
}

void UcxWorker::loop() {
    pthread_setname_np(pthread_self(), "nixl-ucx");
    while (takeWork()) {
        unsigned moved = 0;
        while (ucx_.workerProgress(worker_) != 0 && ++moved < 1024) {
        }
        bool stepped = sweepEndpoints();
        for (size_t i = 0; i < active_.size(); ++i) {
            stepped = step(*active_[i]) || stepped;
        }
        std::erase_if(active_, [](const ActivePtr& active) { return active->job.done == nullptr; });
        if (!stepped && moved == 0) {
            sleep();
        }
    }
    closeAll();
}

// Runs what was asked for; false when it is time to stop (nothing is asked for afterwards, and the
// wake-up for it may have been taken already).
bool UcxWorker::takeWork() {
    std::deque<std::function<void()>> tasks;
    bool stop = false;
    {
        const std::lock_guard lock(mutex_);
        tasks.swap(tasks_);
        stop = stop_;
    }
    for (const auto& task : tasks) {
        task();
    }
    return !stop;
}

void UcxWorker::sleep() {
    // UCX wants a look now and then while operations are pending (retransmission timers).
    const bool quiet = active_.empty() && closing_.empty() && retiring_.empty();
    pollfd fds[2] = {{wakeFd_, POLLIN, 0}, {eventFd_, POLLIN, 0}};
    if (eventFd_ >= 0) {
        if (ucx_.workerArm(worker_) != UCS_OK) {
            return;  // events came meanwhile
        }
        poll(fds, 2, quiet ? -1 : 1);
    } else {
        poll(fds, 1, quiet ? 10 : 1);
    }
    uint64_t value = 0;
    [[maybe_unused]] const ssize_t got = read(wakeFd_, &value, sizeof(value));
}

// Closing by force ends every operation, so that no memory is touched afterwards.
void UcxWorker::closeAll() {
    while (!endpoints_.empty()) {
        retire(endpoints_.begin()->first);
    }
    const auto limit = Clock::now() + kEndLimit;
    while ((!closing_.empty() || !retiring_.empty() || busy()) && Clock::now() < limit) {
        ucx_.workerProgress(worker_);
        sweepEndpoints();
    }
}

bool UcxWorker::busy() const {
    return std::any_of(active_.begin(), active_.end(),
                       [](const ActivePtr& active) { return active->pending != 0; });
}

// --- endpoints

Result<UcxWorker::EndpointPtr> UcxWorker::endpoint(const EndpointKey& key) {
    if (const auto found = endpoints_.find(key); found != endpoints_.end()) {
        if (found->second->failed == UCS_OK) {
            return found->second;
        }
        drop(key, found->second->failed);
    }
    const auto address = addresses_.find(key.first);
    if (address == addresses_.end()) {
        return Status::disconnected("UCX: no worker address of this agent is known");
    }
    auto made = std::make_shared<Endpoint>(ucx_);
    ucp_ep_params_t params{};
    params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                        UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.address = reinterpret_cast<const ucp_address_t*>(address->second.data());
    params.err_mode =
        context_->options().peerErrors ? UCP_ERR_HANDLING_MODE_PEER : UCP_ERR_HANDLING_MODE_NONE;
    params.err_handler.cb = [](void* argument, ucp_ep_h /*ep*/, ucs_status_t status) {
        static_cast<Endpoint*>(argument)->failed = status;
    };
    params.err_handler.arg = made.get();
    const ucs_status_t status = ucx_.epCreate(worker_, &params, &made->handle);
    if (status != UCS_OK) {
        return failure("connecting", status);
    }
    endpoints_[key] = made;
    return made;
}

Status UcxWorker::unpack(Endpoint& endpoint, const std::string& key, ucp_rkey_h& rkey) {
    if (const auto found = endpoint.rkeys.find(key); found != endpoint.rkeys.end()) {
        rkey = found->second;
        return {};
    }
    const ucs_status_t status = ucx_.epRkeyUnpack(endpoint.handle, key.data(), &rkey);
    if (status != UCS_OK) {
        return Status::backend(context_->text("unpacking a remote key", status));
    }
    endpoint.rkeys.emplace(key, rkey);
    return {};
}

// Closes an endpoint by force; what is pending on it ends soon, whatever the peer does. (Without
// error handling UCX knows no force: it then waits for the peer.)
void UcxWorker::drop(const EndpointKey& key, ucs_status_t why) {
    const auto found = endpoints_.find(key);
    if (found == endpoints_.end()) {
        return;
    }
    const EndpointPtr endpoint = found->second;
    endpoints_.erase(found);
    forceClosed(endpoint, why);
}

// Closes an endpoint as soon as the peer has all that was sent, or soon by force: a peer whose
// connection breaks in the middle may be aborted by UCX's emulation (see README.md).
void UcxWorker::retire(const EndpointKey& key) {
    const auto found = endpoints_.find(key);
    if (found == endpoints_.end()) {
        return;
    }
    const EndpointPtr endpoint = found->second;
    endpoints_.erase(found);
    endpoint->retireBy = Clock::now() + kRetireLimit;
    if (endpoint->failed == UCS_OK) {
        ucp_request_param_t param{};
        void* const request = ucx_.epFlushNbx(endpoint->handle, &param);
        endpoint->flushing = UCS_PTR_IS_PTR(request) ? request : nullptr;
    }
    retiring_.push_back(endpoint);
}

void UcxWorker::forceClosed(const EndpointPtr& endpoint, ucs_status_t why) {
    if (endpoint->failed == UCS_OK) {
        endpoint->failed = why;
    }
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = context_->options().peerErrors ? UCP_EP_CLOSE_FLAG_FORCE : 0;
    void* const request = ucx_.epCloseNbx(endpoint->handle, &param);
    if (UCS_PTR_IS_PTR(request)) {
        endpoint->closing = request;
        closing_.push_back(endpoint);
    }
}

// Closes what has failed and forgets what is closed; true when something did.
bool UcxWorker::sweepEndpoints() {
    std::vector<EndpointKey> failed;
    for (const auto& [key, endpoint] : endpoints_) {
        if (endpoint->failed != UCS_OK) {
            failed.push_back(key);
        }
    }
    for (const EndpointKey& key : failed) {
        drop(key, UCS_OK);
    }
    const size_t retired = std::erase_if(retiring_, [&](const EndpointPtr& endpoint) {
        const bool flushed = endpoint->flushing == nullptr ||
                             ucx_.requestCheckStatus(endpoint->flushing) != UCS_INPROGRESS;
        if (!flushed && endpoint->failed == UCS_OK && Clock::now() < endpoint->retireBy) {
            return false;
        }
        if (endpoint->flushing != nullptr) {
            ucx_.requestFree(endpoint->flushing);
        }
        forceClosed(endpoint, UCS_ERR_CANCELED);
        return true;
    });
    const size_t closed = std::erase_if(closing_, [&](const EndpointPtr& endpoint) {
        if (ucx_.requestCheckStatus(endpoint->closing) == UCS_INPROGRESS) {
            return false;
        }
        ucx_.requestFree(endpoint->closing);
        return true;
    });
    return retired + closed + failed.size() != 0;
}

// --- jobs

Status UcxWorker::connect(Active& active) {
    Result<EndpointPtr> found = endpoint({active.job.peer, active.job.read});
    if (!found.ok()) {
        return found.status();
    }
    active.endpoint = found.value();
    active.rkeys.clear();
    for (const std::string* key : active.job.keys) {
        active.rkeys.push_back(nullptr);
        NIXL_RETURN_IF_ERROR(key == nullptr ? Status::notFound("UCX: no remote key of this region")
                                            : unpack(*active.endpoint, *key, active.rkeys.back()));
    }
    return {};
}

// Moves a job on; true when something changed.
bool UcxWorker::step(Active& active) {
    heedCancel(active);
    if (active.error.ok() && active.endpoint->failed != UCS_OK) {
        active.error = failure("the connection", active.endpoint->failed);
    }
    const size_t before = active.pending;
    if (active.error.ok() && !active.issued) {
        issue(active);
    }
    // What was read is here; only a flush tells what has reached the target, also after a cancel.
    const bool whole = active.error.ok() ? active.issued : active.canceled && active.begun;
    if (whole && !active.job.read && !active.flushed && active.endpoint->failed == UCS_OK) {
        flush(active);
    }
    if (active.pending != 0 || (active.error.ok() && !active.issued)) {
        return active.pending != before;
    }
    if (!restart(active)) {
        const auto done = std::exchange(active.job.done, nullptr);
        done(end(active));
    }
    return true;
}

void UcxWorker::issue(Active& active) {
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    param.cb.send = &UcxWorker::ended;
    param.user_data = &active;
    ucp_ep_h const handle = active.endpoint->handle;
    Segment segment;
    for (SegmentCursor next = active.cursor; active.pending < kWindow && next.next(segment);) {
        if (active.pending != 0 && (active.pending + 1) * segment.size > kWindowBytes) {
            return;
        }
        active.cursor = next;
        ucp_rkey_h const rkey = active.rkeys[segment.remoteRegion];
        auto* const local = reinterpret_cast<void*>(segment.local);
        void* const request =
            active.job.read
                ? ucx_.getNbx(handle, local, segment.size, segment.remote, rkey, &param)
                : ucx_.putNbx(handle, local, segment.size, segment.remote, rkey, &param);
        active.begun = true;
        if (!started(active, request)) {
            return;
        }
    }
    SegmentCursor rest = active.cursor;
    active.issued = !rest.next(segment);
}

// DONE means that the bytes are at the target: only a flush tells.
void UcxWorker::flush(Active& active) {
    active.flushed = true;
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    param.cb.send = &UcxWorker::ended;
    param.user_data = &active;
    started(active, ucx_.epFlushNbx(active.endpoint->handle, &param));
}

// Looks at what UCX gave for an operation; false where it failed at once.
bool UcxWorker::started(Active& active, void* request) const {
    if (UCS_PTR_IS_ERR(request)) {
        fail(active, UCS_PTR_STATUS(request));
        return false;
    }
    active.pending += request != nullptr ? 1 : 0;
    return true;
}

// UCX has ended an operation (inside workerProgress or epCloseNbx).
void UcxWorker::ended(void* request, ucs_status_t status, void* user_data) {
    auto* const active = static_cast<Active*>(user_data);
    active->owner.ucx_.requestFree(request);
    --active->pending;
    if (status != UCS_OK) {
        active->owner.fail(*active, status);
    }
}

void UcxWorker::fail(Active& active, ucs_status_t status) const {
    Status error = failure("moving bytes", status);
    if (error.code() == ErrorCode::REMOTE_DISCONNECT && active.endpoint->failed == UCS_OK) {
        active.endpoint->failed = status;
    }
    if (active.error.ok()) {
        active.error = std::move(error);
    }
}

void UcxWorker::heedCancel(Active& active) {
    if (!active.canceled && active.job.completion->cancelRequested()) {
        active.canceled = Clock::now();
        if (active.error.ok()) {
            active.error = Status::canceled("canceled");
        }
    }
    // The peer does not answer, and this side's memory must be let go.
    if (active.canceled && active.job.read && active.pending != 0 &&
        active.endpoint->failed == UCS_OK && Clock::now() >= *active.canceled + kPatience) {
        drop({active.job.peer, true}, UCS_ERR_CANCELED);
    }
}

// A READ whose connection was lost is begun again from the start, on another one.
bool UcxWorker::restart(Active& active) {
    const bool again = active.job.read && active.endpoint != nullptr &&
                       active.endpoint->failed != UCS_OK && !active.canceled &&
                       active.error.code() == ErrorCode::REMOTE_DISCONNECT &&
                       addresses_.contains(active.job.peer) && ++active.attempts < kAttempts;
    if (again) {
        active.cursor = SegmentCursor(active.job.runs);
        active.issued = false;
        active.error = connect(active);
    }
    return again;
}

Status UcxWorker::end(const Active& active) const {
    const bool unconfirmed = active.canceled && !active.job.read && active.endpoint != nullptr &&
                             active.endpoint->failed != UCS_OK;
    if (active.error.code() == ErrorCode::CANCELED && unconfirmed) {
        return Status::canceled(
            "canceled; remote_unconfirmed: the connection was lost before the "
            "peer had all that was sent");
    }
    return active.error;
}

Status UcxWorker::failure(const std::string& what, ucs_status_t status) const {
    std::string text = context_->text(what, status);
    switch (status) {
        case UCS_ERR_UNREACHABLE:
            text += "; the two agents share no transport that can connect them: add tcp to UCX_TLS";
            return Status::disconnected(text);
        case UCS_ERR_NO_MEMORY:
        case UCS_ERR_INVALID_PARAM:
        case UCS_ERR_UNSUPPORTED:
        case UCS_ERR_NOT_IMPLEMENTED:
            return Status::backend(text);
        default:
            return Status::disconnected(text);
    }
}

}  // namespace nixl::ucx
