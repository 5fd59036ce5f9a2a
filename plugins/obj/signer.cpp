// See signer.h; the steps are those of AWS's description of Signature Version 4.
#include "signer.h"

#include <algorithm>
#include <ctime>

#include "crypto.h"

namespace nixl::obj {

namespace {

// Blanks around a value go, and runs of them inside become one.
std::string singleSpaced(std::string_view value) {
    std::string out;
    for (const char letter : value) {
        if ((letter == ' ' || letter == '\t') && (out.empty() || out.back() == ' ')) {
            continue;
        }
        out += letter == '\t' ? ' ' : letter;
    }
    if (!out.empty() && out.back() == ' ') {
        out.pop_back();
    }
    return out;
}

std::string canonicalQuery(Pairs query) {
    std::sort(query.begin(), query.end());
    std::string out;
    for (const auto& [name, value] : query) {
        out += (out.empty() ? "" : "&") + name + "=" + value;
    }
    return out;
}

}  // namespace

Signature sign(const SignRequest& request,
               const std::string& access_key,
               std::string_view secret_key) {
    Pairs headers = request.headers;
    std::stable_sort(headers.begin(), headers.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    std::string lines;
    std::string names;
    for (size_t i = 0; i < headers.size(); ++i) {
        const auto& [name, value] = headers[i];
        if (i > 0 && headers[i - 1].first == name) {
            lines.insert(lines.size() - 1, "," + singleSpaced(value));
            continue;
        }
        lines += name + ":" + singleSpaced(value) + "\n";
        names += (names.empty() ? "" : ";") + name;
    }
    Signature made;
    made.canonicalRequest = request.method + "\n" + request.path + "\n" +
                            canonicalQuery(request.query) + "\n" + lines + "\n" + names + "\n" +
                            request.payloadHash;
    const std::string date = request.time.substr(0, 8);
    const std::string scope = date + "/" + request.region + "/" + request.service + "/aws4_request";
    made.stringToSign = "AWS4-HMAC-SHA256\n" + request.time + "\n" + scope + "\n" +
                        hex(sha256(made.canonicalRequest));
    std::string secret = "AWS4" + std::string(secret_key);
    std::string signing = hmacSha256(
        hmacSha256(hmacSha256(hmacSha256(secret, date), request.region), request.service),
        "aws4_request");
    wipe(secret);
    made.signature = hex(hmacSha256(signing, made.stringToSign));
    wipe(signing);
    made.authorization = "AWS4-HMAC-SHA256 Credential=" + access_key + "/" + scope +
                         ",SignedHeaders=" + names + ",Signature=" + made.signature;
    return made;
}

std::string signingTime(int64_t seconds) {
    const auto time = static_cast<time_t>(seconds);
    tm parts{};
    gmtime_r(&time, &parts);
    char text[32];
    const size_t size = strftime(text, sizeof(text), "%Y%m%dT%H%M%SZ", &parts);
    return {text, size};
}

}  // namespace nixl::obj
