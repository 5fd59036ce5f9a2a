// See curl_api.h.
#include "exchange_etcd/curl_api.h"

#include <atomic>
#include <memory>
#include <string>

#include <dlfcn.h>

namespace nixl::exchange_etcd {
namespace {

struct Loaded {
    CurlApi api{};
    Status status;
};

template <typename Function>
bool take(void* library, const char* name, Function& place) {
    place = reinterpret_cast<Function>(dlsym(library, name));
    return place != nullptr;
}

bool takeAll(void* library, CurlApi& api) {
    return take(library, "curl_global_init", api.globalInit) &&
           take(library, "curl_easy_init", api.easyInit) &&
           take(library, "curl_easy_cleanup", api.easyCleanup) &&
           take(library, "curl_easy_reset", api.easyReset) &&
           take(library, "curl_easy_setopt", api.easySetopt) &&
           take(library, "curl_easy_getinfo", api.easyGetinfo) &&
           take(library, "curl_easy_strerror", api.easyStrerror) &&
           take(library, "curl_slist_append", api.slistAppend) &&
           take(library, "curl_slist_free_all", api.slistFreeAll) &&
           take(library, "curl_multi_init", api.multiInit) &&
           take(library, "curl_multi_cleanup", api.multiCleanup) &&
           take(library, "curl_multi_setopt", api.multiSetopt) &&
           take(library, "curl_multi_add_handle", api.multiAddHandle) &&
           take(library, "curl_multi_remove_handle", api.multiRemoveHandle) &&
           take(library, "curl_multi_perform", api.multiPerform) &&
           take(library, "curl_multi_poll", api.multiPoll) &&
           take(library, "curl_multi_wakeup", api.multiWakeup) &&
           take(library, "curl_multi_info_read", api.multiInfoRead) &&
           take(library, "curl_url", api.url) &&
           take(library, "curl_url_cleanup", api.urlCleanup) &&
           take(library, "curl_url_set", api.urlSet) && take(library, "curl_url_get", api.urlGet) &&
           take(library, "curl_free", api.free);
}

Loaded load() {
    Loaded loaded;
    std::string said;
    for (const char* name : {"libcurl.so.4", "libcurl-gnutls.so.4"}) {
        void* const library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            said += said.empty() ? dlerror() : std::string("; ") + dlerror();
        } else if (!takeAll(library, loaded.api)) {
            said = std::string(name) + " is older than libcurl 7.68";
        } else if (loaded.api.globalInit(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
            said = std::string(name) + ": curl_global_init failed";
        } else {
            return loaded;
        }
    }
    loaded.status =
        Status::notSupported("etcd needs libcurl, which cannot be loaded (" + said +
                             "); install it (Debian and Ubuntu: libcurl4, Fedora: libcurl)");
    return loaded;
}

}  // namespace

Result<const CurlApi*> curlApi() {
    // No lock: a fork could leave it taken in the child. Loading twice is harmless.
    static std::atomic<const Loaded*> known{nullptr};
    const Loaded* loaded = known.load(std::memory_order_acquire);
    if (loaded == nullptr) {
        auto fresh = std::make_unique<const Loaded>(load());
        if (!fresh->status.ok()) {
            return fresh->status;  // tried again next time: it may be installed by then
        }
        if (known.compare_exchange_strong(loaded, fresh.get(), std::memory_order_acq_rel)) {
            loaded = fresh.release();
        }
    }
    return &loaded->api;
}

}  // namespace nixl::exchange_etcd
