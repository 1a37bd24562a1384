//! Merges what handlers set before the upstream answered into its answer (http-wasm ABI section 6).
//!
//! Invariant: of fields that have one value the upstream's wins; others append.

use http::HeaderName;
use http::header::{
    ACCEPT_RANGES, AGE, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE,
    CONTENT_TYPE, DATE, ETAG, EXPIRES, LAST_MODIFIED, LOCATION, RETRY_AFTER, SERVER, TRANSFER_ENCODING,
};
use pingora::Result;
use pingora::http::ResponseHeader;

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

pub fn merge_pending(answer: &mut ResponseHeader, pending: http::response::Parts) -> Result<()> {
    for (name, value) in &pending.headers {
        // Framing is the gateway's, recomputed after the merge.
        let framing = *name == CONTENT_LENGTH || *name == TRANSFER_ENCODING;
        let upstreams = is_single(name) && answer.headers.contains_key(name);
        if !framing && !upstreams {
            answer.append_header(name, value)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upstreams_single_values_win_and_lists_append() {
        let mut answer = ResponseHeader::build(200, None).unwrap();
        answer.insert_header("Content-Type", "text/html").unwrap();
        answer.insert_header("Set-Cookie", "a=1").unwrap();
        answer.insert_header("Content-Length", "3").unwrap();
        let pending = http::Response::builder()
            .header("content-type", "text/plain")
            .header("set-cookie", "b=2")
            .header("content-length", "99")
            .header("x-httpwasm-tck-handled", "1")
            .body(())
            .unwrap()
            .into_parts()
            .0;
        merge_pending(&mut answer, pending).unwrap();
        let all = |name: &str| answer.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("content-type"), ["text/html"]);
        assert_eq!(all("set-cookie"), ["a=1", "b=2"]);
        assert_eq!(all("content-length"), ["3"]);
        assert_eq!(all("x-httpwasm-tck-handled"), ["1"]);
    }
}
