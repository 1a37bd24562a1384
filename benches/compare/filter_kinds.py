"""What `filters` asks for: scripts of the scripted filter, routes that run them, and kinds of requests with what they may give."""

import collections

# Of the scripted filter's all but a request's trailers and foreign functions, of which the gateway does not tell, and the
# allocator, which may not count.
CALLBACKS = (
    "start configure create request_headers request_body response_headers response_body response_trailers call queue tick "
    "done log delete grpc_initial grpc_message grpc_trailing grpc_close"
).split()


def counted():
    """A VM's script that counts each callback."""
    return "; ".join(f"{name}: define_metric 0 s:told_{name} u; {name}: increment_metric $ 1" for name in CALLBACKS)


def call(upstream, path, timeout=5000, body="0 0"):
    return f"http_call s:{upstream} m::method=GET,:path={path},:authority=origin {body} 0 0 {timeout} u"


def local(status, callback="request_headers"):
    return f"{callback}: send_local_response {status} 0 0 s:local 0 0 -1"


def every(callback, *operations):
    return "; ".join(f"{callback}: {operation}" for operation in operations)


# Most of the host functions, in all callbacks of a stream and of the root.
EVERYTHING = "; ".join((
    "configure: set_tick_period_milliseconds 50; configure: register_shared_queue s:jobs u",
    "tick: " + call("origin", "/tick"),
    every("call", "get_header_map_value 6 s::status b", "get_buffer_bytes 4 0 -1 b", "all? continue_stream 0"),
    "queue: dequeue_shared_queue $1 b",
    every("request_headers", "add_header_map_value 0 s:x-added s:1", "replace_header_map_value 0 s:x-replaced s:1", "remove_header_map_value 0 s:x-none"),
    every("request_headers", "get_header_map_size 0 u", "get_property s:request%00path b", "set_property s:mine s:v", "get_property s:mine b"),
    every("request_headers", "resolve_shared_queue s:everything s:jobs u", "enqueue_shared_queue $ s:job"),
    every("request_headers", "get_shared_data s:key b u", "set_shared_data s:key s:value $"),
    every("request_headers", "define_metric 1 s:depth u", "record_metric $ 41", "get_metric $ U", "define_metric 2 s:size u", "record_metric $ 300"),
    every("request_headers", "get_current_time_nanoseconds U", "get_log_level u", "log 0 s:text", "call_foreign_function s:clear_route_cache 0 0 0 0"),
    every("request_headers", call("origin", "/one"), call("origin", "/two", body="s:body"), "pause"),
    every("request_body", "more? pause", "end? set_buffer_bytes 0 0 0 s:before-", "end? get_buffer_status 0 u u"),
    every("response_headers", "add_header_map_value 2 s:x-added s:1", "get_header_map_value 2 s::status b", "set_property s:mine s:"),
    every("response_body", "more? pause", "end? set_buffer_bytes 1 -1 0 s:-behind"),
    "response_trailers: add_header_map_value 3 s:x-added s:1",
    every("log", "get_header_map_value 0 s::path b", "get_header_map_value 2 s::status b"),
))
UNARY = "request_headers: grpc_call s:grpc s:test.Echo s:Say m:x-meta=1 s:hello 5000 u; request_headers: pause; grpc_message: get_buffer_bytes 5 0 -1 b; grpc_message: continue_stream 0; " + local(503, "grpc_close")
STREAM = "; ".join((
    every("request_headers", "grpc_stream s:grpc s:test.Echo s:Talk m:x-meta=1 u", "grpc_send $ s:one 0", "grpc_send $ s:two 1", "pause"),
    "grpc_initial: get_header_map_value 4 s:x-initial b; grpc_message: get_buffer_bytes 5 0 -1 b",
    "grpc_trailing: get_header_map_value 5 s:grpc-status b; grpc_close: get_status u b; grpc_close: continue_stream 0",
))


class Kind:
    """Requests of one sort, and the statuses that they may give; `run` is the scripted filter's. `raw`: by connections of
    our own, which see answers that are cut, and leave. `h2`: to the route over HTTP/2. `beside`: what requests meanwhile run
    that fail the same VM."""

    def __init__(self, path, gives=(200,), run=None, post=None, headers=(), h2=False, raw=None, beside=None):
        self.path, self.gives, self.post, self.h2, self.raw, self.beside = path, gives, post, h2, raw, beside
        self.headers = [*headers, *([f"x-run: {run}"] if run else [])]
        self.rate, self.slowest, self.statuses = 0.0, 0.0, collections.Counter()


# A filter or a chain at `/name`: its scripts, and further keys of the handler.
SCRIPTED = {
    "everything": (EVERYTHING, 'upstreams = ["origin"], vm_id = "everything"'),
    "held": (EVERYTHING.replace("s:everything", "s:held"), 'upstreams = ["origin"], vm_id = "held", hold_headers = true, pause = "2s"'),
    "trailers": (EVERYTHING.replace("s:everything", "s:trailers"), 'upstreams = ["origin"], vm_id = "trailers"'),
    "run": ("", 'upstreams = ["origin", "grpc"], pause = "10s"'),
    "ticked": ("configure: set_tick_period_milliseconds 10; tick: each continue_stream 0", 'pause = "10s"'),
    "ticked-answer": ("configure: set_tick_period_milliseconds 10; tick: each continue_stream 1", 'pause = "10s"'),
    "late": ("configure: set_tick_period_milliseconds 10; tick: each done", ""),
}
FAILING = {
    "trap": ("", ""),
    "open": ("", 'fail = "open"'),
    "tick": ("configure: set_tick_period_milliseconds 20; tick: trap", 'fail = "open"'),
    "queue": (
        "configure: register_shared_queue s:q u; request_headers: resolve_shared_queue s:queue s:q u; request_headers: enqueue_shared_queue $ s:x; queue: dequeue_shared_queue $1 b; queue: trap",
        'fail = "open", vm_id = "queue"',
    ),
    "answer": (f"request_headers: {call('origin', '/')}; request_headers: pause; call: trap", 'fail = "open", upstreams = ["origin"]'),
    "spin": ("", 'wall = "20ms"'),
    "spin-open": ("", 'wall = "20ms", fail = "open"'),
    "paused": ("", 'pause = "200ms", upstreams = ["never"]'),
    "shared": ("", 'pause = "5s", wall = "50ms"'),
    "bad": ("", 'upstreams = ["never", "never-h2", "closed"], pause = "2s"'),
}


def good_kinds():
    body = "order " * 2000
    return {
        "Rust headers": Kind("/headers"),
        "Rust body": Kind("/body/large", post=body),
        "Rust body, refused": Kind("/body", (403,), post="this is forbidden"),
        "Rust config": Kind("/config"),
        "Rust auth": Kind("/auth", headers=("authorization: alice",)),
        "Rust auth, refused": Kind("/auth", (401,), headers=("authorization: eve",)),
        "Rust state": Kind("/state/a"),
        "Go": Kind("/go"),
        "Go, shouting": Kind("/go/shout", post=body),
        "chain": Kind("/chain", post="body"),
        "everything": Kind("/everything"),
        "everything, posted": Kind("/everything/large", post=body),
        "everything, head held": Kind("/held", post="body"),
        "trailers, HTTP/2": Kind("/trailers", h2=True, post="body", headers=("te: trailers",)),
        "trailers of a request": Kind("/everything", raw="trailers"),
        "paused for three calls": Kind("/run", run=every("request_headers", *(call("origin", f"/{i}") for i in range(3)), "pause") + "; call: all? continue_stream 0"),
        "body paused for a call": Kind("/run", post="body", run=f"request_body: pause; request_body: end? {call('origin', '/')}; call: continue_stream 0"),
        "answer paused for a call": Kind("/run", run=f"response_headers: {call('origin', '/')}; response_headers: pause; call: continue_stream 1"),
        "paused until a tick": Kind("/ticked", run="request_headers: pause"),
        "answer paused until a tick": Kind("/ticked-answer", run="response_headers: pause"),
        "end put off": Kind("/late", run="done: pause"),
        "gRPC, unary": Kind("/run", run=UNARY),
        "gRPC, stream": Kind("/run", run=STREAM),
        "local answers": Kind("/run", (418,), run=local(418)),
        "local answers to a body": Kind("/run", (418,), post="body", run=local(418, "request_body")),
        "local answers for the origin's": Kind("/run", (418,), run=local(418, "response_headers")),
    }


def bad_kinds():
    trap = lambda callback: f"{callback}: trap"
    refused = "; ".join(("call: failed? send_local_response 503 0 0 s:failed 0 0 -1", "call: ok? continue_stream 0"))
    closes = "; " + local(503, "grpc_close")
    waits = "request_headers: pause"
    # What shares a VM with what traps fails with it; a loop has others wait for their VM, for longer than the queue allows.
    return {
        "trap: request's head": Kind("/trap", (502,), run=trap("request_headers")),
        "trap: request's body": Kind("/trap", (502,), run=trap("request_body"), post="body"),
        "trap: answer's head": Kind("/trap", (502,), run=trap("response_headers")),
        "trap: answer's body": Kind("/trap", (502, "cut"), run=trap("response_body"), raw="get"),
        "trap, open": Kind("/open", run=trap("request_headers")),
        "trap, open, answer's head": Kind("/open", run=trap("response_headers")),
        "trap: done": Kind("/trap", (200, 502), run=trap("done")),
        "trap: log": Kind("/trap", (200, 502), run=trap("log")),
        "trap: delete": Kind("/trap", (200, 502), run=trap("delete")),
        "trap: tick": Kind("/tick"),
        "trap: queue": Kind("/queue"),
        "trap: call's answer": Kind("/answer"),
        "loop": Kind("/spin", (504, 503), run="request_headers: spin"),
        "loop in the answer": Kind("/spin", (504, 503, 502), run="response_headers: spin"),
        "loop, open": Kind("/spin-open", (200, 503), run="request_headers: spin"),
        "pause without end": Kind("/paused", (504,), run=waits),
        "answer's pause without end": Kind("/paused", (504,), run="response_headers: pause"),
        "pause for nobody's answer": Kind("/paused", (504,), run=f"request_headers: {call('never', '/', 1000)}; {waits}"),
        "call that nobody answers": Kind("/bad", (503,), run=f"request_headers: {call('never', '/', 100)}; {waits}; {refused}"),
        "call to a closed port": Kind("/bad", (503,), run=f"request_headers: {call('closed', '/')}; {waits}; {refused}"),
        "gRPC to a closed port": Kind("/bad", (503,), run=f"request_headers: grpc_call s:closed s:a s:b 0 0 s:x 1000 u; {waits}{closes}"),
        "gRPC that nobody answers": Kind("/bad", (503,), run=f"request_headers: grpc_call s:never-h2 s:a s:b 0 0 s:x 100 u; {waits}{closes}"),
        "closed by its filter": Kind("/trap", (502, "cut"), run="request_headers: close_stream 0", raw="get"),
        "waiting beside a trap": Kind("/shared", (502,), run=waits, beside=trap("request_headers")),
        "own state beside a loop": Kind("/shared", (200, 502, 504), run="request_headers: get_header_map_value 0 s:x-id b", raw="own", beside="request_headers: spin"),
        "left while paused": Kind("/paused", ("left",), run=waits, raw="leave"),
        "left in a call": Kind("/bad", ("left",), run=f"request_headers: {call('never', '/', 100)}; {waits}", raw="leave"),
        "left in a body": Kind("/trap", ("left",), run="request_body: more? pause", raw="half"),
        "left in an answer": Kind("/body/large", ("left",), raw="leave"),
    }
