/* A library that the loader cannot find, for a plugin that needs it. */
__attribute__((visibility("default"))) int nixlTestMissingFunction(void) {
    return 1;
}
