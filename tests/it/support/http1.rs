//! A raw HTTP/1.1 client: it sends the bytes it is given and reads exactly one answer.
//!
//! Invariant: nothing is normalised; headers come back in order, with their case, and framing errors fail the test.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

use super::DEADLINE;

/// Most that an answer may hold, so that a test never fills the machine.
const MAX_RESPONSE: usize = 64 << 20;

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The only value of a header.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "`{name}` came {} times: {self}", all.len());
        all.first().copied()
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {self}"))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// RFC 9457: the status, the type's slug and the members every problem has. Gives the document.
    #[track_caller]
    pub fn problem(&self, status: u16, slug: &str) -> Value {
        assert_eq!(self.status, status, "expected {status} {slug}: {self}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self}");
        let doc = self.json();
        assert_eq!(doc["type"], format!("/problems/{slug}"), "{self}");
        assert_eq!(doc["status"], status, "{self}");
        for member in ["title", "detail", "request_id"] {
            assert!(doc[member].as_str().is_some_and(|s| !s.is_empty()), "no `{member}`: {self}");
        }
        doc
    }
}

impl std::fmt::Display for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.status)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {value}")?;
        }
        let text = self.text();
        write!(f, "\n{}", text.chars().take(2000).collect::<String>())
    }
}

/// A request to one address, sent on a connection of its own.
#[derive(Clone)]
pub struct Request {
    addr: SocketAddr,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    pub fn new(addr: SocketAddr, method: &str, target: &str) -> Self {
        Self { addr, method: method.into(), target: target.into(), headers: Vec::new(), body: None }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn key(self, key: &str) -> Self {
        self.header("X-Api-Key", key)
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub fn json(self, body: &Value) -> Self {
        self.header("Content-Type", "application/json").body(body.to_string())
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {}\r\n", self.addr);
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = &self.body {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }

    #[track_caller]
    pub fn send(self) -> Response {
        let shown = format!("{} {}", self.method, self.target);
        self.try_send().unwrap_or_else(|e| panic!("{shown}: {e}"))
    }

    pub fn try_send(self) -> io::Result<Response> {
        let mut conn = Conn::open(self.addr)?;
        conn.try_send(&self.bytes())?;
        conn.try_read(&self.method)
    }
}

pub trait Stream: Read + Write + Send {
    fn shutdown_write(&mut self);
}

impl Stream for TcpStream {
    fn shutdown_write(&mut self) {
        self.shutdown(Shutdown::Write).ok();
    }
}

/// One connection, with what was read beyond the last answer.
pub struct Conn {
    stream: Box<dyn Stream>,
    buf: Vec<u8>,
}

impl Conn {
    #[track_caller]
    pub fn connect(addr: SocketAddr) -> Self {
        Self::open(addr).unwrap_or_else(|e| panic!("cannot connect to {addr}: {e}"))
    }

    pub fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    pub fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), buf: Vec::new() }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes.as_ref()).expect("the gateway takes the bytes");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.stream.write_all(bytes).and_then(|()| self.stream.flush()) {
            // Refused before the body was read to its end; the answer is waiting.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            other => other,
        }
    }

    /// Whether the bytes could be written; `false` once the other side has closed.
    pub fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub fn shutdown_write(&mut self) {
        self.stream.shutdown_write();
    }

    /// Sends and reads one answer to a `GET`-like request.
    #[track_caller]
    pub fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Response {
        self.send(bytes);
        self.read()
    }

    #[track_caller]
    pub fn read(&mut self) -> Response {
        self.try_read("GET").unwrap_or_else(|e| panic!("no answer: {e}"))
    }

    pub fn try_read(&mut self, method: &str) -> io::Result<Response> {
        let (status, headers) = loop {
            let (status, headers) = self.head()?;
            if status == 101 || status >= 200 {
                break (status, headers);
            }
        };
        let mut response = Response { status, headers, body: Vec::new() };
        let bodiless = method == "HEAD" || status == 101 || status == 204 || status == 304;
        if !bodiless {
            response.body = self.body(&response)?;
        }
        Ok(response)
    }

    fn body(&mut self, response: &Response) -> io::Result<Vec<u8>> {
        if response.header("transfer-encoding").is_some_and(|te| te.eq_ignore_ascii_case("chunked")) {
            assert!(response.header("content-length").is_none(), "both framings: {response}");
            return self.chunks();
        }
        match response.header("content-length") {
            Some(len) => {
                let len = len.parse().map_err(|e| bad(format!("content-length `{len}`: {e}")))?;
                self.take(len)
            }
            None => self.rest(),
        }
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let len = usize::from_str_radix(digits, 16).map_err(|_| bad(format!("chunk size `{line}`")))?;
            if len == 0 {
                while !self.line()?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.take(len)?);
            if !self.line()?.is_empty() {
                return Err(bad("no CRLF behind a chunk".into()));
            }
        }
    }

    /// Reads the status line and the headers.
    pub fn head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status =
            status.filter(|_| line.starts_with("HTTP/1.")).ok_or_else(|| bad(format!("status line `{line}`")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad(format!("header line `{line}`")))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buf.windows(2).position(|w| w == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buf[..end]).into_owned();
                self.buf.drain(..end + 2);
                return Ok(line);
            }
            self.fill()?;
        }
    }

    /// Exactly `len` bytes.
    pub fn take(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.buf.len() < len {
            self.fill()?;
        }
        Ok(self.buf.drain(..len).collect())
    }

    /// All that comes until the other side closes.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.fill() {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(std::mem::take(&mut self.buf)),
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether the other side closes now (or has) without a further byte.
    pub fn closes(&mut self) -> bool {
        match self.rest() {
            Ok(rest) => rest.is_empty(),
            Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.buf.len() > MAX_RESPONSE {
            return Err(bad("the answer is too large".into()));
        }
        let mut chunk = [0; 16 << 10];
        let read = loop {
            match self.stream.read(&mut chunk) {
                // Of a process that was stopped for a while.
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        match read {
            0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("closed after {:?}", String::from_utf8_lossy(&self.buf)),
            )),
            n => {
                self.buf.extend_from_slice(&chunk[..n]);
                Ok(())
            }
        }
    }
}

fn bad(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
