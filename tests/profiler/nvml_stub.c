/* A stand-in for libnvidia-ml.so.1 whose truth is known: power follows what the test says, on a clock that the test advances.
 * In real time it may also follow this process's work: `cpu_watts` more for each core that it keeps busy.
 *
 * Each device has a true power (a knob, or a piecewise linear trace) and a sensor that sees it during `fraction` of each `period`
 * from `phase` on, times `gain`, with relative `noise` per step.  The energy counter adds up what the sensor saw and shows it in
 * whole millijoules at the end of each period.  `fail` makes any call, or any power field, return an error code from some call on.
 *
 * In a process of its own: NVML_STUB="real_time=1,watts=200,devices=2" and LD_LIBRARY_PATH to its folder.
 * gcc -shared -fPIC -O2 -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 nvml_stub.c -lm
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEVICES 4
#define STEP 1e-3 /* longest step of the integration, seconds */
#define POINTS 256
#define FAILURES 64
#define EPSILON 1e-9

typedef struct {
    /* knobs: doubles, by name */
    double watts, period, phase, fraction, gain, noise, power_period, ambient, kelvin_per_watt, thermal_seconds;
    double sm_clock, memory_clock, throttle, mig, virtualisation, architecture, lost, counter_joules, temperature, module_watts, cpu_watts;
    /* state */
    double true_joules, seen_joules, seen_seconds, tick_seconds, instant_joules, instant_seconds, instant, average;
    double trace_t[POINTS], trace_w[POINTS], trace_start;
    int points, repeat, pids[16], n_pids;
    uint64_t shown_millijoules;
    char uuid[96], name[96], bus_id[32];
} device_t;

static const struct { const char *name; size_t at; } KNOBS[] = {
#define KNOB(k) {#k, offsetof(device_t, k)}
    KNOB(watts), KNOB(period), KNOB(phase), KNOB(fraction), KNOB(gain), KNOB(noise), KNOB(power_period), KNOB(ambient),
    KNOB(kelvin_per_watt), KNOB(thermal_seconds), KNOB(sm_clock), KNOB(memory_clock), KNOB(throttle), KNOB(mig),
    KNOB(virtualisation), KNOB(architecture), KNOB(lost), KNOB(counter_joules), KNOB(temperature), KNOB(module_watts),
    KNOB(true_joules), KNOB(cpu_watts)};

static device_t devices[DEVICES];
static struct { char call[64]; int code; long after; } failures[FAILURES];
static int n_failures, n_devices, real_time;
static double now, real_start, busy_seconds, busy_cores;
static uint64_t random_state;

/* ---- the world ---- */

static double uniform(void) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return ((random_state >> 11) + 0.5) / 9007199254740992.0;
}
static double normal(void) { return sqrt(-2 * log(uniform())) * cos(2 * M_PI * uniform()); }

/* What the sensor makes of a true value; never less than nothing. */
static double read_as(const device_t *d, double value) { return value * d->gain * fmax(0, 1 + d->noise * normal()); }

static double power_at(const device_t *d, double t) {
    if (!d->points) return d->watts + d->cpu_watts * busy_cores;
    double length = d->trace_t[d->points - 1], s = t - d->trace_start;
    if (d->repeat) s = fmod(s, length);
    for (int i = 1; i < d->points; i++)
        if (s < d->trace_t[i]) {
            double width = d->trace_t[i] - d->trace_t[i - 1], share = (s - d->trace_t[i - 1]) / width;
            return d->trace_w[i - 1] + share * (d->trace_w[i] - d->trace_w[i - 1]);
        }
    return d->trace_w[d->points - 1];
}

/* Seconds until the next multiple of `width` after `t`. */
static double until(double t, double width) {
    double left = width - fmod(t, width);
    return left < EPSILON ? width : left;
}

static void tick(device_t *d) {
    double watts = d->seen_seconds > 0 ? read_as(d, d->seen_joules / d->seen_seconds) : 0;
    d->counter_joules += watts * d->tick_seconds;
    if (d->fraction < 1 && d->seen_seconds > 0) d->instant = watts; /* power comes from the same sensor, which knows no other */
    d->shown_millijoules = (uint64_t)(d->counter_joules * 1e3);
    d->seen_joules = d->seen_seconds = d->tick_seconds = 0;
}

static void advance(device_t *d, double t, double end) {
    while (end - t > EPSILON) {
        double in_period = fmod(t + d->period - fmod(d->phase, d->period), d->period), window = d->fraction * d->period;
        if (d->period - in_period < EPSILON) in_period = 0;
        double h = fmin(end - t, d->period - in_period);
        h = fmin(h, until(t, d->power_period));
        if (in_period < window - EPSILON) h = fmin(h, window - in_period);
        if (d->points || d->thermal_seconds > 0) h = fmin(h, STEP);
        double watts = power_at(d, t + h / 2);
        d->true_joules += watts * h;
        if (in_period < window - EPSILON) d->seen_joules += watts * h, d->seen_seconds += h;
        d->tick_seconds += h;
        d->instant_joules += watts * h, d->instant_seconds += h;
        d->average += (watts - d->average) * fmin(1, h / 0.5);
        if (d->thermal_seconds > 0)
            d->temperature += (d->ambient + d->kelvin_per_watt * watts - d->temperature) * h / d->thermal_seconds;
        if (d->period - in_period - h < EPSILON) tick(d);
        if (d->fraction == 1 && until(t, d->power_period) - h < EPSILON) {
            d->instant = read_as(d, d->instant_joules / d->instant_seconds);
            d->instant_joules = d->instant_seconds = 0;
        }
        t += h;
    }
}

void stub_advance(double seconds) {
    for (int i = 0; i < n_devices; i++) advance(&devices[i], now, now + seconds);
    now += seconds;
}

double stub_now(void) { return now; }

static double seconds_of(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}
static double monotonic(void) { return seconds_of(CLOCK_MONOTONIC); }

/* Let the world catch up with the machine: power since the last look is that of the work done meanwhile. */
static void catch_up(void) {
    double seconds = monotonic() - real_start - now, busy = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    if (seconds < 1e-4) return;
    busy_cores = (busy - busy_seconds) / seconds, busy_seconds = busy;
    stub_advance(seconds);
}

int stub_set(int device, const char *knob, double value) {
    for (size_t i = 0; i < sizeof KNOBS / sizeof *KNOBS; i++)
        if (!strcmp(knob, KNOBS[i].name)) {
            *(double *)((char *)&devices[device] + KNOBS[i].at) = value;
            if (!strcmp(knob, "counter_joules")) devices[device].shown_millijoules = (uint64_t)(value * 1e3);
            if (!strcmp(knob, "watts")) devices[device].points = 0;
            return 0;
        }
    return -1;
}

double stub_get(int device, const char *knob) {
    for (size_t i = 0; i < sizeof KNOBS / sizeof *KNOBS; i++)
        if (!strcmp(knob, KNOBS[i].name)) return *(double *)((char *)&devices[device] + KNOBS[i].at);
    return NAN;
}

void stub_text(int device, const char *uuid, const char *name, const char *bus_id) {
    snprintf(devices[device].uuid, 96, "%s", uuid);
    snprintf(devices[device].name, 96, "%s", name);
    snprintf(devices[device].bus_id, 32, "%s", bus_id);
}

/* Power over time from now on: straight lines between points; two points at one time are a step. */
void stub_trace(int device, const double *seconds, const double *watts, int n, int repeat) {
    device_t *d = &devices[device];
    d->points = n < POINTS ? n : POINTS, d->repeat = repeat, d->trace_start = now;
    memcpy(d->trace_t, seconds, d->points * sizeof *seconds);
    memcpy(d->trace_w, watts, d->points * sizeof *watts);
}

void stub_real_time(int on) { real_time = on, real_start = monotonic() - now, busy_seconds = seconds_of(CLOCK_PROCESS_CPUTIME_ID); }

void stub_processes(int device, const int *pids, int n) {
    devices[device].n_pids = n < 16 ? n : 16;
    memcpy(devices[device].pids, pids, devices[device].n_pids * sizeof *pids);
}

/* `call` (a symbol, or "field:186:0") returns `code` once it was called `after` times; code 0 heals it. */
void stub_fail(const char *call, int code, long after) {
    for (int i = 0; i < n_failures; i++)
        if (!strcmp(failures[i].call, call)) {
            failures[i].code = code, failures[i].after = after;
            return;
        }
    if (n_failures < FAILURES) {
        snprintf(failures[n_failures].call, 64, "%s", call);
        failures[n_failures].code = code, failures[n_failures++].after = after;
    }
}

void stub_reset(int count, uint64_t seed) {
    memset(devices, 0, sizeof devices);
    n_failures = 0, now = busy_cores = 0, real_time = 0, n_devices = count, random_state = seed * 2654435761u + 88172645463325252u;
    for (int i = 0; i < DEVICES; i++) {
        device_t *d = &devices[i];
        d->watts = d->instant = d->average = 30, d->period = 0.1, d->fraction = d->gain = 1, d->power_period = 0.025;
        d->temperature = d->ambient = 40, d->sm_clock = 1400, d->memory_clock = 5000, d->architecture = 8;
        d->counter_joules = 1000, d->shown_millijoules = 1000000;
        snprintf(d->uuid, 96, "GPU-%08d-0000-4000-8000-000000000000", i + 1);
        snprintf(d->name, 96, "Stub %d", i);
        snprintf(d->bus_id, 32, "00000000:%02X:00.0", i + 1);
    }
}

__attribute__((constructor)) static void configure(void) {
    stub_reset(1, 1);
    const char *given = getenv("NVML_STUB");
    char text[512], *rest = text, *part;
    snprintf(text, sizeof text, "%s", given ? given : "");
    while ((part = strtok_r(rest, ",", &rest))) {
        char *equals = strchr(part, '=');
        if (!equals) continue;
        *equals = 0;
        double value = atof(equals + 1);
        if (!strcmp(part, "real_time")) stub_real_time(value != 0);
        else if (!strcmp(part, "devices")) n_devices = (int)value;
        else if (!strncmp(part, "fail:", 5)) stub_fail(part + 5, (int)value, 0);
        else
            for (int i = 0; i < DEVICES; i++) stub_set(i, part, value);
    }
}

/* ---- NVML ---- */

typedef void *handle_t;
typedef struct { uint32_t field, scope; int64_t timestamp, latency; uint32_t type, code; union { double d; uint32_t u; uint64_t l; } value; } field_t;
typedef struct { uint32_t version, sensor; int32_t temperature; } temperature_t;
typedef struct { char legacy[16]; uint32_t domain, bus, device, pci_id, subsystem; char bus_id[32]; } pci_t;
typedef struct { uint32_t pid; uint64_t memory; uint32_t gpu_instance, compute_instance; } process_t;

enum { OK, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, LOST = 15 };

static int failure(const char *call) {
    if (real_time) catch_up();
    for (int i = 0; i < n_failures; i++)
        if (!strcmp(failures[i].call, call)) return failures[i].after-- > 0 ? OK : (failures[i].after = 0, failures[i].code);
    return OK;
}

#define CALL() do { int code = failure(__func__); if (code) return code; } while (0)
#define DEVICE() \
    CALL(); \
    if (!h || (intptr_t)h > n_devices) return INVALID; \
    device_t *d = &devices[(intptr_t)h - 1]; \
    if (d->lost) return LOST

static int text(char *out, unsigned n, const char *value) { return snprintf(out, n, "%s", value) < (int)n ? OK : INSUFFICIENT_SIZE; }

int nvmlInitWithFlags(unsigned flags) { (void)flags; CALL(); return OK; }
int nvmlShutdown(void) { CALL(); return OK; }
const char *nvmlErrorString(int code) { (void)code; return "stub error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { CALL(); return text(out, n, "580.00.stub"); }
int nvmlSystemGetNVMLVersion(char *out, unsigned n) { CALL(); return text(out, n, "13.580.stub"); }
int nvmlDeviceGetCount_v2(unsigned *n) { CALL(); *n = n_devices; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, handle_t *out) {
    CALL();
    if (i >= (unsigned)n_devices) return INVALID;
    *out = (handle_t)(intptr_t)(i + 1);
    return OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, handle_t *out) {
    CALL();
    for (int i = 0; i < n_devices; i++)
        if (!strcmp(uuid, devices[i].uuid)) { *out = (handle_t)(intptr_t)(i + 1); return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetName(handle_t h, char *out, unsigned n) { DEVICE(); return text(out, n, d->name); }
int nvmlDeviceGetUUID(handle_t h, char *out, unsigned n) { DEVICE(); return text(out, n, d->uuid); }
int nvmlDeviceGetPciInfo_v3(handle_t h, pci_t *out) {
    DEVICE();
    memset(out, 0, sizeof *out);
    return text(out->bus_id, sizeof out->bus_id, d->bus_id);
}
int nvmlDeviceGetArchitecture(handle_t h, unsigned *out) { DEVICE(); *out = (unsigned)d->architecture; return OK; }
int nvmlDeviceGetMigMode(handle_t h, unsigned *current, unsigned *pending) {
    DEVICE();
    if (d->mig < 0) return NOT_SUPPORTED;
    *current = *pending = (unsigned)d->mig;
    return OK;
}
int nvmlDeviceGetVirtualizationMode(handle_t h, uint64_t *out) { DEVICE(); *out = (uint64_t)d->virtualisation; return OK; }
int nvmlDeviceGetTotalEnergyConsumption(handle_t h, uint64_t *out) { DEVICE(); *out = d->shown_millijoules; return OK; }
int nvmlDeviceGetPowerUsage(handle_t h, unsigned *out) { DEVICE(); *out = (unsigned)(d->average * d->gain * 1e3); return OK; }
int nvmlDeviceGetFieldValues(handle_t h, int n, field_t *fields) {
    DEVICE();
    for (int i = 0; i < n; i++) {
        field_t *f = &fields[i];
        char key[32];
        snprintf(key, sizeof key, "field:%u:%u", f->field, f->scope);
        f->type = 1;
        double more = f->scope == 1 ? d->module_watts : 0; /* a module is the GPU and its CPU */
        f->code = f->scope == 0 || more > 0 ? failure(key) : NOT_SUPPORTED;
        if (f->field == 186) f->value.u = (uint32_t)((d->instant + more) * 1e3);
        else if (f->field == 185) f->value.u = (uint32_t)((d->average * d->gain + more) * 1e3);
        else f->code = INVALID;
    }
    return OK;
}
int nvmlDeviceGetTemperatureV(handle_t h, temperature_t *out) { DEVICE(); out->temperature = (int)lround(d->temperature); return OK; }
int nvmlDeviceGetTemperature(handle_t h, int sensor, unsigned *out) { (void)sensor; DEVICE(); *out = (unsigned)lround(d->temperature); return OK; }
int nvmlDeviceGetClockInfo(handle_t h, int type, unsigned *out) { DEVICE(); *out = (unsigned)(type == 2 ? d->memory_clock : d->sm_clock); return OK; }
int nvmlDeviceGetCurrentClocksEventReasons(handle_t h, uint64_t *out) { DEVICE(); *out = (uint64_t)d->throttle; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(handle_t h, uint64_t *out) { DEVICE(); *out = (uint64_t)d->throttle; return OK; }
int nvmlDeviceGetComputeRunningProcesses_v3(handle_t h, unsigned *n, process_t *out) {
    DEVICE();
    unsigned room = *n;
    *n = d->n_pids;
    if (room < (unsigned)d->n_pids) return INSUFFICIENT_SIZE;
    for (int i = 0; i < d->n_pids; i++) out[i] = (process_t){d->pids[i], 0, 0xFFFFFFFF, 0xFFFFFFFF};
    return OK;
}
