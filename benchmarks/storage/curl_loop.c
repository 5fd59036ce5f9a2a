/* A plain libcurl loop, the limit that obj_peers.py shows: so many connections, URLs that are
 * signed already, bytes from and to one buffer, nothing checked but the status.
 *
 *   cc -O2 -o curl_loop curl_loop.c -lcurl
 *   curl_loop put|get SIZE CONNECTIONS < URLS        prints the seconds it took */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static char* buffer;
static size_t size;

struct Slot {
    CURL* easy;
    size_t at;
};

static size_t take(char* data, size_t one, size_t count, void* self) {
    struct Slot* slot = self;
    if (slot->at + one * count <= size) {
        memcpy(buffer + slot->at, data, one * count);
    }
    slot->at += one * count;
    return one * count;
}

static size_t give(char* to, size_t one, size_t count, void* self) {
    struct Slot* slot = self;
    size_t step = one * count;
    if (step > size - slot->at) {
        step = size - slot->at;
    }
    memcpy(to, buffer + slot->at, step);
    slot->at += step;
    return step;
}

static int begin(CURLM* multi, struct Slot* slot, int put, struct curl_slist* headers) {
    char line[8192];
    if (fgets(line, sizeof(line), stdin) == NULL) {
        return 0;
    }
    line[strcspn(line, "\n")] = '\0';
    slot->at = 0;
    curl_easy_reset(slot->easy);
    curl_easy_setopt(slot->easy, CURLOPT_URL, line);
    curl_easy_setopt(slot->easy, CURLOPT_PRIVATE, slot);
    curl_easy_setopt(slot->easy, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(slot->easy, CURLOPT_BUFFERSIZE, 256L << 10);
    curl_easy_setopt(slot->easy, CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
    curl_easy_setopt(slot->easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(slot->easy, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(slot->easy, CURLOPT_WRITEDATA, slot);
    if (put) {
        curl_easy_setopt(slot->easy, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(slot->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)size);
        curl_easy_setopt(slot->easy, CURLOPT_READFUNCTION, give);
        curl_easy_setopt(slot->easy, CURLOPT_READDATA, slot);
    }
    curl_multi_add_handle(multi, slot->easy);
    return 1;
}

int main(int argc, char** argv) {
    if (argc != 4) {
        return 2;
    }
    const int put = strcmp(argv[1], "put") == 0;
    const int connections = atoi(argv[3]);
    size = strtoull(argv[2], NULL, 10);
    buffer = malloc(size);
    memset(buffer, 1, size);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    CURLM* multi = curl_multi_init();
    struct curl_slist* headers = curl_slist_append(NULL, "Expect:");
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    int running = 0;
    for (int i = 0; i < connections; ++i) {
        struct Slot* slot = calloc(1, sizeof(*slot));
        slot->easy = curl_easy_init();
        running += begin(multi, slot, put, headers);
    }
    while (running > 0) {
        int still, left;
        curl_multi_perform(multi, &still);
        CURLMsg* message;
        while ((message = curl_multi_info_read(multi, &left)) != NULL) {
            struct Slot* slot;
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char**)&slot);
            if (message->data.result != CURLE_OK) {
                fprintf(stderr, "%s\n", curl_easy_strerror(message->data.result));
                return 1;
            }
            curl_multi_remove_handle(multi, slot->easy);
            running += begin(multi, slot, put, headers) - 1;
        }
        if (running > 0) {
            curl_multi_poll(multi, NULL, 0, 1000, NULL);
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double seconds = (double)(end.tv_sec - start.tv_sec);
    printf("%.6f\n", seconds + (double)(end.tv_nsec - start.tv_nsec) / 1e9);
    return 0;
}
