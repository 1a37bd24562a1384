//! Who and what a request is before anybody authenticates it: its id, its trace, the address it comes from.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use smallvec::SmallVec;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A client's own request id is kept up to this length.
const MAX_REQUEST_ID: usize = 64;
/// Hops of `X-Forwarded-For` looked at, from the right.
const MAX_HOPS: usize = 32;

/// Makes ids that do not repeat: a random start and a counter, scrambled. Not secrets.
pub struct Ids {
    seed: u64,
    next: AtomicU64,
}

impl Ids {
    pub fn new() -> Result<Self, getrandom::Error> {
        Ok(Self { seed: getrandom::u64()?, next: AtomicU64::new(getrandom::u64()?) })
    }

    /// Two 64-bit words, neither 0.
    pub fn draw(&self) -> (u64, u64) {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        (splitmix(n ^ self.seed).max(1), splitmix(n.wrapping_add(self.seed)).max(1))
    }

    pub fn request_id(&self) -> HeaderValue {
        let (a, b) = self.draw();
        let mut hex = [0u8; 32];
        write_hex(&mut hex[..16], a);
        write_hex(&mut hex[16..], b);
        ascii(&hex)
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection, so different inputs never collide.
fn splitmix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn write_hex(out: &mut [u8], mut n: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(n & 15) as usize];
        n >>= 4;
    }
}

fn ascii(bytes: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(bytes).expect("hex digits and dashes are a valid header value")
}

/// The client's id when it is one harmless token, else none.
pub fn sane_request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(REQUEST_ID)?;
    let bytes = value.as_bytes();
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:".contains(b);
    ((1..=MAX_REQUEST_ID).contains(&bytes.len()) && bytes.iter().all(token)).then(|| value.clone())
}

/// W3C Trace Context, version 00: the trace that a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    pub id: [u8; 32],
    pub flags: [u8; 2],
}

impl Trace {
    /// The client's trace when its `traceparent` is valid, else a new one that is not sampled.
    pub fn of(headers: &HeaderMap, ids: &Ids) -> Self {
        headers.get(TRACEPARENT).and_then(|v| Self::parse(v.as_bytes())).unwrap_or_else(|| {
            let (a, b) = ids.draw();
            let mut id = [0u8; 32];
            write_hex(&mut id[..16], a);
            write_hex(&mut id[16..], b);
            Self { id, flags: *b"00" }
        })
    }

    /// `00-<32 hex>-<16 hex>-<2 hex>`; a later version may say more behind that (section 4.3 of the recommendation).
    fn parse(value: &[u8]) -> Option<Self> {
        let hex = |b: &[u8]| b.iter().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(c));
        let zero = |b: &[u8]| b.iter().all(|c| *c == b'0');
        let (version, id, parent) = (value.get(..2)?, value.get(3..35)?, value.get(36..52)?);
        let flags = value.get(53..55)?;
        let dashes = [2, 35, 52].iter().all(|at| value[*at] == b'-');
        let length = if version == b"00" { value.len() == 55 } else { value.len() == 55 || value[55] == b'-' };
        let ok = dashes
            && length
            && [version, id, parent, flags].iter().all(|part| hex(part))
            && version != b"ff"
            && !zero(id)
            && !zero(parent);
        ok.then(|| Self { id: id.try_into().expect("32 bytes were taken"), flags: flags.try_into().expect("2 bytes") })
    }

    /// `traceparent` for the next hop, with a parent id of this gateway.
    pub fn header(&self, ids: &Ids) -> HeaderValue {
        let mut out = *b"00-00000000000000000000000000000000-0000000000000000-00";
        out[3..35].copy_from_slice(&self.id);
        write_hex(&mut out[36..52], ids.draw().0);
        out[53..].copy_from_slice(&self.flags);
        ascii(&out)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.id).unwrap_or_default()
    }
}

/// An address as text. Every request needs it for the next hop and for the log.
pub fn address_text(address: IpAddr) -> SmallVec<[u8; 46]> {
    let mut text = SmallVec::new();
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let mut digits = itoa::Buffer::new();
            for (at, octet) in v4.octets().into_iter().enumerate() {
                if at > 0 {
                    text.push(b'.');
                }
                text.extend_from_slice(digits.format(octet).as_bytes());
            }
        }
        IpAddr::V6(v6) => text.extend_from_slice(v6.to_string().as_bytes()),
    }
    text
}

/// Whether a proxy of ours speaks, whose `X-Forwarded-*` is believed.
pub fn is_trusted(peer: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&peer))
}

/// The client's address: the peer, or behind trusted proxies the first hop from the right that is not one of them.
pub fn client_address(peer: SocketAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.ip().to_canonical();
    if trusted.is_empty() || !is_trusted(client, trusted) {
        return client;
    }
    let mut hops = 0;
    for value in headers.get_all(FORWARDED_FOR).iter().rev() {
        for hop in value.as_bytes().rsplit(|b| *b == b',') {
            let Some(address) = std::str::from_utf8(hop).ok().and_then(|s| parse_hop(s.trim())) else { return client };
            client = address;
            hops += 1;
            if hops == MAX_HOPS || !is_trusted(client, trusted) {
                return client;
            }
        }
    }
    client
}

/// An address, with or without a port.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(hop);
    let address = bare.parse::<IpAddr>().or_else(|_| hop.parse::<SocketAddr>().map(|a| a.ip())).ok()?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|v| (FORWARDED_FOR, HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn forwarded_for_is_believed_from_trusted_peers_only() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let client = |peer: &str, values: &[&'static str]| {
            client_address(peer.parse().unwrap(), &forwarded(values), &trusted).to_string()
        };
        assert_eq!(client("192.0.2.1:1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1:1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1:1", &["6.6.6.6, 198.51.100.7, 10.2.2.2"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1:1", &["6.6.6.6", "198.51.100.7:4711"]), "198.51.100.7");
        assert_eq!(client("[::ffff:10.0.0.1]:1", &["::ffff:198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1:1", &["[2001:db8::1]:80"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1:1", &["junk, 10.3.3.3"]), "10.3.3.3");
        assert_eq!(client("10.0.0.1:1", &[]), "10.0.0.1");
    }

    #[test]
    fn a_valid_traceparent_is_continued() {
        let ids = Ids::new().unwrap();
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = Trace::parse(given.as_bytes()).unwrap();
        let next = trace.header(&ids);
        let next = next.to_str().unwrap();
        assert_eq!(&next[..36], &given[..36]);
        assert_eq!(&next[52..], "-01");
        assert_ne!(&next[36..52], &given[36..52]);
        for bad in [
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c",
            "",
        ] {
            assert_eq!(Trace::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn addresses_are_written_as_the_standard_library_does() {
        for text in ["0.0.0.0", "127.0.0.1", "192.0.2.255", "::", "2001:db8::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(address_text(address).as_slice(), text.as_bytes());
        }
        assert_eq!(address_text("::ffff:198.51.100.7".parse().unwrap()).as_slice(), b"198.51.100.7");
    }

    #[test]
    fn request_ids_are_kept_when_harmless() {
        let kept = |v: &str| {
            let headers = HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_str(v).unwrap())]);
            sane_request_id(&headers).is_some()
        };
        assert!(kept("abc-123_X.y:z"));
        assert!(kept(&"a".repeat(64)));
        assert!(!kept(&"a".repeat(65)));
        assert!(!kept(""));
        assert!(!kept("a b"));
        assert!(!kept("a\"b"));
    }
}
