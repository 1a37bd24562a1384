"""An HTTP/2 origin without TLS for one answer, with trailers as gRPC has them. It reads no heads, so it needs no HPACK."""

import socket
import threading

DATA, HEADERS, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 4, 6, 8
END_STREAM = ACK = 1
END_HEADERS = 4


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def field(name, value):
    """A literal that is in no table."""
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value


# `:status: 200` is number 8 of the static table.
HEAD = b"\x88" + field(b"content-type", b"application/grpc") + field(b"x-initial", b"1")
MESSAGE = b"\0\0\0\0\4echo"
TRAILERS = field(b"grpc-status", b"0")


def answer(stream):
    head, trailers = frame(HEADERS, END_HEADERS, stream, HEAD), frame(HEADERS, END_HEADERS | END_STREAM, stream, TRAILERS)
    return head + frame(DATA, 0, stream, MESSAGE) + trailers


def reply(kind, flags, stream, payload):
    """What a frame is answered with."""
    if kind in (SETTINGS, PING):
        return b"" if flags & ACK else frame(kind, ACK, 0, payload if kind == PING else b"")
    out = b""
    if kind == DATA and payload:
        grown = len(payload).to_bytes(4, "big")
        out = frame(WINDOW_UPDATE, 0, 0, grown) + frame(WINDOW_UPDATE, 0, stream, grown)
    if kind in (DATA, HEADERS) and flags & END_STREAM:
        out += answer(stream)
    return out


def serve(connection):
    with connection, connection.makefile("rb") as frames:
        try:
            frames.read(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
            connection.sendall(frame(SETTINGS, 0, 0))
            while len(head := frames.read(9)) == 9:
                size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                connection.sendall(reply(kind, flags, int.from_bytes(head[5:], "big"), frames.read(size)))
        except OSError:
            pass


def start(port):
    """Serves until the process ends."""
    server = socket.create_server(("127.0.0.1", port), backlog=256)

    def accept():
        while True:
            threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
