;; An http-wasm handler that sets `x-demo-handled` on the request and on the response. The value is the handler's
;; configuration, `1` without one. The response header is set ahead of time, so nothing has to be buffered.
(module
  (import "http_handler" "get_config" (func $get_config (param i32 i32) (result i32)))
  (import "http_handler" "log" (func $log (param i32 i32 i32)))
  (import "http_handler" "set_header_value" (func $set_header (param i32 i32 i32 i32 i32)))

  (memory (export "memory") 1)
  (data (i32.const 0) "x-demo-handled")
  (data (i32.const 32) "the configuration is longer than 256 bytes")
  (data (i32.const 1024) "1")
  ;; The value is at 1024.
  (global $length (mut i32) (i32.const 1))

  ;; Runs once in the life of a VM. Ending here in a trap tells the gateway that the configuration is of no use.
  (func (export "_initialize") (local $n i32)
    (local.set $n (call $get_config (i32.const 1024) (i32.const 256)))
    (if (i32.gt_u (local.get $n) (i32.const 256))
      (then
        (call $log (i32.const 2) (i32.const 32) (i32.const 42))
        (unreachable)))
    (if (local.get $n)
      (then (global.set $length (local.get $n)))))

  ;; 1 in the low word: go on to the upstream.
  (func (export "handle_request") (result i64)
    (call $set_header (i32.const 0) (i32.const 0) (i32.const 14) (i32.const 1024) (global.get $length))
    (call $set_header (i32.const 1) (i32.const 0) (i32.const 14) (i32.const 1024) (global.get $length))
    (i64.const 1))

  (func (export "handle_response") (param $context i32) (param $is_error i32)))
