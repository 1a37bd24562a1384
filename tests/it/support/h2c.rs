//! An HTTP/2 client (prior knowledge, or ALPN over TLS) and an HTTP/2 origin with trailers.
//!
//! Invariant: a client owns the runtime that drives its connection, so tests stay plain functions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::DEADLINE;

pub struct H2 {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
}

#[derive(Debug)]
pub struct H2Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(stream).await.expect("an HTTP/2 handshake");
    tokio::spawn(connection);
    sender
}

impl H2 {
    /// HTTP/2 with prior knowledge.
    pub fn connect(addr: SocketAddr) -> Self {
        let runtime = runtime();
        let sender = runtime.block_on(in_time("the h2c handshake", async {
            handshake(TcpStream::connect(addr).await.expect("the listener accepts")).await
        }));
        Self { runtime, sender }
    }

    /// HTTP/2 by ALPN over TLS to `localhost`.
    pub fn connect_tls(addr: SocketAddr, config: Arc<ClientConfig>) -> Self {
        let runtime = runtime();
        let sender = runtime.block_on(in_time("the TLS handshake", async {
            let tcp = TcpStream::connect(addr).await.expect("the listener accepts");
            let name = ServerName::try_from("localhost").expect("a name");
            let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.expect("a TLS handshake");
            assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "ALPN");
            handshake(tls).await
        }));
        Self { runtime, sender }
    }

    #[track_caller]
    pub fn get(&self, uri: &str, headers: &[(&str, &str)]) -> H2Response {
        self.send("GET", uri, headers, None)
    }

    /// `uri` is absolute: its authority becomes `:authority`.
    #[track_caller]
    pub fn send(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> H2Response {
        self.try_send(method, uri, headers, body).unwrap_or_else(|e| panic!("{method} {uri}: {e}"))
    }

    /// The error: the stream or its connection broke off.
    #[track_caller]
    pub fn try_send(
        &self,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Result<H2Response, h2::Error> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a valid request");
        let body = body.map(Bytes::copy_from_slice);
        self.runtime.block_on(in_time("the answer", exchange(self.sender.clone(), request, body)))
    }

    /// Sends a request, and resets its stream once `when` returns.
    #[track_caller]
    pub fn abandon(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: &[u8], when: impl FnOnce()) {
        let request = headers.iter().fold(Request::builder().method(method).uri(uri), |r, (n, v)| r.header(*n, *v));
        let request = request.body(()).expect("a valid request");
        let body = Bytes::copy_from_slice(body);
        let (_answer, mut stream) = self.runtime.block_on(in_time("a stream", async {
            let mut ready = self.sender.clone().ready().await.expect("the connection is open");
            let (answer, mut stream) = ready.send_request(request, false).expect("a stream is free");
            stream.send_data(body, true).expect("the stream is open");
            (answer, stream)
        }));
        when();
        stream.send_reset(h2::Reason::CANCEL);
    }

    /// Opens streams and resets each at once (CVE-2023-44487). Gives how many the server took before it closed.
    pub fn rapid_reset(&self, uri: &str, streams: usize) -> usize {
        self.runtime.block_on(in_time("the resets", async {
            for done in 0..streams {
                let Ok(mut ready) = self.sender.clone().ready().await else { return done };
                let request = Request::get(uri).body(()).expect("a valid request");
                match ready.send_request(request, true) {
                    Ok((_, mut stream)) => stream.send_reset(h2::Reason::CANCEL),
                    Err(_) => return done,
                }
                tokio::task::yield_now().await;
            }
            streams
        }))
    }
}

/// The bytes of a frame (RFC 9113 section 4.1), for what no library sends.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

async fn exchange(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    body: Option<Bytes>,
) -> Result<H2Response, h2::Error> {
    let mut ready = sender.ready().await?;
    let (response, mut stream) = ready.send_request(request, body.is_none())?;
    if let Some(body) = body {
        // An early refusal resets the stream; its answer still counts.
        stream.send_data(body, true).ok();
    }
    let (head, mut incoming) = response.await?.into_parts();
    let mut body = Vec::new();
    while let Some(data) = incoming.data().await {
        let data = data?;
        incoming.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = incoming.trailers().await?;
    Ok(H2Response { status: head.status, headers: head.headers, body: body.into(), trailers })
}

/// An h2c origin: answers `body` and the trailer `grpc-status: 0`, with the request's `te`, `host` and URI in `x-te`, `x-host` and
/// `x-uri`.
pub struct H2Origin {
    pub addr: SocketAddr,
    runtime: Option<Runtime>,
    calls: Arc<Calls>,
}

/// gRPC calls that an origin has seen, and those under way.
#[derive(Default)]
struct Calls {
    seen: AtomicUsize,
    open: AtomicUsize,
}

struct OpenCall(Arc<Calls>);

impl OpenCall {
    fn new(calls: &Arc<Calls>) -> Self {
        calls.seen.fetch_add(1, Ordering::SeqCst);
        calls.open.fetch_add(1, Ordering::SeqCst);
        Self(calls.clone())
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl H2Origin {
    pub fn start(body: &'static str) -> Self {
        Self::serving(move |tcp, _| serve(tcp, body))
    }

    /// gRPC: answers each message at once with `echo ` before it, and ends with status 0. A path that ends in `/Deny` ends
    /// with status 7 and the message `denied`, one in `/Hang` does not end by itself, one in `/Large` answers 100,000 bytes,
    /// and one in `/Early` ends with its head.
    pub fn grpc() -> Self {
        Self::serving(serve_grpc)
    }

    pub fn calls_seen(&self) -> usize {
        self.calls.seen.load(Ordering::SeqCst)
    }

    /// Neither ended nor reset.
    pub fn calls_open(&self) -> usize {
        self.calls.open.load(Ordering::SeqCst)
    }

    fn serving<F>(serve: impl Fn(TcpStream, Arc<Calls>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let calls = Arc::<Calls>::default();
        runtime.spawn({
            let calls = calls.clone();
            async move {
                while let Ok((tcp, _)) = listener.accept().await {
                    tokio::spawn(serve(tcp, calls.clone()));
                }
            }
        });
        Self { addr, runtime: Some(runtime), calls }
    }
}

impl Drop for H2Origin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

async fn serve(tcp: TcpStream, body: &'static str) {
    let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let mut response = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("x-uri", request.uri().to_string());
        for name in ["te", "host"] {
            if let Some(value) = request.headers().get(name) {
                response = response.header(format!("x-{name}"), value);
            }
        }
        let response = response.body(()).expect("valid headers");
        let Ok(mut stream) = respond.send_response(response, false) else { continue };
        let trailers = HeaderMap::from_iter([("grpc-status".parse().expect("a name"), "0".parse().expect("a value"))]);
        stream.send_data(Bytes::from_static(body.as_bytes()), false).and_then(|()| stream.send_trailers(trailers)).ok();
    }
}

async fn serve_grpc(tcp: TcpStream, calls: Arc<Calls>) {
    let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        let open = OpenCall::new(&calls);
        tokio::spawn(async move {
            answer_grpc(request, respond).await;
            drop(open);
        });
    }
}

async fn answer_grpc(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) -> Option<()> {
    let path = request.uri().path().to_owned();
    let mut head = http::Response::builder().header("content-type", "application/grpc");
    for (from, to) in [("x-meta", "x-initial"), ("te", "x-te")] {
        if let Some(value) = request.headers().get(from) {
            head = head.header(to, value);
        }
    }
    if path.ends_with("/Early") {
        let head = head.header("grpc-status", "5").header("grpc-message", "not%20here");
        return respond.send_response(head.body(()).ok()?, true).ok().map(drop);
    }
    let mut answer = respond.send_response(head.header("x-path", &path).body(()).ok()?, false).ok()?;
    let (mut incoming, mut buffered) = (request.into_body(), Vec::new());
    while let Some(data) = incoming.data().await {
        let data = data.ok()?;
        incoming.flow_control().release_capacity(data.len()).ok()?;
        buffered.extend_from_slice(&data);
        // A flag, the length, the message.
        while let Some(len) =
            buffered.get(1..5).map(|len| u32::from_be_bytes(len.try_into().expect("four bytes")) as usize)
        {
            if buffered.len() < 5 + len {
                break;
            }
            let echo = || [b"echo ", &buffered[5..5 + len]].concat();
            let message = if path.ends_with("/Large") { vec![b'x'; 100_000] } else { echo() };
            let framed = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
            buffered.drain(..5 + len);
            if !path.ends_with("/Deny") && !path.ends_with("/Hang") {
                answer.send_data(framed.into(), false).ok()?;
            }
        }
    }
    if path.ends_with("/Hang") {
        std::future::poll_fn(|cx| answer.poll_reset(cx)).await.ok()?;
        return None;
    }
    let (status, message) = if path.ends_with("/Deny") { ("7", "denied") } else { ("0", "") };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().ok()?);
    trailers.insert("grpc-message", message.parse().ok()?);
    answer.send_trailers(trailers).ok()
}
