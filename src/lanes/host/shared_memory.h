// The files behind this process' memory: which parts of a range are shared mappings that another
// process could map too, and a descriptor of each such file. One object is one look at the
// process: made for a request, used by one thread, then dropped.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/socket.h"
#include "lanes/host/map_wire.h"

namespace nixl::peer {

// Why a file must not be mapped by a process that did not make it; empty where it may. Its owner
// must be unable to take pages away, since touching what is gone kills the process that does.
std::string whyNotMappable(int fd);

class SharedMemory {
  public:
    struct Found {
        std::vector<MapPiece>
            pieces;          // what of the range can be mapped; `file` indexes takeFiles()
        std::string reason;  // why something of it cannot; empty where all can
    };

    // Reads the list of mappings.
    SharedMemory();
    Found find(uint64_t address, uint64_t size);
    // Duplicates of the descriptors found, in the order that pieces name them by.
    std::vector<base::Fd> takeFiles() { return std::move(files_); }

  private:
    struct Area {
        uint64_t begin = 0;
        uint64_t end = 0;
        uint64_t offset = 0;
        uint64_t device = 0;
        uint64_t inode = 0;
        bool shared = false;
        bool writable = false;
    };
    using FileKey = std::pair<uint64_t, uint64_t>;  // device, inode
    struct File {
        int index = -1;  // in files_; -1: not to be had
        std::string reason;
    };

    const File& fileOf(const Area& area);
    void listDescriptors();
    File open(const FileKey& key);

    std::vector<Area> areas_;  // by address
    std::map<FileKey, File> known_;
    std::multimap<FileKey, int> descriptors_;
    bool listed_ = false;
    std::vector<base::Fd> files_;
};

}  // namespace nixl::peer
