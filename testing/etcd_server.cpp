// See etcd_server.h.
#include "testing/etcd_server.h"

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "testing/until.h"

extern char** environ;

namespace nixl::testkit {
namespace {

int freePort() {
    const int probe = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in place{};
    place.sin_family = AF_INET;
    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof place;
    auto* const generic = reinterpret_cast<sockaddr*>(&place);
    const bool bound = bind(probe, generic, size) == 0 && getsockname(probe, generic, &size) == 0;
    close(probe);
    return bound ? ntohs(place.sin_port) : 0;
}

std::string output(const std::string& command) {
    std::string text;
    // NOLINTNEXTLINE(bugprone-command-processor): a test's own words
    FILE* const pipe = popen(command.c_str(), "re");
    if (pipe == nullptr) {
        return text;
    }
    std::array<char, 4096> piece{};
    while (const size_t got = fread(piece.data(), 1, piece.size(), pipe)) {
        text.append(piece.data(), got);
    }
    pclose(pipe);
    return text;
}

// The programs of this name in PATH.
std::vector<std::string> programsNamed(const std::string& name) {
    std::vector<std::string> found;
    const char* const path = std::getenv("PATH");
    const std::string folders = path == nullptr ? "" : path;
    size_t at = 0;
    while (at <= folders.size()) {
        const size_t end = std::min(folders.find(':', at), folders.size());
        std::string program = folders.substr(at, end - at) + "/" + name;
        if (access(program.c_str(), X_OK) == 0) {
            found.push_back(std::move(program));
        }
        at = end + 1;
    }
    return found;
}

}  // namespace

std::vector<std::string> etcdPrograms() {
    return programsNamed("etcd");
}

std::string lackingBeside(const std::string& program) {
    if (access((program + "ctl").c_str(), X_OK) != 0 && programsNamed("etcdctl").empty()) {
        return "no etcdctl beside " + program + " or in PATH (Debian: etcd-client)";
    }
    return programsNamed("curl").empty() ? "no curl in PATH" : "";
}

std::unique_ptr<EtcdServer> EtcdServer::start(const std::string& program,
                                              std::vector<std::string> options) {
    std::unique_ptr<EtcdServer> server(new EtcdServer());
    std::string folder = (std::filesystem::temp_directory_path() / "nixl-etcd-XXXXXX").string();
    if (mkdtemp(folder.data()) == nullptr) {
        return nullptr;
    }
    server->program_ = program;
    server->options_ = std::move(options);
    server->folder_ = folder;
    // Somebody else may take a port that was free a moment ago.
    for (int i = 0; i < 5; ++i) {
        server->port_ = freePort();
        server->peerPort_ = freePort();
        if (server->launch()) {
            return server;
        }
        server->stop(SIGKILL);
    }
    return nullptr;
}

bool EtcdServer::launch() {
    const std::string peer = "http://127.0.0.1:" + std::to_string(peerPort_);
    std::vector<std::string> words{program_,
                                   "--name=one",
                                   "--data-dir=" + folder_ + "/data",
                                   "--unsafe-no-fsync",
                                   "--listen-client-urls=" + endpoint(),
                                   "--advertise-client-urls=" + endpoint(),
                                   "--listen-peer-urls=" + peer,
                                   "--initial-advertise-peer-urls=" + peer,
                                   "--initial-cluster=one=" + peer};
    words.insert(words.end(), options_.begin(), options_.end());
    std::vector<char*> arguments;
    for (std::string& word : words) {
        arguments.push_back(word.data());
    }
    arguments.push_back(nullptr);
    const std::string log = folder_ + "/log";
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    const int error =
        posix_spawn(&pid_, program_.c_str(), &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) {
        pid_ = -1;
        return false;
    }
    return eventually([this] { return healthy() || waitpid(pid_, nullptr, WNOHANG) == pid_; }) &&
           kill(pid_, 0) == 0 && healthy();
}

bool EtcdServer::healthy() const {
    return output("curl -s -m 5 " + endpoint() + "/health 2>/dev/null").find("true") !=
           std::string::npos;
}

std::string EtcdServer::control(const std::vector<std::string>& words) const {
    const std::string beside = program_ + "ctl";
    std::string command = "ETCDCTL_API=3 " +
                          (access(beside.c_str(), X_OK) == 0 ? beside : std::string("etcdctl")) +
                          " --dial-timeout=30s --command-timeout=30s --endpoints=" + endpoint();
    for (const std::string& word : words) {
        command += " '" + word + "'";
    }
    return output(command + " 2>&1");
}

void EtcdServer::signal(int number) const {
    kill(pid_, number);
}

void EtcdServer::stop(int number) {
    if (pid_ > 0) {
        kill(pid_, number);
        if (number != SIGKILL &&
            !eventually([this] { return waitpid(pid_, nullptr, WNOHANG) == pid_; })) {
            kill(pid_, SIGKILL);
            waitpid(pid_, nullptr, 0);
        } else if (number == SIGKILL) {
            waitpid(pid_, nullptr, 0);
        }
        pid_ = -1;
    }
}

bool EtcdServer::startAgain() {
    return launch();
}

void EtcdServer::emptyData() const {
    std::filesystem::remove_all(folder_ + "/data");
}

EtcdServer::~EtcdServer() {
    stop(SIGKILL);
    std::filesystem::remove_all(folder_);
}

}  // namespace nixl::testkit
