/* In place of libFuzzer, where there is only gcc: runs each input that the command line names. */

#include "input.h"

int main(int count, char **names)
{
    for (int i = 1; i < count; i++) {
        static uint8_t bytes[1 << 16];
        FILE *file = fopen(names[i], "rb");
        size_t size;
        uint8_t *exact;
        if (file == NULL) {
            perror(names[i]);
            return 1;
        }
        size = fread(bytes, 1, sizeof bytes, file);
        fclose(file);
        exact = malloc(size + 1); /* so that AddressSanitizer sees its end */
        if (exact == NULL)
            return 1;
        memcpy(exact, bytes, size);
        (void)LLVMFuzzerTestOneInput(exact, size);
        free(exact);
    }
    printf("replayed %d inputs\n", count - 1);
    return 0;
}
