// A proxy-wasm filter (ABI 0.2.1) without a library: it tells the upstream and the client its configuration in `x-edge`,
// whatever they sent there themselves, and takes `server` out of answers. Without a configuration it does not start.
typedef unsigned int u32;

#define HOST(name) __attribute__((import_module("env"), import_name(#name))) extern u32 name
#define EXPORT(name) __attribute__((export_name(#name))) name

HOST(proxy_log)(u32 level, const char *text, u32 len);
HOST(proxy_get_buffer_bytes)(u32 buffer, u32 start, u32 most, char **data, u32 *len);
HOST(proxy_replace_header_map_value)(u32 map, const char *name, u32 name_len, const char *value, u32 value_len);
HOST(proxy_remove_header_map_value)(u32 map, const char *name, u32 name_len);

enum { OK = 0, ERROR = 4, PLUGIN_CONFIGURATION = 7 };
enum { REQUEST = 0, RESPONSE = 2, CONTINUE = 0 };
#define TEXT(s) s, sizeof(s) - 1

static char memory[1024], *config;
static u32 used, config_len;

void EXPORT(proxy_abi_version_0_2_1)(void) {}

// Where the host puts what it hands over: here nothing but the configuration, which lasts as long as the VM.
void *EXPORT(proxy_on_memory_allocate)(u32 size) {
  if (size > sizeof memory - used)
    return 0;
  used += size;
  return memory + used - size;
}

u32 EXPORT(proxy_on_configure)(u32 root, u32 size) {
  (void)root;
  if (size && proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, size, &config, &config_len) == OK)
    return 1;
  proxy_log(ERROR, TEXT("`config` is missing or over 1024 bytes: it is the value of `x-edge`"));
  return 0;
}

u32 EXPORT(proxy_on_request_headers)(u32 stream, u32 count, u32 end) {
  (void)stream, (void)count, (void)end;
  proxy_replace_header_map_value(REQUEST, TEXT("x-edge"), config, config_len);
  return CONTINUE;
}

u32 EXPORT(proxy_on_response_headers)(u32 stream, u32 count, u32 end) {
  (void)stream, (void)count, (void)end;
  proxy_replace_header_map_value(RESPONSE, TEXT("x-edge"), config, config_len);
  proxy_remove_header_map_value(RESPONSE, TEXT("server"));
  return CONTINUE;
}
