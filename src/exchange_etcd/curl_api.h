// libcurl, opened when etcd is first asked for: the core needs it neither to link nor to start.
// The table is made once and never destroyed; any thread.
#pragma once

#define CURL_DISABLE_TYPECHECK
#include <curl/curl.h>

#include "nixl/error.h"

namespace nixl::exchange_etcd {

struct CurlApi {
    decltype(&curl_global_init) globalInit;
    decltype(&curl_easy_init) easyInit;
    decltype(&curl_easy_cleanup) easyCleanup;
    decltype(&curl_easy_reset) easyReset;
    CURLcode (*easySetopt)(CURL*, CURLoption, ...);
    CURLcode (*easyGetinfo)(CURL*, CURLINFO, ...);
    decltype(&curl_easy_strerror) easyStrerror;
    decltype(&curl_slist_append) slistAppend;
    decltype(&curl_slist_free_all) slistFreeAll;
    decltype(&curl_multi_init) multiInit;
    decltype(&curl_multi_cleanup) multiCleanup;
    CURLMcode (*multiSetopt)(CURLM*, CURLMoption, ...);
    decltype(&curl_multi_add_handle) multiAddHandle;
    decltype(&curl_multi_remove_handle) multiRemoveHandle;
    decltype(&curl_multi_perform) multiPerform;
    decltype(&curl_multi_poll) multiPoll;
    decltype(&curl_multi_wakeup) multiWakeup;
    decltype(&curl_multi_info_read) multiInfoRead;
    decltype(&curl_url) url;
    decltype(&curl_url_cleanup) urlCleanup;
    decltype(&curl_url_set) urlSet;
    decltype(&curl_url_get) urlGet;
    decltype(&curl_free) free;
};

// NOT_SUPPORTED where there is no libcurl, with what to install.
Result<const CurlApi*> curlApi();

}  // namespace nixl::exchange_etcd
