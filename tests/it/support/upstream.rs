//! A scripted HTTP/1.1 origin that records exactly what reached it.
//!
//! Invariant: requests are parsed by the letter; what two readers could count differently panics the origin's
//! thread and shows up as a failed exchange.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::DEADLINE;

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub version: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Which connection it came on, from 1.
    pub connection: usize,
}

impl Seen {
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// Whether the text occurs anywhere in the request.
    pub fn mentions(&self, text: &str) -> bool {
        format!("{self:?}").contains(text) || String::from_utf8_lossy(&self.body).contains(text)
    }
}

/// Writes the answer; `false` closes the connection.
type Script = dyn Fn(&Seen, &mut TcpStream) -> bool + Send + Sync;

pub struct Upstream {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    stop: AtomicBool,
    script: Box<Script>,
}

impl Upstream {
    pub fn start(script: impl Fn(&Seen, &mut TcpStream) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self::on(listener, script)
    }

    pub fn on(listener: TcpListener, script: impl Fn(&Seen, &mut TcpStream) -> bool + Send + Sync + 'static) -> Self {
        let addr = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            connections: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            script: Box::new(script),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let connection = accepting.connections.fetch_add(1, Ordering::Relaxed) + 1;
                let shared = accepting.clone();
                std::thread::spawn(move || serve(&shared, stream, connection));
            }
        });
        Self { addr, shared }
    }

    /// Answers every request with what it saw, as JSON.
    pub fn echo() -> Self {
        Self::start(echo)
    }

    /// Answers every request with these bytes and keeps the connection.
    pub fn bytes(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |_, stream| stream.write_all(&answer).is_ok())
    }

    /// A 200 with this body.
    pub fn text(body: &'static str) -> Self {
        Self::start(move |_, stream| respond(stream, 200, &[], body.as_bytes()))
    }

    /// An address at which nobody listens.
    pub fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port")
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no script panicked").clone()
    }

    /// The only request so far.
    #[track_caller]
    pub fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen.into_iter().next().unwrap_or_default()
    }

    pub fn last(&self) -> Seen {
        self.seen().pop().expect("the upstream was asked")
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        TcpStream::connect(self.addr).ok();
    }
}

fn serve(shared: &Shared, mut stream: TcpStream, connection: usize) {
    stream.set_read_timeout(Some(DEADLINE)).ok();
    stream.set_nodelay(true).ok();
    let mut reader = BufReader::new(stream.try_clone().expect("sockets clone"));
    while let Some(mut seen) = read_request(&mut reader, &mut stream) {
        seen.connection = connection;
        shared.seen.lock().expect("no script panicked").push(seen.clone());
        if !(shared.script)(&seen, &mut stream) {
            stream.shutdown(std::net::Shutdown::Both).ok();
            return;
        }
    }
}

fn line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    Some(line.strip_suffix("\r\n").expect("lines end in CRLF").to_owned())
}

fn read_request(reader: &mut impl BufRead, stream: &mut TcpStream) -> Option<Seen> {
    let first = line(reader)?;
    let mut parts = first.split(' ');
    let mut next = || parts.next().expect("a request line has three parts").to_owned();
    let mut seen = Seen { method: next(), target: next(), version: next(), ..Seen::default() };
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(": ").or_else(|| line.split_once(':')).expect("a header line");
        seen.headers.push((name.to_owned(), value.to_owned()));
    }
    let lengths = seen.all("content-length").len();
    let encodings = seen.all("transfer-encoding").len();
    assert!(lengths + encodings <= 1, "ambiguous framing reached the upstream: {seen:?}");
    if seen.header("expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    if encodings == 1 {
        assert_eq!(seen.header("transfer-encoding"), Some("chunked"), "{seen:?}");
        seen.body = chunks(reader)?;
    } else if let Some(len) = seen.header("content-length") {
        seen.body = vec![0; len.parse().expect("a number")];
        reader.read_exact(&mut seen.body).ok()?;
    }
    Some(seen)
}

fn chunks(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(reader)?;
        let len = usize::from_str_radix(&size, 16).expect("a chunk size");
        let start = body.len();
        body.resize(start + len, 0);
        reader.read_exact(&mut body[start..]).ok()?;
        assert_eq!(line(reader)?, "", "CRLF behind a chunk");
        if len == 0 {
            return Some(body);
        }
    }
}

/// The echo script, for use inside others.
pub fn echo(seen: &Seen, stream: &mut TcpStream) -> bool {
    let body = json!({
        "method": seen.method,
        "uri": seen.target,
        "headers": seen.headers,
        "body": String::from_utf8_lossy(&seen.body),
    });
    respond(stream, 200, &[("Content-Type", "application/json")], body.to_string().as_bytes())
}

/// A whole answer with a length.
pub fn respond(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)], body: &[u8]) -> bool {
    let mut head = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(&[head.as_bytes(), body].concat()).is_ok()
}

/// Holds the connection until the gateway gives it up.
pub fn hang(stream: &mut TcpStream) -> bool {
    stream.read_exact(&mut [0]).ok();
    false
}

/// A gate that scripts wait at, so that tests decide when an answer goes out.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, std::sync::Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().expect("nobody panics in it") = true;
        self.0.1.notify_all();
    }

    /// Until it is open, or the deadline.
    pub fn wait(&self) {
        let shut = self.0.0.lock().expect("nobody panics in it");
        drop(self.0.1.wait_timeout_while(shut, DEADLINE, |open| !*open));
    }
}
