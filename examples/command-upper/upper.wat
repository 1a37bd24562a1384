;; A WASI command: standard input to standard output, ASCII letters in upper case.
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)

  ;; One iovec at 0 (address, length), the count read or written at 8, the buffer from 1024.
  (global $buffer i32 (i32.const 1024))
  (global $capacity i32 (i32.const 65536))

  (func $upper (param $at i32) (param $end i32) (local $byte i32)
    (loop $next
      (local.set $byte (i32.load8_u (local.get $at)))
      (if (i32.lt_u (i32.sub (local.get $byte) (i32.const 0x61)) (i32.const 26))
        (then (i32.store8 (local.get $at) (i32.sub (local.get $byte) (i32.const 0x20)))))
      (br_if $next
        (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 1))) (local.get $end)))))

  (func $write_all (param $at i32) (param $end i32)
    (loop $next
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (i32.sub (local.get $end) (local.get $at)))
      (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end)))))

  (func (export "_start") (local $end i32)
    (loop $next
      (i32.store (i32.const 0) (global.get $buffer))
      (i32.store (i32.const 4) (global.get $capacity))
      (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
      (if (i32.load (i32.const 8))
        (then
          (local.set $end (i32.add (global.get $buffer) (i32.load (i32.const 8))))
          (call $upper (global.get $buffer) (local.get $end))
          (call $write_all (global.get $buffer) (local.get $end))
          (br $next))))))
