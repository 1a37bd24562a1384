//! Sets the response headers that its configuration names: one `name: value` a line.

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

type Headers = Rc<[(String, String)]>;

#[derive(Default)]
struct Root(Headers);

/// `None` when a line has no colon.
fn parse(text: &str) -> Option<Headers> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| line.split_once(':').map(|(name, value)| (name.trim().into(), value.trim().into()))).collect()
}

impl Context for Root {}

impl RootContext for Root {
    /// `false` tells the gateway that the filter can't work with its configuration; a reload refuses it then.
    fn on_configure(&mut self, _: usize) -> bool {
        let bytes = self.get_plugin_configuration().unwrap_or_default();
        let Some(headers) = std::str::from_utf8(&bytes).ok().and_then(parse) else {
            log::error("each line has to be `name: value`");
            return false;
        };
        self.0 = headers;
        true
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Filter(self.0.clone())))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Filter(Headers);

impl Context for Filter {}

impl HttpContext for Filter {
    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        for (name, value) in self.0.iter() {
            self.set_http_response_header(name, Some(value));
        }
        Action::Continue
    }
}

mod log {
    pub fn error(message: &str) {
        proxy_wasm::hostcalls::log(proxy_wasm::types::LogLevel::Error, message).ok();
    }
}
