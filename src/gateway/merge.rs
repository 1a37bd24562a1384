//! Merges what handlers set before the upstream answered into its answer (http-wasm ABI section 6).
//!
//! Invariant: of fields that have one value the upstream's wins; others append.

use http::header::{
    ACCEPT_RANGES, AGE, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE,
    CONTENT_TYPE, DATE, ETAG, EXPIRES, LAST_MODIFIED, LOCATION, RETRY_AFTER, SERVER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName};

fn is_single(name: &HeaderName) -> bool {
    [
        ACCEPT_RANGES,
        AGE,
        CONTENT_DISPOSITION,
        CONTENT_ENCODING,
        CONTENT_LOCATION,
        CONTENT_RANGE,
        CONTENT_TYPE,
        DATE,
        ETAG,
        EXPIRES,
        LAST_MODIFIED,
        LOCATION,
        RETRY_AFTER,
        SERVER,
    ]
    .contains(name)
}

pub fn merge_pending(answer: &mut HeaderMap, pending: HeaderMap) {
    let mut last = None;
    for (name, value) in pending {
        // A further value of the same field comes without its name.
        last = name.or(last);
        let Some(name) = &last else { continue };
        // Framing is the gateway's, recomputed after the merge.
        let framing = *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING;
        let upstreams = is_single(name) && answer.contains_key(name);
        if !framing && !upstreams {
            // Handlers and upstreams are bounded far below what a map holds.
            let _ = answer.try_append(name.clone(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_upstreams_single_values_win_and_lists_append() {
        let fields = |list: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in list {
                map.append(*name, HeaderValue::from_static(value));
            }
            map
        };
        let mut answer = fields(&[("content-type", "text/html"), ("set-cookie", "a=1"), ("content-length", "3")]);
        let pending = [
            ("content-type", "text/plain"),
            ("set-cookie", "b=2"),
            ("set-cookie", "c=3"),
            ("content-length", "99"),
            ("x-httpwasm-tck-handled", "1"),
        ];
        merge_pending(&mut answer, fields(&pending));
        let all = |name: &str| answer.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("content-type"), ["text/html"]);
        assert_eq!(all("set-cookie"), ["a=1", "b=2", "c=3"]);
        assert_eq!(all("content-length"), ["3"]);
        assert_eq!(all("x-httpwasm-tck-handled"), ["1"]);
    }
}
