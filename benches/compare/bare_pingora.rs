//! The yardstick: Pingora with nothing around it, built with the gateway's own flags.
//!
//! `bare-pingora PROXY_PORT ANSWER_PORT UPSTREAM_PORT`, all on 127.0.0.1: one port proxies, one answers by itself. One
//! worker thread a service, as the gateway has in the comparison.

use async_trait::async_trait;
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use pingora::upstreams::peer::HttpPeer;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Forward {
    upstream: String,
}

#[async_trait]
impl ProxyHttp for Forward {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(&self.upstream, false, String::new())))
    }
}

struct Answer;

#[async_trait]
impl ServeHttp for Answer {
    async fn response(&self, _: &mut ServerSession) -> http::Response<Vec<u8>> {
        let body = b"hello world\n".to_vec();
        http::Response::builder()
            .header("content-type", "text/plain")
            .header("content-length", body.len())
            .body(body)
            .expect("the headers above are valid")
    }
}

fn main() {
    let ports: Vec<u16> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let [proxy, answer, upstream] = ports[..] else {
        eprintln!("usage: bare-pingora PROXY_PORT ANSWER_PORT UPSTREAM_PORT");
        std::process::exit(2);
    };
    let conf = ServerConf { threads: 1, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut forward = http_proxy_service(&server.configuration, Forward { upstream: format!("127.0.0.1:{upstream}") });
    forward.add_tcp(&format!("127.0.0.1:{proxy}"));
    let mut own: Service<Answer> = Service::new("answer".into(), Answer);
    own.add_tcp(&format!("127.0.0.1:{answer}"));
    server.add_service(forward);
    server.add_service(own);
    server.run_forever();
}
