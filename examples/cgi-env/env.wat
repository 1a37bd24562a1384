;; A CGI program (RFC 3875): answers with its meta-variables, one a line.
(module
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)

  ;; One iovec at 0, the count written at 8, the number and bytes of variables at 12 and 16.
  (data (i32.const 32) "Content-Type: text/plain; charset=utf-8\r\n\r\n")

  (func $write (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable)))

  (func (export "_start") (local $buffer i32) (local $at i32) (local $end i32)
    (if (call $environ_sizes_get (i32.const 12) (i32.const 16)) (then unreachable))
    ;; The pointers go to 1024, the text behind them.
    (local.set $buffer
      (i32.add (i32.const 1024) (i32.shl (i32.load (i32.const 12)) (i32.const 2))))
    (local.set $end (i32.add (local.get $buffer) (i32.load (i32.const 16))))
    (if (i32.gt_u (local.get $end) (i32.const 262144)) (then unreachable))
    (if (call $environ_get (i32.const 1024) (local.get $buffer)) (then unreachable))
    ;; Each variable ends in NUL; make that a new line.
    (local.set $at (local.get $buffer))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (if (i32.eqz (i32.load8_u (local.get $at)))
          (then (i32.store8 (local.get $at) (i32.const 10))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (call $write (i32.const 32) (i32.const 43))
    (call $write (local.get $buffer) (i32.sub (local.get $end) (local.get $buffer)))))
