//! `examples/proxy-wasm-c` does what its README says. Those that SDKs build are in `sdk/`.

use super::*;
use crate::support::c_example;
use crate::support::toml::open_proxy;
use crate::support::upstream::respond;

#[test]
fn the_filter_in_c_tells_its_configuration() {
    let up = Upstream::start(|_, stream| respond(stream, 200, &[("Server", "up/1.0"), ("X-Edge", "up")], b"answer"));
    let with = |config: &str| {
        open_proxy(up.addr, &format!("handlers = [{{ module = \"acme/edge\", wall = \"20s\", config = {config:?} }}]"))
    };
    let gw = Gateway::start(&open_proxy(up.addr, ""));
    let request = gw.admin("PUT", "/api/wasm/modules/edge?owner=acme").header("Content-Type", "application/wasm");
    let stored = request.body(c_example("proxy-wasm-c/filter.c", &["-Wextra"])).send().expect(201).json();
    assert_eq!(stored["abi"], "proxy-wasm", "by its shape");
    gw.write_config(&with("fra1"));
    gw.reload().expect(200);
    for _ in 0..20 {
        let response = gw.get("/").header("X-Edge", "forged").send().expect(200);
        assert_eq!(up.last().all("x-edge"), ["fra1"]);
        assert_eq!((response.header("x-edge"), response.header("server")), (Some("fra1"), None));
        assert_eq!(response.text(), "answer");
    }
    for config in ["", &"long ".repeat(1000)] {
        gw.write_config(&with(config));
        assert!(gw.reload().status >= 400, "it does not start with {} bytes", config.len());
    }
    gw.get("/").send().expect(200);
}
