/* A libnvidia-ml.so.1 that real pynvml loads: what NVML's confidential-computing calls answer is what the simulated
 * machine's daemon says, so every process sees one state. Layouts: nvml.h 13. Protocol: protocol.py.
 *
 * Build: cc -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 nvml_stub.c
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

typedef int Return;
typedef struct Device *Handle; /* index + 1 */

typedef struct {
    unsigned environment, cc_feature, devtools, multi_gpu, cpu, capable, count, ready;
} Mode;

typedef struct {
    unsigned environment, cc_feature, devtools;
} SystemState;

typedef struct {
    unsigned version, environment, cc_feature, devtools, multi_gpu;
} Settings;

typedef struct {
    unsigned cpu, gpus;
} Capabilities;

typedef struct {
    unsigned size, attestation_size;
    unsigned char chain[0x1000], attestation_chain[0x1400];
} Certificate;

typedef struct {
    unsigned has_cec, size, cec_size;
    unsigned char nonce[0x20], report[0x2000], cec_report[0x1000];
} Report;

#define SETTINGS_V1 (sizeof(Settings) | 1u << 24)
#define LINE 0x8000

static int users;

/* One question on a connection of its own: forks share nothing. The answer's words go to `words`, of LINE bytes. */
static Return ask(const char *question, char *words)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("ANTECHAMBER_SIM_SOCKET");
    char line[LINE];
    size_t used = 0;
    ssize_t got;
    int fd;

    if (!path || strlen(path) >= sizeof address.sun_path)
        return DRIVER_NOT_LOADED;
    strcpy(address.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return UNKNOWN;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) ||
        send(fd, question, strlen(question), MSG_NOSIGNAL) != (ssize_t)strlen(question)) {
        close(fd);
        return DRIVER_NOT_LOADED;
    }
    while (used < sizeof line - 1 && (got = read(fd, line + used, sizeof line - 1 - used)) > 0) {
        used += (size_t)got;
        if (line[used - 1] == '\n')
            break;
    }
    close(fd);
    line[used] = 0;
    if (!strncmp(line, "nvml ", 5))
        return atoi(line + 5);
    if (strncmp(line, "ok", 2) || !used || line[used - 1] != '\n')
        return UNKNOWN;
    strcpy(words, line[2] == ' ' ? line + 3 : line + 2);
    return SUCCESS;
}

static Return read_mode(Mode *m)
{
    char words[LINE];
    Return code = users ? ask("mode\n", words) : UNINITIALIZED;

    if (code)
        return code;
    if (sscanf(words, "%u %u %u %u %u %u %u %u", &m->environment, &m->cc_feature, &m->devtools, &m->multi_gpu,
               &m->cpu, &m->capable, &m->count, &m->ready) != 8)
        return UNKNOWN;
    return SUCCESS;
}

/* Bytes from hex; their number, or 0 where they do not fit. */
static unsigned from_hex(const char *hex, unsigned char *out, size_t room)
{
    size_t size = strspn(hex, "0123456789abcdef") / 2, i;
    unsigned byte;

    if (size > room)
        return 0;
    for (i = 0; i < size; i++) {
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
            return 0;
        out[i] = (unsigned char)byte;
    }
    return (unsigned)size;
}

/* The word number `which` of what the machine says of a GPU: uuid, architecture, its number, VBIOS, driver. */
static Return describe(Handle handle, int which, char *out, unsigned size)
{
    char question[64], words[LINE], *word;
    Return code;

    if (!users)
        return UNINITIALIZED;
    snprintf(question, sizeof question, "gpu %ld\n", (long)handle - 1);
    code = ask(question, words);
    if (code)
        return code;
    for (word = strtok(words, " \n"); word && which; which--)
        word = strtok(NULL, " \n");
    if (!word)
        return UNKNOWN;
    if (strlen(word) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(out, word);
    return SUCCESS;
}

Return nvmlInitWithFlags(unsigned flags)
{
    char words[LINE];
    Return code = ask("mode\n", words);

    (void)flags;
    users += !code;
    return code;
}

Return nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

Return nvmlShutdown(void)
{
    if (!users)
        return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(Return code)
{
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case VERSION_MISMATCH: return "Argument Version Mismatch";
    default: return "Unknown Error";
    }
}

Return nvmlDeviceGetCount_v2(unsigned *count)
{
    Mode mode;
    Return code = read_mode(&mode);

    *count = code ? 0 : mode.count;
    return code;
}

Return nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle *handle)
{
    Mode mode;
    Return code = read_mode(&mode);

    if (code)
        return code;
    if (index >= mode.count)
        return INVALID_ARGUMENT;
    *handle = (Handle)(long)(index + 1);
    return SUCCESS;
}

Return nvmlDeviceGetUUID(Handle handle, char *out, unsigned size)
{
    return describe(handle, 0, out, size);
}

Return nvmlDeviceGetArchitecture(Handle handle, unsigned *architecture)
{
    char number[16];
    Return code = describe(handle, 2, number, sizeof number);

    if (!code)
        *architecture = (unsigned)atoi(number);
    return code;
}

Return nvmlDeviceGetVbiosVersion(Handle handle, char *out, unsigned size)
{
    return describe(handle, 3, out, size);
}

Return nvmlSystemGetDriverVersion(char *out, unsigned size)
{
    return describe((Handle)1, 4, out, size);
}

Return nvmlSystemGetConfComputeCapabilities(Capabilities *out)
{
    Mode mode;
    Return code = read_mode(&mode);

    if (!code)
        *out = (Capabilities){mode.cpu, mode.capable};
    return code;
}

Return nvmlSystemGetConfComputeState(SystemState *out)
{
    Mode mode;
    Return code = read_mode(&mode);

    if (!code)
        *out = (SystemState){mode.environment, mode.cc_feature, mode.devtools};
    return code;
}

Return nvmlSystemGetConfComputeSettings(Settings *out)
{
    Mode mode;
    Return code = read_mode(&mode);

    if (code)
        return code;
    if (out->version != SETTINGS_V1)
        return VERSION_MISMATCH;
    *out = (Settings){SETTINGS_V1, mode.environment, mode.cc_feature, mode.devtools, mode.multi_gpu};
    return SUCCESS;
}

Return nvmlSystemGetConfComputeGpusReadyState(unsigned *ready)
{
    Mode mode;
    Return code = read_mode(&mode);

    if (!code)
        *ready = mode.ready;
    return code;
}

Return nvmlSystemSetConfComputeGpusReadyState(unsigned ready)
{
    char words[LINE];

    if (!users)
        return UNINITIALIZED;
    return ask(ready ? "set-ready 1\n" : "set-ready 0\n", words);
}

Return nvmlDeviceGetConfComputeGpuCertificate(Handle handle, Certificate *out)
{
    char question[64], words[LINE];
    Return code;

    if (!users)
        return UNINITIALIZED;
    snprintf(question, sizeof question, "certificate %ld\n", (long)handle - 1);
    code = ask(question, words);
    if (code)
        return code;
    out->size = 0; /* as on Hopper: only the attestation chain is filled */
    out->attestation_size = from_hex(words, out->attestation_chain, sizeof out->attestation_chain);
    return out->attestation_size ? SUCCESS : UNKNOWN;
}

Return nvmlDeviceGetConfComputeGpuAttestationReport(Handle handle, Report *out)
{
    char question[128], words[LINE];
    Return code;
    int used, i;

    if (!users)
        return UNINITIALIZED;
    used = snprintf(question, sizeof question, "report %ld ", (long)handle - 1);
    for (i = 0; i < 0x20; i++)
        used += snprintf(question + used, sizeof question - (size_t)used, "%02x", out->nonce[i]);
    strcpy(question + used, "\n");
    code = ask(question, words);
    if (code)
        return code;
    out->has_cec = out->cec_size = 0;
    out->size = from_hex(words, out->report, sizeof out->report);
    return out->size ? SUCCESS : UNKNOWN;
}
