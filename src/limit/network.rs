//! What counts as one anonymous caller.
//!
//! Invariant: one IPv4 address in any spelling is one caller; an IPv6 caller can't get more by changing the lower 64 bits
//! at will, and only a bounded amount more by changing the 16 bits above them.

use std::net::{IpAddr, Ipv6Addr};

/// How many times one caller's limits all callers of a /48 have together.
pub const SITE_FACTOR: u64 = 16;

/// An IPv6 /48.
pub type Site = [u8; 6];

/// IPv4 as it is (also when mapped into IPv6), IPv6 without its lower 64 bits.
pub fn caller(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

pub fn site(caller: IpAddr) -> Option<Site> {
    match caller {
        IpAddr::V6(v6) => v6.octets().first_chunk().copied(),
        IpAddr::V4(_) => None,
    }
}

/// The address of a site, for names.
pub fn site_address(site: Site) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..6].copy_from_slice(&site);
    octets.into()
}

/// A number that spreads callers over shards; all of one site get the same.
pub fn spread(caller: IpAddr) -> u64 {
    let bits = match caller {
        IpAddr::V4(v4) => u64::from(v4.to_bits()),
        IpAddr::V6(v6) => (v6.to_bits() >> 80) as u64,
    };
    bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}
