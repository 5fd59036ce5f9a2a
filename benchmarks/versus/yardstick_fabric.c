/* The limit of the rows of LIBFABRIC: one-sided operations in a plain loop, by a caller that spins,
 * with a target that does nothing but look at its queue. The library is the one that NIXL opens.
 * One thread for each object. Without libfabric's headers there is no such limit. */
#if __has_include(<rdma/fabric.h>)
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

enum { SLOTS = 1024 };

struct plain {
    struct fid_fabric* fabric;
    struct fid_domain* domain;
    struct fid_ep* endpoint;
    struct fid_cq* queue;
    struct fid_av* addresses;
    struct fid_mr* memory;
    char* bytes;
    int virtual_addresses;
    fi_addr_t peer;
    uint64_t there;
    uint64_t key;
    struct fi_context2 contexts[SLOTS];
};

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static struct fi_info* find(void* library, const char* provider, const char* device) {
    struct fi_info* (*dup)(const struct fi_info*) = (void*)dlsym(library, "fi_dupinfo");
    int (*get)(uint32_t, const char*, const char*, uint64_t, const struct fi_info*,
               struct fi_info**) = (void*)dlsym(library, "fi_getinfo");
    struct fi_info* hints = dup(NULL);
    struct fi_info* found = NULL;
    hints->fabric_attr->prov_name = strdup(provider);
    hints->domain_attr->name = *device == '\0' ? NULL : strdup(device);
    hints->caps = FI_MSG | FI_RMA;
    hints->mode = FI_CONTEXT | FI_CONTEXT2;
    hints->ep_attr->type = FI_EP_RDM;
    hints->domain_attr->mr_mode =
        FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    get(FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION), NULL, NULL, 0, hints, &found);
    return found;
}

/* An endpoint and registered memory, or null. Lives as long as the process. */
void* fabric_open(const char* path, const char* provider, const char* device, void* memory,
                  size_t size, uint64_t key) {
    void* library = dlopen(path, RTLD_NOW);
    struct plain* made = calloc(1, sizeof(*made));
    struct fi_info* info = library == NULL ? NULL : find(library, provider, device);
    int (*open)(struct fi_fabric_attr*, struct fid_fabric**, void*) =
        library == NULL ? NULL : (void*)dlsym(library, "fi_fabric");
    struct fi_cq_attr queue = {.format = FI_CQ_FORMAT_CONTEXT, .size = 4096};
    struct fi_av_attr addresses = {.type = FI_AV_TABLE};
    if (info == NULL || open(info->fabric_attr, &made->fabric, NULL) ||
        fi_domain(made->fabric, info, &made->domain, NULL) ||
        fi_cq_open(made->domain, &queue, &made->queue, NULL) ||
        fi_av_open(made->domain, &addresses, &made->addresses, NULL) ||
        fi_endpoint(made->domain, info, &made->endpoint, NULL) ||
        fi_ep_bind(made->endpoint, &made->addresses->fid, 0) ||
        fi_ep_bind(made->endpoint, &made->queue->fid, FI_TRANSMIT | FI_RECV) ||
        fi_enable(made->endpoint) ||
        fi_mr_reg(made->domain, memory, size,
                  FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE, 0, key, 0, &made->memory,
                  NULL)) {
        return NULL;
    }
    made->bytes = memory;
    made->virtual_addresses = (info->domain_attr->mr_mode & FI_MR_VIRT_ADDR) != 0;
    return made;
}

/* Where it is: the length of what is written to `out`, or a negative error. */
long fabric_name(struct plain* own, void* out, size_t room) {
    int error = fi_getname(&own->endpoint->fid, out, &room);
    return error != 0 ? error : (long)room;
}

uint64_t fabric_key(struct plain* own) { return fi_mr_key(own->memory); }
uint64_t fabric_base(struct plain* own) {
    return own->virtual_addresses ? (uint64_t)(uintptr_t)own->bytes : 0;
}

int fabric_connect(struct plain* own, const void* name, uint64_t there, uint64_t key) {
    own->there = there;
    own->key = key;
    return fi_av_insert(own->addresses, name, 1, &own->peer, 0, NULL) == 1 ? 0 : -1;
}

/* How many operations have ended; negative: one failed. */
static long look(struct plain* own) {
    struct fi_cq_entry entries[32];
    ssize_t count = fi_cq_read(own->queue, entries, 32);
    return count == -FI_EAGAIN ? 0 : count;
}

/* Answers for so many seconds. */
void fabric_serve(struct plain* own, double seconds) {
    for (double end = now() + seconds; now() < end;) {
        for (int i = 0; i < 100; ++i) {
            look(own);
        }
    }
}

/* Seconds for the first `size` bytes in pieces, each delivered; negative: an error. */
double fabric_move(struct plain* own, int read, size_t size, size_t piece) {
    double start = now();
    size_t posted = 0;
    size_t ended = 0;
    size_t count = (size + piece - 1) / piece;
    while (ended < count) {
        while (posted < count && posted - ended < SLOTS) {
            size_t at = posted * piece;
            size_t part = size - at < piece ? size - at : piece;
            void* descriptor = fi_mr_desc(own->memory);
            struct iovec here = {own->bytes + at, part};
            struct fi_rma_iov there = {own->there + at, part, own->key};
            struct fi_msg_rma message = {.msg_iov = &here,
                                         .desc = &descriptor,
                                         .iov_count = 1,
                                         .addr = own->peer,
                                         .rma_iov = &there,
                                         .rma_iov_count = 1,
                                         .context = &own->contexts[posted % SLOTS]};
            uint64_t flags = FI_DELIVERY_COMPLETE | FI_COMPLETION;
            ssize_t error = read ? fi_readmsg(own->endpoint, &message, flags)
                                 : fi_writemsg(own->endpoint, &message, flags);
            if (error == -FI_EAGAIN) {
                break;
            }
            if (error != 0) {
                return (double)error;
            }
            ++posted;
        }
        long more = look(own);
        if (more < 0 || now() > start + 60) {
            return more < 0 ? (double)more : -FI_ETIMEDOUT;
        }
        ended += (size_t)more;
    }
    return now() - start;
}
#else
void* fabric_open(void) { return 0; }
#endif
