// The parameters of the backend, as plugins/obj/README.md describes them.
#pragma once

#include "nixl/plugin.h"

namespace nixl::obj {

inline constexpr ParameterSpec kParameters[] = {
    {"num_threads", ParameterType::INTEGER, "4", "threads that carry requests out", 1, 1024},
    {"endpoint_override", ParameterType::STRING, "", "URL of the store; empty: AWS S3"},
    {"scheme", ParameterType::CHOICE, "http", "of an endpoint without one", INT64_MIN, INT64_MAX,
     "http|https"},
    {"region", ParameterType::STRING, "", "region that requests are signed for"},
    {"req_checksum", ParameterType::CHOICE, "required",
     "a checksum with each write: always, or unless the store refuses it", INT64_MIN, INT64_MAX,
     "required|supported"},
    {"checksum_algorithm", ParameterType::CHOICE, "CRC32C", "which", INT64_MIN, INT64_MAX,
     "CRC32C|SHA256"},
    {"sign_payload", ParameterType::BOOL, "false",
     "sign what is sent, too: a SHA-256 over each body"},
    {"ca_bundle", ParameterType::STRING, "",
     "file of certificates to trust instead of the system's"},
    {"access_key", ParameterType::STRING, "", "access key"},
    {"secrete_key", ParameterType::SECRET, "", "secret key, as HiCache spells it"},
    {"secret_key", ParameterType::SECRET, "", "secret key"},
    {"session_token", ParameterType::SECRET, "", "token of temporary keys"},
    {"profile", ParameterType::STRING, "", "profile of AWS's credentials and configuration files"},
    {"anonymous", ParameterType::BOOL, "false", "sign nothing: a public bucket"},
    {"use_virtual_addressing", ParameterType::BOOL, "true",
     "bucket before the host's name, where the name allows it"},
    {"bucket", ParameterType::STRING, "", "bucket; empty: AWS_DEFAULT_BUCKET"},
    {"max_connections", ParameterType::INTEGER, "32", "requests at a time", 1, 4096},
    {"part_size", ParameterType::SIZE, "16M",
     "bytes of one part of a large write or read; AWS wants 5M or more", 65536, 5LL << 30},
    {"multipart_threshold", ParameterType::SIZE, "64M", "writes above it go in parts", 65536,
     5LL << 30},
    {"join_gap", ParameterType::SIZE, "64K",
     "pieces of one object so near to each other are read by one request", 0, 1LL << 30},
    {"partial_write", ParameterType::CHOICE, "refuse",
     "of a write that is not the whole object: an error, or read, change and write it", INT64_MIN,
     INT64_MAX, "refuse|merge"},
    {"merge_limit", ParameterType::SIZE, "256M", "largest object that merge changes (in memory)", 1,
     5LL << 30},
    {"connect_timeout", ParameterType::DURATION, "5", "for a connection", 0, 3600},
    {"idle_timeout", ParameterType::DURATION, "30", "without a byte, at least 1", 1, 3600},
    {"max_attempts", ParameterType::INTEGER, "5", "of each request, the first included", 1, 100},
    {"retry_delay", ParameterType::DURATION, "100ms", "before the second; then twice as long", 0,
     3600},
    {"retry_max_delay", ParameterType::DURATION, "20", "the longest, and of Retry-After", 0, 3600},
};

}  // namespace nixl::obj
