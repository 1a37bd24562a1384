// The 39 host functions of proxy-wasm 0.2.1, module `env`. All parameters are u32 but the values of metrics; all give a status.
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

// F(name, parameters)
#define PROXY_WASM_FUNCTIONS(F) \
    F(log, 3) F(get_log_level, 1) F(get_current_time_nanoseconds, 1) F(set_tick_period_milliseconds, 1) \
    F(get_buffer_bytes, 5) F(set_buffer_bytes, 5) F(get_buffer_status, 3) \
    F(get_header_map_size, 2) F(get_header_map_pairs, 3) F(set_header_map_pairs, 3) F(get_header_map_value, 5) \
    F(add_header_map_value, 5) F(replace_header_map_value, 5) F(remove_header_map_value, 3) \
    F(continue_stream, 1) F(close_stream, 1) F(get_status, 3) F(send_local_response, 8) \
    F(http_call, 10) F(grpc_call, 12) F(grpc_stream, 9) F(grpc_send, 4) F(grpc_cancel, 1) F(grpc_close, 1) \
    F(set_shared_data, 5) F(get_shared_data, 5) \
    F(register_shared_queue, 3) F(resolve_shared_queue, 5) F(enqueue_shared_queue, 3) F(dequeue_shared_queue, 3) \
    F(define_metric, 4) F(get_metric, 2) F(get_property, 4) F(set_property, 4) F(call_foreign_function, 6) \
    F(done, 0) F(set_effective_context, 1)
// The two with (u32, u64).
#define PROXY_WASM_METRIC_FUNCTIONS(F) F(record_metric) F(increment_metric)

#define ARGS_0 void
#define ARGS_1 u32
#define ARGS_2 ARGS_1, u32
#define ARGS_3 ARGS_2, u32
#define ARGS_4 ARGS_3, u32
#define ARGS_5 ARGS_4, u32
#define ARGS_6 ARGS_5, u32
#define ARGS_7 ARGS_6, u32
#define ARGS_8 ARGS_7, u32
#define ARGS_9 ARGS_8, u32
#define ARGS_10 ARGS_9, u32
#define ARGS_11 ARGS_10, u32
#define ARGS_12 ARGS_11, u32

#define IMPORT_PROXY(fn) __attribute__((import_module("env"), import_name("proxy_" #fn))) extern u32
#define DECLARE(fn, n) IMPORT_PROXY(fn) proxy_##fn(ARGS_##n);
PROXY_WASM_FUNCTIONS(DECLARE)
#undef DECLARE
#define DECLARE(fn) IMPORT_PROXY(fn) proxy_##fn(u32, u64);
PROXY_WASM_METRIC_FUNCTIONS(DECLARE)
#undef DECLARE
#undef IMPORT_PROXY

enum { OK, NOT_FOUND, BAD_ARGUMENT };
enum { CONTINUE, PAUSE };
enum { CALL_BODY = 4, VM_CONFIG = 6, PLUGIN_CONFIG = 7 };
enum { REQUEST_HEADERS = 0, RESPONSE_HEADERS = 2, CALL_HEADERS = 6 };
