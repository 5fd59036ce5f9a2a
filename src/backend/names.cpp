// See names.h.
#include "backend/names.h"

#include <algorithm>

namespace nixl::backend {
namespace {

// ASCII only: the locale must not change which plugin a name means.
char lowerChar(char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

char upperChar(char c) {
    return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
}

// Letters to insert, delete, replace or swap with a neighbour.
size_t editDistance(std::string_view a, std::string_view b) {
    std::vector<size_t> before(b.size() + 1);
    std::vector<size_t> last(b.size() + 1);
    std::vector<size_t> now(b.size() + 1);
    for (size_t j = 0; j <= b.size(); ++j) {
        last[j] = j;
    }
    for (size_t i = 1; i <= a.size(); ++i) {
        now[0] = i;
        for (size_t j = 1; j <= b.size(); ++j) {
            const size_t replace = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
            now[j] = std::min({replace, last[j] + 1, now[j - 1] + 1});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                now[j] = std::min(now[j], before[j - 2] + 1);
            }
        }
        before.swap(last);
        last.swap(now);
    }
    return last[b.size()];
}

}  // namespace

bool sameName(std::string_view left, std::string_view right) noexcept {
    return left.size() == right.size() &&
           std::equal(left.begin(), left.end(), right.begin(),
                      [](char a, char b) { return lowerChar(a) == lowerChar(b); });
}

std::optional<bool> readFlag(std::string_view word) noexcept {
    for (const char* yes : {"true", "1", "yes", "y", "on", "enable"}) {
        if (sameName(word, yes)) {
            return true;
        }
    }
    for (const char* no : {"false", "0", "no", "n", "off", "disable"}) {
        if (sameName(word, no)) {
            return false;
        }
    }
    return std::nullopt;
}

std::string upperCase(std::string_view text) {
    std::string out(text);
    std::transform(out.begin(), out.end(), out.begin(), upperChar);
    return out;
}

std::string lowerCase(std::string_view text) {
    std::string out(text);
    std::transform(out.begin(), out.end(), out.begin(), lowerChar);
    return out;
}

std::string nearestName(std::string_view wanted, const std::vector<std::string>& known) {
    constexpr size_t kLongestGuess = 64;  // no typo of a name, and the work is quadratic
    if (wanted.size() > kLongestGuess) {
        return {};
    }
    const std::string lower = lowerCase(wanted);
    std::string best;
    size_t best_distance = std::max<size_t>(1, wanted.size() / 3) + 1;
    for (const std::string& name : known) {
        const size_t distance = editDistance(lower, lowerCase(name));
        if (distance < best_distance && distance < name.size()) {
            best_distance = distance;
            best = name;
        }
    }
    return best;
}

std::string joinNames(const std::vector<std::string>& names, std::string_view empty) {
    std::string out;
    for (const std::string& name : names) {
        out.append(out.empty() ? "" : ", ").append(name);
    }
    return out.empty() ? std::string(empty) : out;
}

}  // namespace nixl::backend
